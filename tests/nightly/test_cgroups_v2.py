"""Limits where control groups are of version 2 alone: run as root on any such machine that has containerd and runc.

`python -m pytest tests/nightly/test_cgroups_v2.py` is all it takes; elsewhere it is skipped. What is looked at are the
kernel's files, from inside the containers and from above them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kubelet.compute.cgroups import MOUNT
from tests.node.rig import Host
from tests.node.test_cpumanager import test_whole_cpus_are_given_alone_and_given_back  # noqa: F401
from tests.node.test_limits import (  # noqa: F401
    test_a_pod_is_held_to_its_worst_moment_and_its_containers_to_their_own,
    test_each_class_has_its_place_its_weight_and_its_score,
    test_time_is_held_back_and_who_is_out_of_memory_begins_again_alone,
)
from tests.node.test_podlevel import test_a_pod_grows_and_shrinks_as_a_whole  # noqa: F401
from tests.node.test_podlife import test_resources_change_under_a_running_container  # noqa: F401
from tests.node.test_pressure import test_the_pods_memory  # noqa: F401

pytestmark = [pytest.mark.node, pytest.mark.skipif(not (MOUNT / "cgroup.controllers").exists(),
                                                   reason="this machine has cgroup v1")]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if os.geteuid() != 0 or shutil.which("containerd") is None:
        pytest.skip("needs root and containerd")
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.skipif(not Path("/run/systemd/system").is_dir(), reason="no systemd runs here")
def test_systemd_keeps_the_slices_of_pods() -> None:
    from tests.host import test_slices
    done = subprocess.run([sys.executable, "-c", test_slices.SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    test_slices.check(done.stdout)
