"""Ranges that cannot work together are refused before anything is made."""

import pytest

from controlplane.cli.settings import Settings, check_ranges
from controlplane.machinery.errors import Finding


def test_ranges_are_held_against_each_other_and_the_node():
    check_ranges(Settings("n", "192.168.77.10"))
    check_ranges(Settings("n", "192.168.77.10", "10.96.0.0/16,fd00:96::/112", "10.244.0.0/16,fd00:10:244::/56"))
    for services, pods, why in (
            ("10.96.0.0/16", "10.96.128.0/17", "overlaps"), ("192.168.0.0/16", "10.244.0.0/16", "own address"),
            ("10.96.0.0/16,10.97.0.0/16", "10.244.0.0/16", "two networks of one"), ("ten", "10.244.0.0/16", "ten"),
            ("10.96.0.0/16", "fd00:10:244::/56", "differ in"),
            ("fd00:96::/112", "fd00:10:244::/56", "not of the pods")):
        with pytest.raises(Finding, match=why):
            check_ranges(Settings("n", "192.168.77.10", services, pods))
    alone = Settings("n", "fd00:77::1", "fd00:96::/112", "fd00:10:244::/56")
    check_ranges(alone)
    assert (alone.family, alone.dns_ip, alone.url) == (6, "fd00:96::a", "https://[fd00:77::1]:6443")
    assert Settings("n", "1.2.3.4", "10.96.0.0/16,fd00:96::/112").dns_ip == "10.96.0.10"
