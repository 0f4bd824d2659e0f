"""The node tier on every containerd that Debian's releases have beside the host's own, the host tier on Debian 13."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from controlplane.cli.control import CHECKOUT
from tests.host.machine import obstacle
from tests.node.conftest import CONTAINERD
from tests.node.releases import RELEASES

SECONDS = 1800  # for one tier on one release


def tier(name: str, **settings: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKOUT / "tests" / name)]
    with subprocess.Popen(command, env=os.environ | settings, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as run:
        try:
            said, _ = run.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)  # it takes away what it made
            said, _ = run.communicate()
    assert run.returncode == 0, said[-8000:]


@pytest.mark.parametrize("version", RELEASES)
def test_the_node_tier_holds_on_containerd(version: str) -> None:
    tier("node", **{CONTAINERD: version})


def test_the_host_tier_holds_on_debian_13() -> None:
    if why := obstacle():
        pytest.skip(why)
    tier("host", PELAMIS_HOST_RELEASE="trixie")
