"""Pods' groups where systemd keeps them: asked of a real systemd, read from the kernel."""

from __future__ import annotations

import json

import pytest

from tests.host.conftest import Lab

pytestmark = pytest.mark.host
SCRIPT = """
import asyncio, json, subprocess
from agent.kubelet.compute.cgroups import Cgroups
groups = Cgroups("sliced", systemd=True, pids=50)
UID = "0b0f7ea4-93a5-4f0d-9d4b-0c1e2f3a4b5c"
FILES = {True: ("cpu.weight", "cpu.max", "memory.max", "pids.max"), False: (
    "cpu/cpu.shares", "cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes", "pids/pids.max")}[groups.v2]

def pod(cpu):
    limits = {"cpu": cpu, "memory": "64Mi"}
    resources = {"limits": limits, "requests": limits}
    return {"metadata": {"uid": UID}, "spec": {"containers": [{"name": "c", "resources": resources}]}}

def read(path, *files):
    found = []
    for file in files:
        controller, slash, name = file.rpartition("/")
        found.append((groups.mount / controller / path / name).read_text().strip())
    return found

async def main():
    await groups.hold(2000, 1 << 30)
    await groups.weigh(500)
    parent = await groups.make(pod("500m"))
    seen = {"parent": parent, "all": read(groups.top, *FILES), "pod": read(groups.folder(pod("1")), *FILES)}
    held = subprocess.Popen(["sleep", "600"])
    top = groups.mount if groups.v2 else groups.mount / "pids"
    (top / groups.folder(pod("1")) / "cgroup.procs").write_text(str(held.pid))
    seen["pids"] = groups.pids_of(pod("1"))
    held.kill()
    held.wait()
    await groups.make(pod("1"))
    seen["wider"] = read(groups.folder(pod("1")), *FILES)
    await groups.clear()  # not while a pod is there
    seen["kept"] = read(groups.folder(pod("1")), *FILES)
    await groups.remove(UID)
    await groups.clear()
    listed = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "sliced*"]
    async with asyncio.timeout(30):
        while subprocess.run(listed, capture_output=True, text=True).stdout:
            await asyncio.sleep(0.05)
    seen["files"] = subprocess.run("ls /run/systemd/system.control | grep sliced", shell=True, text=True,
                                   capture_output=True).stdout
    print(json.dumps(seen))
asyncio.run(main())
"""


def test_systemd_makes_limits_and_ends_the_groups_of_pods(lab: Lab) -> None:
    done = lab.server.python(SCRIPT, check=False)
    assert done.returncode == 0, done.stderr
    check(done.stdout)


def check(said: str) -> None:
    """What the script told must be so."""
    seen = json.loads(said)
    assert seen["parent"] == "sliced-pod0b0f7ea4_93a5_4f0d_9d4b_0c1e2f3a4b5c.slice"
    memory, limit = str(1 << 30), str(64 << 20)
    if (v2 := " " in seen["pod"][1]):
        assert seen["all"][1:] == ["max 100000", memory, "max"]
        assert seen["pod"] == ["20", "50000 100000", limit, "50"]
    else:
        assert seen["all"] == ["2048", "-1", memory, "max"]
        assert seen["pod"] == ["512", "50000", limit, "50"]
    assert seen["wider"][1:3] == ["100000 100000" if v2 else "100000", limit] and seen["kept"] == seen["wider"]
    assert seen["pids"] == 1 and not seen["files"]
