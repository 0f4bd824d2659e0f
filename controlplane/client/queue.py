"""Work to be done, by key: the same key never runs twice at once and never waits twice.

Owns the pending keys of one controller, their delays and their back-off. Promises that a key added while its handler
runs is handled again afterwards, that a failing key is retried ever more slowly but for ever, and that an idle queue
costs nothing: one timer, set to the next deadline. Never remembers anything but keys. Called by controllers, the
scheduler and the node agent.

Upstream: k8s.io/client-go/util/workqueue.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Conflict

log = logging.getLogger(__name__)

BACKOFF_FIRST = 0.01  # seconds: most failures are a lost race, cured by the event already on its way
BACKOFF_LIMIT = 60.0  # seconds: a key that keeps failing is looked at each minute
WORKERS = 5  # keys handled at once: what upstream's controllers do
LOUD_FAILURES = 3  # failures in a row before a retried key is worth a warning

Handler = Callable[[Hashable], Awaitable[float | None]]


class WorkQueue:
    """Keys waiting, running and delayed. Bounded by the number of distinct keys, which are object names."""

    def __init__(self, clock: Clock = SYSTEM, name: str = "") -> None:
        self.clock, self.name = clock, name
        self._ready: deque[Hashable] = deque()
        self._waiting: set[Hashable] = set()  # in _ready, or to be put there when its handler ends
        self._running: set[Hashable] = set()
        self._failures: dict[Hashable, int] = {}
        self._due: dict[Hashable, float] = {}  # key -> its earliest deadline, monotonic seconds
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = 0
        self._timer_changed = asyncio.Event()
        self._work = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs (delayed keys do not count)."""
        return not self._waiting and not self._running

    def add(self, key: Hashable) -> None:
        """Handle `key` soon; a no-op while it already waits."""
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._running:
            self._ready.append(key)
            self._work.set()

    def add_after(self, key: Hashable, seconds: float) -> None:
        """Handle `key` in `seconds` at the latest; the earliest of several deadlines counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self.clock.monotonic() + seconds
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        if self._heap[0][2] == key:
            self._timer_changed.set()

    def retry(self, key: Hashable) -> float:
        """Handle `key` again after its back-off; the seconds that will take."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2 ** min(failures, 30))
        self.add_after(key, self.clock.jitter(delay, 0.1))
        return delay

    def forget(self, key: Hashable) -> None:
        """The key succeeded: its next failure is its first."""
        self._failures.pop(key, None)

    def failures(self, key: Hashable) -> int:
        return self._failures.get(key, 0)

    async def run(self, handler: Handler, workers: int = WORKERS) -> None:
        """Handle keys until cancelled. `handler` may return seconds after which it wants the key again; any exception
        means the key is retried with back-off."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._timer(), name=f"{self.name} timer")
            for number in range(workers):
                group.create_task(self._worker(handler), name=f"{self.name} worker {number}")

    async def _worker(self, handler: Handler) -> None:
        while True:
            while not self._ready:
                self._work.clear()
                await self._work.wait()
            key = self._ready.popleft()
            self._waiting.discard(key)
            self._running.add(key)
            try:
                again = await handler(key)
                self.forget(key)
                if again is not None:
                    self.add_after(key, again)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._failed(key, error)
            finally:
                self._running.discard(key)
                if key in self._waiting:
                    self._ready.append(key)
                    self._work.set()

    def _failed(self, key: Hashable, error: Exception) -> None:
        self.retry(key)
        if not isinstance(error, ApiError):
            log.error("%s: %s failed", self.name, key, exc_info=error)
        elif not isinstance(error, Conflict) and self._failures[key] >= LOUD_FAILURES:
            log.warning("%s: %s: %s", self.name, key, error.message)

    async def _timer(self) -> None:
        """Move due keys to the waiting ones; sleeps until the next deadline or until an earlier one is set."""
        while True:
            self._timer_changed.clear()
            now = self.clock.monotonic()
            while self._heap and self._heap[0][0] <= now:
                due, _, key = heapq.heappop(self._heap)
                if self._due.get(key) == due:  # else an earlier deadline has replaced this one
                    del self._due[key]
                    self.add(key)
            if not self._heap:
                await self._timer_changed.wait()
                continue
            await first_of(self.clock.sleep(self._heap[0][0] - now), self._timer_changed.wait())


async def first_of(*waits: Awaitable[object]) -> None:
    """Wait for whichever comes first, and leave none of the others behind."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
