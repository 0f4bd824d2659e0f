"""The whole node tier on every containerd that Debian's releases have, beside the host's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from controlplane.cli.control import CHECKOUT
from tests.node.conftest import CONTAINERD
from tests.node.releases import RELEASES

SECONDS = 1800  # for one release


@pytest.mark.parametrize("version", RELEASES)
def test_the_node_tier_holds_on_containerd(version: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKOUT / "tests/node")]
    done = subprocess.run(command, env=os.environ | {CONTAINERD: version}, cwd=CHECKOUT, timeout=SECONDS,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
