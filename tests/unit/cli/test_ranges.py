"""Ranges that cannot work together are refused before anything is made."""

import pytest

from controlplane.cli.settings import Settings, check_ranges
from controlplane.machinery.errors import Finding


def test_ranges_are_held_against_each_other_and_the_node():
    check_ranges(Settings("n", "192.168.77.10"))
    check_ranges(Settings("n", "192.168.77.10", "10.96.0.0/16,fd00:96::/112", "10.244.0.0/16,fd00:10:244::/56"))
    for services, pods, why in (
            ("10.96.0.0/16", "10.96.128.0/17", "overlaps"), ("192.168.0.0/16", "10.244.0.0/16", "own address"),
            ("10.96.0.0/16,10.97.0.0/16", "10.244.0.0/16", "two networks of one"), ("ten", "10.244.0.0/16", "ten")):
        with pytest.raises(Finding, match=why):
            check_ranges(Settings("n", "192.168.77.10", services, pods))
    assert Settings("n", "1.2.3.4", "10.96.0.0/16,fd00:96::/112").dns_ip == "10.96.0.10"
