"""mount(2) and umount(2) for volumes: tmpfs and bind mounts, without forking a tool.

Owns nothing but the calls. Promises that `unmount_below` ends everything mounted under a folder, deepest first, so that
a removal never reaches into a foreign file system. Called by `volumes`; tests hand in a recording stand-in.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MAX_LAYERS = 8  # of mounts over mounts at one place; each pass ends one of each


class Mounts:
    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, path: str) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)

    def tmpfs(self, target: Path, size: int = 0) -> None:
        """A tmpfs of at most `size` bytes (0 = the kernel's default, half of memory)."""
        options = f"mode=0777,size={size}" if size else "mode=0777"
        self._check(self._libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode()),
                    str(target))

    def hugepages(self, target: Path, page: int) -> None:
        """A file system of huge pages of `page` bytes each."""
        self._check(self._libc.mount(b"nodev", os.fsencode(target), b"hugetlbfs", 0, f"pagesize={page}".encode()),
                    str(target))

    def bind(self, source: str, target: Path) -> None:
        self._check(self._libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND | MS_REC, None),
                    str(target))

    def foreign(self, kind: str, source: str, target: Path, options: list[str]) -> None:
        """A mount as somebody else describes it, made read-only and without devices or programs of its own; the
        folder `target` is made."""
        target.mkdir(parents=True, exist_ok=True)
        bound = "rbind" in options or "bind" in options
        rest = ",".join(o for o in options if o not in ("ro", "rw", "rbind", "bind"))
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        where = os.fsencode(target)
        self._check(self._libc.mount(os.fsencode(source), where, kind.encode(), MS_BIND if bound else flags,
                                     None if bound else rest.encode()), str(target))
        if bound:  # the kernel takes the flags of a bind mount in a second step only
            self._check(self._libc.mount(None, where, None, MS_BIND | MS_REMOUNT | flags, None), str(target))

    def unmount_below(self, folder: Path) -> None:
        """Detach every mount at or below `folder`, those that lie over each other too: OSError when one remains, for
        what is removed then would be somebody else's."""
        for _ in range(MAX_LAYERS):
            below = _below(os.path.realpath(folder))
            if not below:
                return
            for point in sorted(below, key=len, reverse=True):
                self._check(self._libc.umount2(os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW), point)
        raise OSError(errno.EBUSY, "something is mounted there again and again", str(folder))

    def mounted(self, target: Path) -> bool:
        """Whether something is mounted right there."""
        where = os.path.realpath(target)
        return os.path.exists(where) and _mount_of(where) != _mount_of(os.path.dirname(where))


def _mount_of(path: str) -> str:
    """The kernel's number of the mount that `path` lies on; asking for one costs the same however many there are."""
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/thread-self/fdinfo/{handle}", encoding="ascii") as lines:
            return next(line for line in lines if line.startswith("mnt_id:"))
    finally:
        os.close(handle)


def _below(prefix: str) -> list[str]:
    return [point for point in _points() if point == prefix or point.startswith(prefix + "/")]


def _points() -> list[str]:
    """Every mount point this thread sees, unescaped."""
    points = []
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            text = line.split(" ")[4]
            for code in ("040", "011", "012", "134"):
                text = text.replace("\\" + code, chr(int(code, 8)))
            points.append(text)
    return points
