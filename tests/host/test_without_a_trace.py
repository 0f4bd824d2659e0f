"""The last of the tier: the hosts of all its tests are left without a cluster, and as they were before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.host.conftest import Lab

pytestmark = pytest.mark.host


def test_the_hosts_are_as_before(lab: Lab) -> None:
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda m: m.pelamis("reset", check=False), reversed(lab.machines)))
    for reset in done:
        assert reset.returncode == 0 and "This host is as it was." in reset.stdout, reset.stdout + reset.stderr
        assert "different" not in reset.stdout
    for machine in lab.machines:
        assert "nothing of ours" in machine.pelamis("reset").stdout
