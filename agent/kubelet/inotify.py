"""Waiting for changes of a folder without looking again and again: the kernel's inotify behind one awaitable.

Owns one inotify descriptor per `Directory`. Promises that a change after construction ends the next `wait`, however
early it came. Never reads files. When the kernel has no descriptor left (its limit per user is small on some hosts),
`wait` falls back to short sleeps. Called by `logs`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from pathlib import Path

MODIFIED, CLOSED, MOVED, CREATED, DELETED = 0x2, 0x8, 0x40 | 0x80, 0x100, 0x200
EVENTS = MODIFIED | CLOSED | MOVED | CREATED | DELETED
BUFFER = 16 << 10
FALLBACK_SECONDS = 0.5

_HEAD = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Directory:
    """The changes of one folder, which is made if absent. Use as a context manager inside a running loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = asyncio.Event()
        self._seen = 0
        self._fd = -1

    def __enter__(self) -> Directory:
        self._path.mkdir(parents=True, exist_ok=True)
        self._fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0 and _LIBC.inotify_add_watch(self._fd, os.fsencode(self._path), EVENTS) < 0:
            os.close(self._fd)
            self._fd = -1
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, BUFFER)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            _, mask, _, length = _HEAD.unpack_from(data, at)
            self._seen |= mask
            at += _HEAD.size + length
        self._changed.set()

    async def wait(self, seconds: float) -> int:
        """The kinds of change (a mask of the constants above) since the last call; 0 when `seconds` passed without."""
        try:
            async with asyncio.timeout(seconds if self._fd >= 0 else min(seconds, FALLBACK_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            pass
        seen, self._seen = self._seen, 0
        self._changed.clear()
        return seen
