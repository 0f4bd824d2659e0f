"""Notice that somebody used the legacy iptables.

Owns one inotify descriptor on the file that every legacy iptables locks while it works. The kernel tells nobody of
changes to legacy tables, but whoever makes them closes this file afterwards; so a foreign flush is noticed within
milliseconds, and nothing is looked at while nobody touches a rule. A program that works without the lock, or in a
container with a file of its own, is not noticed: `proxy` still looks now and then.

Called by `proxy` where the backend is legacy.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from agent.inotify import CLOSED, CLOSED_UNCHANGED, DELETED_SELF, GONE, Inotify

DEFAULT = "/run/xtables.lock"
RELEASED = CLOSED | CLOSED_UNCHANGED
KINDS = RELEASED | DELETED_SELF


class LockWatch:
    """A context manager inside a running loop; calls `on_release` on it. Raises OSError without inotify."""

    def __init__(self, on_release: Callable[[], None], path: str = "") -> None:
        self._on_release = on_release
        self._path = path or os.environ.get("XTABLES_LOCKFILE", DEFAULT)

    def __enter__(self) -> LockWatch:
        self._make()
        self._inotify = Inotify(self._path, KINDS)
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._readable)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._inotify.fd)
        self._inotify.close()

    def _make(self) -> None:
        """The file is made as iptables would make it, for there may have been no iptables yet."""
        os.close(os.open(self._path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))

    def _readable(self) -> None:
        seen = self._inotify.changes()
        if seen & GONE:  # somebody removed the file; the next iptables makes a new one, or has already
            self._make()
            self._inotify.watch(self._path, KINDS)
        if seen & RELEASED:
            self._on_release()
