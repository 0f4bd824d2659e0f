"""What each pod uses of the node: memory and processes by its cgroup, disk by its folders and its containers' layers.

Owns the measuring, which costs a walk through files: it is done only for pods that somebody has to judge, in a thread.
Promises to count no file twice and to stay on the file system it began on. Called by `eviction` and `stats`.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.model import ObservedPod
from agent.kubelet.pressure.victims import Use

Layers = Callable[[], Awaitable[dict[str, tuple[int, int]]]]
EMPTY_DIR = "kubernetes.io~empty-dir"


def occupied(top: str | Path) -> tuple[int, int]:
    """Bytes and inodes of everything below `top`; nothing when it is not there."""
    total = count = 0
    seen: set[int] = set()
    try:
        device = os.lstat(top).st_dev
    except OSError:
        return 0, 0
    for parent, folders, files in os.walk(top):
        for name in (".", *files):
            try:
                found = os.lstat(os.path.join(parent, name))
            except OSError:
                continue  # it has just gone
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                if found.st_ino in seen:
                    continue
                seen.add(found.st_ino)
            total, count = total + found.st_blocks * 512, count + 1
        folders[:] = [f for f in folders if _same(os.path.join(parent, f), device)]
    return total, count


def _same(path: str, device: int) -> bool:
    try:
        return os.lstat(path).st_dev == device
    except OSError:
        return False


class Accounting:
    """`layers()` gives bytes and inodes of each container's writable layer by its id; `root` is the kubelet's own."""

    def __init__(self, root: Path, logs: Callable[[dict[str, Any]], Path], cgroups: Cgroups, layers: Layers) -> None:
        self._root, self._logs, self._cgroups, self._layers = root, logs, cgroups, layers

    def memory(self, pod: dict[str, Any], seen: ObservedPod) -> Use:
        """Memory and processes: a few files of the cgroup."""
        each = {c.name: self._cgroups.memory_of(pod, c.id) for c in seen.running}
        return Use(memory=self._cgroups.memory_of(pod, ""), pids=self._cgroups.pids_of(pod), memories=each)

    def holds(self, pod: dict[str, Any]) -> bool:
        """Whether volumes of the pod are still there."""
        return (self._root / "pods" / pod["metadata"]["uid"] / "volumes").exists()

    async def disk(self, pods: list[tuple[dict[str, Any], ObservedPod]]) -> list[Use]:
        """Disk of each pod. Raises CallError when the runtime cannot tell."""
        if not pods:
            return []
        layers = await self._layers()
        return await asyncio.to_thread(lambda: [self.disk_of(pod, seen, layers) for pod, seen in pods])

    def disk_of(self, pod: dict[str, Any], seen: ObservedPod, layers: dict[str, tuple[int, int]]) -> Use:
        """Disk of one pod; blocking."""
        written = {c.name: occupied(self._logs(pod) / c.name) for c in seen.containers}
        logs = {name: size for name, (size, _) in written.items()}
        own = {c.name: layers.get(c.id, (0, 0)) for c in reversed(seen.containers)}
        containers = {name: own[name][0] + logs[name] for name in own}
        inodes = sum(count for _, count in (*written.values(), *own.values()))
        folder = self._root / "pods" / pod["metadata"]["uid"] / "volumes" / EMPTY_DIR
        volumes, disk = {}, 0
        for volume in pod["spec"].get("volumes") or ():
            if volume.get("emptyDir") is None:
                continue
            volumes[volume["name"]], count = occupied(folder / volume["name"])
            if volume["emptyDir"].get("medium") in (None, ""):
                disk, inodes = disk + volumes[volume["name"]], inodes + count
        return Use(disk=disk + sum(containers.values()), inodes=inodes, containers=containers, logs=logs,
                   volumes=volumes)
