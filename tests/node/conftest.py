"""Fixtures of the tests with a real containerd: one host for the whole session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.node.rig import Host

TAIL = 30  # lines of a log
CONTAINERD = "PELAMIS_CONTAINERD"  # the version to test with, of tests.node.releases; else the host's own


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with containerd, a pod network and the busybox and pause images."""
    if os.geteuid() != 0 or shutil.which("containerd") is None:
        pytest.skip("needs root and containerd")
    made = Host(version=os.environ.get(CONTAINERD, ""))
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what containerd and the kernel said last: it may never come again."""
    report = yield
    made = getattr(item, "funcargs", {}).get("host")
    if report.failed and isinstance(made, Host):
        log = made.root / "containerd.log"
        if log.exists():
            report.sections.append(("containerd", "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])))
        report.sections.append(("kernel", Path("/proc/meminfo").read_text()[:100] + Path("/proc/loadavg").read_text()
                                + Path("/proc/sys/kernel/threads-max").read_text()))
    return report
