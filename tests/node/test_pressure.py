"""A node that really runs short: of memory its pods may have, of a small disk's bytes and inodes, of processes.

Each shortage is bounded: the pods' memory by their control group, the disk by its size, the processes by the pod's
bound. The signals are those the kernel tells, and the pod that caused the shortage goes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.pressure import signals
from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.eviction import Evictions
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.thresholds import Reading, parse, with_pods
from controlplane.machinery.clock import SYSTEM
from tests.node.nodekubelet import Rig, eventually, holds, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
MI = 1 << 20
PODS = 256 * MI  # memory of all pods together
DISK, INODES = 32, 2000  # MiB and inodes of the kubelet's disk
NOISE = 1000  # processes others on this machine may start or end meanwhile
MANY = 2500  # threads of the pod that has too many
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"


class Short:
    """Evictions with real signals of this host."""

    def __init__(self, rig: Rig, kubelet: Any, hard: str) -> None:
        self.context = kubelet.context
        groups: Cgroups = self.context.cgroups
        self.told: list[str] = []

        async def reclaim(resource: str) -> None:
            self.told.append(f"reclaim {resource}")

        def read() -> dict[str, Reading]:
            pods = Reading(PODS - groups.working_set(groups.top), PODS)
            return signals.read(self.context.node.root, lambda: "", pods)
        self.evictions = Evictions(
            Keeping(with_pods(parse(hard)), transition=0.0), read, kubelet.workers,
            Accounting(self.context.node.root, self.context.node.log_folder, groups, rig.runtime.layers), reclaim,
            lambda pod, reason, message, notes=None: self.told.append(reason), lambda: None, SYSTEM)

    async def drive(self, rig: Rig, name: str, condition: str, why: str) -> None:
        """Look until the shortage is seen: the pod called `name` goes for it, and with it the shortage."""
        async def pressed() -> bool:
            await self.evictions.look()
            return condition in self.evictions.conditions
        await eventually(pressed, 60)
        ended = await rig.pod(name, lambda p: bool(p) and p["status"]["phase"] == "Failed")
        assert ended["status"]["reason"] == "Evicted" and why in ended["status"]["message"]
        assert "EvictionThresholdMet" in self.told and "Evicted" in self.told

        async def over() -> bool:
            await self.evictions.look()
            return not self.evictions.conditions
        await eventually(over, 60)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """While it lasts, `folder` is a disk of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m,nr_inodes={INODES}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_the_pods_memory(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            short = Short(rig, kubelet, "memory.available<128Mi")
            await short.context.cgroups.hold(2000, PODS)
            await rig.create("calm", sh(STAY))
            await rig.pod("calm", ready)
            await short.evictions.look()
            assert not short.evictions.conditions
            # Pages of files that are not used again count for nothing; a memory-backed volume is memory.
            await rig.create("eater", sh(f"head -c {160 * MI} /dev/zero > /mem/x; {STAY}",
                                         volumeMounts=[{"name": "mem", "mountPath": "/mem"}]),
                             volumes=[{"name": "mem", "emptyDir": {"medium": "Memory"}}])
            await short.drive(rig, "eater", "MemoryPressure", "The node was low on resource: memory.")
            await rig.pod("calm", ready)
            await rig.remove("calm", "eater")
    run(host, body)


def test_the_disks_bytes_and_inodes(host: Host) -> None:
    async def body(rig: Rig) -> None:
        with small_disk(rig.host.paths.kubelet):
            async with rig.kubelet() as kubelet:
                short = Short(rig, kubelet, "nodefs.available<40%,nodefs.inodesFree<40%")
                volume: dict[str, Any] = {"volumes": [{"name": "e", "emptyDir": {}}]}
                mounted = {"volumeMounts": [{"name": "e", "mountPath": "/e"}]}
                await rig.create("calm", sh(f"echo x > /e/x; {STAY}", **mounted), **volume)
                await rig.pod("calm", ready)
                await rig.create("large", sh(f"head -c {24 * MI} /dev/zero > /e/x; {STAY}", **mounted), **volume)
                await short.drive(rig, "large", "DiskPressure", "The node was low on resource: ephemeral-storage.")
                script = f"cd /e; i=0; while [ $i -lt {INODES - 400} ]; do i=$((i+1)); : > $i; done; {STAY}"
                await rig.create("small", sh(script, **mounted), **volume)
                await short.drive(rig, "small", "DiskPressure", "The node was low on resource: inodes.")
                await rig.pod("calm", ready)
                await rig.remove("calm", "large", "small")
    run(host, body)


def test_processes(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            kubelet.context.cgroups.pids = MANY + 500  # of each pod: the shortage ends there in any case
            running, limit = signals.processes()
            short = Short(rig, kubelet, f"pid.available<{limit - running - NOISE}")
            await rig.create("calm", sh(STAY))
            await rig.pod("calm", ready)
            await rig.create("many", sh(f"i=0; while [ $i -lt {MANY} ]; do i=$((i+1)); sleep 600 & done; {STAY}"))
            await short.drive(rig, "many", "PIDPressure", "The node was low on resource: pids.")
            await eventually(lambda: holds(signals.processes()[0] < running + NOISE))
            await rig.pod("calm", ready)
            await rig.remove("calm", "many")
    run(host, body)
