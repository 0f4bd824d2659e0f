"""A file that grows by lines and never beyond its bounds, written beside the event loop.

Owns one log file: its lines wait in memory until a helper thread has written them, it is turned over at a size, and
old ones are removed by number and age. Promises that a caller never waits for the disk, that what waits in memory is
bounded (what is beyond is dropped and counted), that the file can be read by its owner only, and that `close` loses
nothing that was accepted. Called by `audit` and `changelog`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding

LOG = logging.getLogger("apiserver")
MAX_WAITING = 10_000  # lines in memory, some 10 MB: the disk is then slower than the API for a long time
MAX_MEGABYTES = 100  # of one file; upstream's default
MAX_BACKUPS = 10  # turned-over files kept; they are the bound on the disk together with the size
DAY = 86400.0


class LogFile:
    """`write(line)` from the event loop's thread; `path` "-" is standard output."""

    def __init__(self, path: str, megabytes: int = 0, backups: int = 0, days: int = 0, clock: Clock = SYSTEM) -> None:
        self._path = path
        self._limit = (megabytes or MAX_MEGABYTES) << 20
        self._backups = backups or MAX_BACKUPS
        self._days = days
        self._clock = clock
        self._waiting: list[bytes] = []
        self._flushing: asyncio.Task[None] | None = None
        self._dropped = 0
        self._fd = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        """Raises Finding."""
        if self._path == "-":
            self._fd = sys.stdout.fileno()
            return
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            raise Finding(f"cannot write the log {self._path}: {error.strerror}", "",
                          "give a path this process may write") from None

    def write(self, line: bytes) -> None:
        """Take a line, with its newline."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(line)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush(), name="logfile")

    async def _flush(self) -> None:
        try:
            while self._waiting:
                lines, self._waiting = self._waiting, []
                await asyncio.get_running_loop().run_in_executor(None, self._put, lines)
                if self._dropped:
                    LOG.warning("%s: %d lines were dropped, the disk is too slow", self._path, self._dropped)
                    self._dropped = 0
        finally:
            self._flushing = None

    def _put(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            if self._path != "-" and self._size and self._size + len(data) > self._limit:
                self._turn()
            os.write(self._fd, data)
            self._size += len(data)
        except OSError as error:
            LOG.error("cannot write %s: %s; %d lines are lost", self._path, error.strerror, len(lines))
        except Finding as error:
            LOG.error("%s", error)

    def _turn(self) -> None:
        """Put the full file aside under its time and begin a new one."""
        base = Path(self._path)
        stamp = self._clock.micro_timestamp().replace(":", "-").removesuffix("Z")
        os.close(self._fd)
        base.rename(base.with_name(f"{base.stem}-{stamp}{base.suffix}"))
        self._open()
        old = sorted(base.parent.glob(f"{base.stem}-*{base.suffix}"), reverse=True)
        oldest = self._clock.now() - self._days * DAY
        for index, path in enumerate(old):
            if index >= self._backups or (self._days and path.stat().st_mtime < oldest):
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Write what waits and let go of the file."""
        while self._flushing is not None:
            await self._flushing
        if self._path != "-" and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
