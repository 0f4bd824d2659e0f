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
from tests.node.nodekubelet import Rig, ready, run, sh
from tests.node.rig import Host
from tests.node.test_cpumanager import test_whole_cpus_are_given_alone_and_given_back  # noqa: F401
from tests.node.test_podlife import test_resources_change_under_a_running_container  # noqa: F401
from tests.node.test_pressure import test_the_pods_memory  # noqa: F401

pytestmark = [pytest.mark.node, pytest.mark.skipif(not (MOUNT / "cgroup.controllers").exists(),
                                                   reason="this machine has cgroup v1")]
MI = 1 << 20
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
READ = "cd /sys/fs/cgroup && cat cpu.max memory.max"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if os.geteuid() != 0 or shutil.which("containerd") is None:
        pytest.skip("needs root and containerd")
    made = Host()
    try:
        yield made
    finally:
        made.close()


def test_pods_and_containers_are_held_to_their_limits(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            groups = kubelet.context.cgroups
            groups.pids = 100
            assert groups.v2
            await groups.hold(2000, 512 * MI)
            await groups.weigh(500)
            sized = {"limits": {"cpu": "500m", "memory": "64Mi"}}
            small = {"requests": {"cpu": "100m", "memory": "16Mi"}}
            await rig.create("held", sh(STAY, resources=sized), sh(STAY, name="d", resources=sized))
            await rig.create("burst", sh(STAY, resources=small), resources={
                "requests": {"cpu": "200m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "96Mi"}})
            pods = {name: await rig.pod(name, ready) for name in ("held", "burst")}
            assert (await rig.inside("held", READ)).splitlines() == ["50000 100000", str(64 * MI)]

            def above(name: str, *files: str) -> list[str]:
                folder = MOUNT / groups.folder(pods[name])
                return [(folder / file).read_text().strip() for file in files]
            assert above("held", "cpu.max", "memory.max", "pids.max", "cpu.weight") == [
                "100000 100000", str(128 * MI), "100", "39"]
            assert above("burst", "cpu.max", "memory.max") == ["100000 100000", str(96 * MI)]
            assert "/burstable/" in groups.folder(pods["burst"])
            top = MOUNT / groups.top
            assert [(top / f).read_text().strip() for f in ("memory.max", "cpu.weight")] == [str(512 * MI), "79"]
            assert (top / "besteffort/cpu.weight").read_text().strip() == "1"
            await rig.remove("held", "burst")
            assert not any((MOUNT / groups.folder(pod)).exists() for pod in pods.values())
    run(host, body)


def test_what_takes_too_much_is_killed_and_told(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("greedy", sh("tail /dev/zero", resources={"limits": {"memory": "32Mi"}}),
                             sh(STAY, name="calm"), restartPolicy="Never")
            pod = await rig.pod("greedy", lambda p: "terminated" in str((p or {}).get("status")))
            (ended,) = (s["state"]["terminated"] for s in pod["status"]["containerStatuses"] if s["name"] == "c")
            assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
            await rig.remove("greedy")
    run(host, body)


@pytest.mark.skipif(not Path("/run/systemd/system").is_dir(), reason="no systemd runs here")
def test_systemd_keeps_the_slices_of_pods() -> None:
    from tests.host import test_slices
    done = subprocess.run([sys.executable, "-c", test_slices.SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    test_slices.check(done.stdout)
