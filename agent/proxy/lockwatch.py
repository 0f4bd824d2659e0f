"""Notice that somebody used the legacy iptables.

Owns one inotify descriptor on the file that every legacy iptables locks while it works. The kernel tells nobody of
changes to legacy tables, but whoever makes them closes this file afterwards; so a foreign flush is noticed within
milliseconds, and nothing is looked at while nobody touches a rule. A program that works without the lock, or in a
container with a file of its own, is not noticed: `proxy` still looks now and then.

Called by `proxy` where the backend is legacy.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable

DEFAULT = "/run/xtables.lock"
IN_CLOSE, IN_DELETE_SELF, IN_IGNORED = 0x8 | 0x10, 0x400, 0x8000
BUFFER = 1 << 14
_HEAD = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)


class LockWatch:
    """A context manager inside a running loop; calls `on_release` on it. Raises OSError without inotify."""

    def __init__(self, on_release: Callable[[], None], path: str = "") -> None:
        self._on_release = on_release
        self._path = path or os.environ.get("XTABLES_LOCKFILE", DEFAULT)
        self._fd = -1

    def __enter__(self) -> LockWatch:
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            self._watch()
        except OSError:
            os.close(self._fd)
            raise
        asyncio.get_running_loop().add_reader(self._fd, self._readable)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _watch(self) -> None:
        """The file is made as iptables would make it, for there may have been no iptables yet."""
        os.close(os.open(self._path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
        if _LIBC.inotify_add_watch(self._fd, os.fsencode(self._path), IN_CLOSE | IN_DELETE_SELF) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", self._path)

    def _readable(self) -> None:
        seen = 0
        try:
            data = os.read(self._fd, BUFFER)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            _, mask, _, length = _HEAD.unpack_from(data, at)
            seen |= mask
            at += _HEAD.size + length
        if seen & IN_IGNORED:
            self._watch()  # somebody removed the file; the next iptables makes a new one, or has already
        if seen & IN_CLOSE:
            self._on_release()
