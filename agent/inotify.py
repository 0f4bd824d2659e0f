"""The kernel's inotify: told what happens to files and folders, without looking again and again.

Owns one descriptor per `Inotify`; who uses it waits for the descriptor. Never reads files. Called by
`kubelet.directory` and `proxy.lockwatch`.

Source: inotify(7).
"""

from __future__ import annotations

import ctypes
import os
import struct

MODIFIED, CLOSED, MOVED, CREATED, DELETED = 0x2, 0x8, 0x40 | 0x80, 0x100, 0x200
CLOSED_UNCHANGED, DELETED_SELF, GONE = 0x10, 0x400, 0x8000
BUFFER = 1 << 14  # bytes: hundreds of changes at a time
_HEAD = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Raises OSError when the kernel has none left: its limit per user is small on some hosts."""

    def __init__(self, path: str | os.PathLike[str], kinds: int) -> None:
        self.fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            self.watch(path, kinds)
        except OSError:
            self.close()
            raise

    def watch(self, path: str | os.PathLike[str], kinds: int) -> None:
        """Be told of changes of the kinds (a mask of the constants above) there, too. Raises OSError."""
        if _LIBC.inotify_add_watch(self.fd, os.fsencode(path), kinds) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", os.fspath(path))

    def changes(self) -> int:
        """The kinds of all changes the kernel has told since the last call, 0 for none."""
        seen = at = 0
        try:
            data = os.read(self.fd, BUFFER)
        except BlockingIOError:
            return 0
        while at < len(data):
            _, mask, _, length = _HEAD.unpack_from(data, at)
            seen |= mask
            at += _HEAD.size + length
        return seen

    def close(self) -> None:
        os.close(self.fd)
