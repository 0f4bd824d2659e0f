"""Turns at the runtime: how many sandboxes and containers are being made at the same time.

Owns the limit. More than the processors can carry only wait for each other's locks in the kernel: thirty pods begun
at once cost a fifth more work than the same pods four at a time, and end later. Promises that a container goes before a
sandbox, so that what was begun is finished first, and that work which hangs keeps nobody else waiting: after a while
its turn is somebody else's, while it goes on. Called by `steps`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controlplane.machinery.clock import Clock

LEAST, PER_PROCESSOR = 4, 2
PATIENCE_SECONDS = 3.0  # no healthy start takes longer; one that does waits for something else than a processor
CONTAINER, SANDBOX = 0, 1  # who goes first


class Turns:
    """`processors` may be a fraction of one."""

    def __init__(self, clock: Clock, processors: float) -> None:
        self._clock = clock
        self._free = max(LEAST, int(processors * PER_PROCESSOR))
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._asked = 0

    @asynccontextmanager
    async def turn(self, kind: int) -> AsyncIterator[None]:
        """Work inside counts as one of the few, for as long as it takes or PATIENCE_SECONDS."""
        await self._take(kind)
        lease = asyncio.create_task(self._lease())
        try:
            yield
        finally:
            if not lease.done():
                lease.cancel()
                self._give()

    async def _lease(self) -> None:
        await self._clock.sleep(PATIENCE_SECONDS)
        self._give()

    async def _take(self, kind: int) -> None:
        if self._free:
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._asked += 1
        heapq.heappush(self._waiting, (kind, self._asked, mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it was ours already
                self._give()
            raise

    def _give(self) -> None:
        """The next one's turn, or nobody's."""
        while self._waiting:
            _, _, next = heapq.heappop(self._waiting)
            if not next.done():
                next.set_result(None)
                return
        self._free += 1
