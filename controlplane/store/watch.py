"""One watcher: every event under a prefix, in order, exactly once, through a bounded queue.

Owns the queue between the cache, which never waits, and a reader, which may be slow. The events before the moment of
subscription come from a backlog (the cache's ring, or the log when the ring is too short); later ones are put in by
the cache. A reader that falls `QUEUE` events behind is cut with `Lagged`: it must list again, as if it had been away.
Called by the apiserver's watch handler; made by `Cache.watch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from controlplane.store.item import Event

QUEUE = 4096  # events a reader may fall behind: bursts such as deleting a namespace pass, a stuck client does not


class Lagged(Exception):  # noqa: N818
    """The watcher was too slow and has lost events; start again from a list."""


class Closed(Exception):  # noqa: N818
    """The watch, or the cache under it, was closed."""


class Watch:
    """Iterate over single events, or `take()` all that have come; use as a context manager or `close()` it."""

    def __init__(self, prefix: str, revision: int, backlog: list[Event],
                 load: Callable[[], Coroutine[Any, Any, list[Event]]] | None, leave: Callable[[Watch], None]) -> None:
        self.prefix = prefix
        self.revision = revision  # everything up to here has been taken, or was never asked for
        self._queue = backlog
        self._load = load
        self._leave = leave
        self._ended: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """From the cache: one more event. Never waits."""
        if self._ended is not None or event.revision <= self.revision:
            return  # a watch may begin in the future
        if len(self._queue) >= QUEUE:
            self.end(Lagged())
            return
        self._queue.append(event)
        self._wake()

    def end(self, why: Exception) -> None:
        """Cut the watcher: `why` is raised at its next take."""
        if self._ended is None:
            self._ended = why
            self._queue = []
            self._leave(self)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def pending(self) -> bool:
        """Whether events wait to be taken."""
        return bool(self._queue) or self._load is not None

    async def take(self) -> list[Event]:
        """All events that have come, at least one; waits for it. Raises Lagged, Compacted (history went away before
        it could be read) or Closed."""
        if self._load is not None:
            load, self._load = self._load, None
            try:
                older = await load()
            except BaseException:
                self.close()
                raise
            self._queue[:0] = older
        while not self._queue:
            if self._ended is not None:
                raise self._ended
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._queue = self._queue, []
        self.revision = events[-1].revision
        return events

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Until closed: what `take` gives, so that one send can carry many events."""
        while True:
            try:
                yield await self.take()
            except Closed:
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for events in self.batches():
            for event in events:
                yield event

    def close(self) -> None:
        self.end(Closed())

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Observer:
    """A function called with every event under `prefix` as it is applied, before the write is answered; what it keeps
    is never behind the cache. It must be quick and must not raise."""

    def __init__(self, prefix: str, put: Callable[[Event], None]) -> None:
        self.prefix = prefix
        self.put = put

    def end(self, why: Exception) -> None:
        """The cache closes; there is nothing to wake."""
