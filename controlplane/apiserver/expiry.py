"""Events are forgotten an hour after they last happened.

Owns that bound, without which a crash-looping Pod would fill the disk. `due` is pure; `keep` sleeps until the oldest
Event is due, and without any Event until one comes, so an idle cluster costs nothing. Called by the server.

Upstream: kube-apiserver's --event-ttl.
"""

from __future__ import annotations

import asyncio
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.machinery.clock import parse_rfc3339
from controlplane.store.log import Stale
from controlplane.store.watch import Lagged

TTL = 3600.0  # seconds; upstream's default
PAUSE = 60.0  # seconds between two rounds at least: Events come in bursts and may go in bursts
BATCH = 200  # deletions at once: they share a commit, and writers of the cluster get their turn in between
PREFIX = "events/"


def last_seen(event: dict[str, Any]) -> float:
    """When an Event last happened, seconds since the epoch."""
    series = event.get("series") or {}
    texts = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"),
             event["metadata"].get("creationTimestamp"))
    seen = 0.0
    for text in texts:
        try:
            seen = max(seen, parse_rfc3339(text) if text else 0.0)
        except ValueError:
            continue  # a client wrote it; the creation time is the server's own
    return seen


async def keep(context: Context) -> None:
    """Forget what is due, for ever. Ends by cancellation."""
    cache, clock = context.cache, context.clock
    while True:
        now, next_due = clock.now(), 0.0
        old = []
        for item in cache.list(PREFIX):
            due = last_seen(item.obj) + TTL
            if due <= now:
                old.append(item)
            elif not next_due or due < next_due:
                next_due = due
        for start in range(0, len(old), BATCH):
            gone = await asyncio.gather(*(cache.write(item.key, None, item.revision)
                                          for item in old[start:start + BATCH]), return_exceptions=True)
            for result in gone:  # Stale: it happened again meanwhile
                if isinstance(result, BaseException) and not isinstance(result, Stale):
                    raise result
        if next_due:
            await clock.sleep(max(next_due - now, PAUSE))
            continue
        with cache.watch(PREFIX, None) as watch:
            if cache.count(PREFIX) == 0:
                try:
                    await watch.take()
                except Lagged:
                    continue  # there are plenty
