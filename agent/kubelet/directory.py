"""Waiting for changes of a folder, behind one awaitable.

Promises that a change after entering ends the next `wait`, however early it came. Never reads files. When the kernel
has no inotify left, `wait` falls back to short sleeps. Called by `logs`, `staticpods` and `volumes.csidrivers`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.inotify import CLOSED, CREATED, DELETED, MODIFIED, MOVED, Inotify

EVENTS = MODIFIED | CLOSED | MOVED | CREATED | DELETED
FALLBACK_SECONDS = 0.5


class Directory:
    """The changes of one folder, which is made if absent. Use as a context manager inside a running loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = asyncio.Event()
        self._seen = 0
        self._inotify: Inotify | None = None

    def __enter__(self) -> Directory:
        self._path.mkdir(parents=True, exist_ok=True)
        try:
            self._inotify = Inotify(self._path, EVENTS)
        except OSError:
            return self
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()

    def _read(self) -> None:
        assert self._inotify is not None
        self._seen |= self._inotify.changes()
        self._changed.set()

    async def wait(self, seconds: float) -> int:
        """The kinds of change (a mask of `EVENTS`) since the last call; 0 when `seconds` passed without."""
        try:
            async with asyncio.timeout(seconds if self._inotify is not None else min(seconds, FALLBACK_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            pass
        seen, self._seen = self._seen, 0
        self._changed.clear()
        return seen
