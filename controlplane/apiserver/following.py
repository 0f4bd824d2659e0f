"""Chores that look at every object of a kind: at those there are, then at each that is written.

Owns the loop. It promises that none is missed: whoever falls behind looks at all of them anew. Idle while nothing of
the kind changes. Called by the chores that keep a status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from controlplane.store.cache import Cache
from controlplane.store.item import Item
from controlplane.store.watch import Lagged


async def follow(cache: Cache, prefix: str, look: Callable[[Item], Awaitable[None]]) -> None:
    """`look` at the objects under `prefix`. Ends by cancellation, or Closed when the cache closes."""
    while True:
        with cache.watch(prefix, None) as watch:
            for item in cache.list(prefix):
                await look(item)
            try:
                while True:
                    for event in await watch.take():
                        if event.kind != "DELETED":
                            await look(event.item)
            except Lagged:
                continue
