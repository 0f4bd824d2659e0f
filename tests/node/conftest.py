"""Fixtures of the tests with a real containerd: one host for the whole session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.node.rig import Host


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with containerd, a pod network and the busybox and pause images."""
    if os.geteuid() != 0 or shutil.which("containerd") is None:
        pytest.skip("needs root and containerd")
    made = Host()
    try:
        yield made
    finally:
        made.close()
