"""What of this node is left: memory, disk, inodes and processes, read from the kernel.

Owns the meaning of upstream's eviction signals here. Memory counts as free when the kernel could give it to a program
at once (MemAvailable), page cache included, so that a busy cache evicts nobody. Called by `eviction` and `stats`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agent.kubelet.thresholds import Reading


def _number(path: str, default: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    rows = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return {name: int(rest.split()[0]) << 10 for name, _, rest in rows if rest.strip()}


def processes() -> tuple[int, int]:
    """Threads there are, and how many there may be."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return running, min(_number("/proc/sys/kernel/pid_max", 32768), _number("/proc/sys/kernel/threads-max", 1 << 30))


def filesystem(path: str | Path) -> tuple[Reading, Reading]:
    """Bytes and inodes of the file system `path` lies on. Raises OSError."""
    found = os.statvfs(path)
    return (Reading(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize),
            Reading(found.f_favail, found.f_files))


def read(root: Path, images: Callable[[], str]) -> dict[str, Reading]:
    """Every signal of now; `images()` is where images lie, "" while nobody knows. A file system that keeps no count of
    inodes has no such signal."""
    memory = meminfo()
    running, limit = processes()
    found = {"memory.available": Reading(memory.get("MemAvailable", memory["MemFree"]), memory["MemTotal"]),
             "pid.available": Reading(limit - running, limit)}
    for name, path in (("nodefs", str(root)), ("imagefs", images() or str(root))):
        try:
            space, inodes = filesystem(path)
        except OSError:
            continue
        found[f"{name}.available"] = space
        if inodes.capacity:
            found[f"{name}.inodesFree"] = inodes
    return found
