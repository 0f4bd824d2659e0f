"""What of this node is left: memory, disk, inodes and processes, read from the kernel.

Owns the meaning of upstream's eviction signals here. Memory is used as far as it is the working set: all that is not
free but the pages of files that nothing has touched for long. Called by `eviction`, `usage` and `stats`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agent.kubelet.pressure.thresholds import ALLOCATABLE, Reading


def _number(path: str, default: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    rows = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return {name: int(rest.split()[0]) << 10 for name, _, rest in rows if rest.strip()}


def idle(memory: dict[str, int]) -> int:
    """Bytes of a /proc/meminfo outside the working set."""
    return memory["MemFree"] + memory.get("Inactive(file)", 0)


def processes() -> tuple[int, int]:
    """Threads there are, and how many there may be."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return running, min(_number("/proc/sys/kernel/pid_max", 32768), _number("/proc/sys/kernel/threads-max", 1 << 30))


def filesystem(path: str | Path) -> tuple[Reading, Reading]:
    """Bytes and inodes of the file system `path` lies on. Raises OSError."""
    found = os.statvfs(path)
    return (Reading(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize),
            Reading(found.f_favail, found.f_files))


def read(root: Path, images: Callable[[], str], pods: Reading | None = None) -> dict[str, Reading]:
    """Every signal of now; `images()` is where images lie, "" while nobody knows; `pods` the memory of all pods
    together where they are held to some. A file system that keeps no count of inodes has no such signal."""
    memory = meminfo()
    running, limit = processes()
    found = {"memory.available": Reading(idle(memory), memory["MemTotal"]),
             "pid.available": Reading(limit - running, limit)}
    if pods is not None:
        found[ALLOCATABLE] = pods
    for name, path in (("nodefs", str(root)), ("imagefs", images() or str(root))):
        try:
            space, inodes = filesystem(path)
        except OSError:
            continue
        found[f"{name}.available"] = space
        if inodes.capacity:
            found[f"{name}.inodesFree"] = inodes
    return found
