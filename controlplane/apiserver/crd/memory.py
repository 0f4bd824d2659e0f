"""What objects looked like in versions they are not stored in, so that many readers cost one conversion.

Owns a bounded memory of converted items, by version shown, key and revision: a state never changes, so nothing is ever
wrong in it. And the conversions under way: who wants one that somebody waits for already waits along, which keeps a
hundred watchers from asking a webhook a hundred times at each event. Called by `views`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from controlplane.store.item import Item

BYTES = 4 << 20  # kept: a few thousand objects of common size
Key = tuple[str, str, int]  # the version shown, the item's key and revision
Make = Callable[[Sequence[Item]], Awaitable[list[Item]]]


class Memory:
    """`shown(mark, items, make)` gives the items in order; `make` converts those nobody has yet."""

    def __init__(self, limit: int = BYTES) -> None:
        self._limit, self._size = limit, 0
        self._items: OrderedDict[Key, Item] = OrderedDict()
        self._coming: dict[Key, asyncio.Future[None]] = {}

    async def shown(self, mark: str, items: Sequence[Item], make: Make) -> list[Item]:
        """Raises what `make` raises."""
        keys = [(mark, item.key, item.revision) for item in items]
        if coming := {self._coming[key] for key in keys if key in self._coming}:
            await asyncio.wait(coming)  # whatever came of them: what is still missing is converted here
        found = [self._items.get(key) for key in keys]
        missing = [at for at, item in enumerate(found) if item is None]
        for at, key in enumerate(keys):
            if found[at] is not None:
                self._items.move_to_end(key)
        if missing:
            made = await self._made([items[at] for at in missing], [keys[at] for at in missing], make)
            for at, item in zip(missing, made, strict=True):
                found[at] = item
        return [item for item in found if item is not None]

    async def _made(self, items: list[Item], keys: list[Key], make: Make) -> list[Item]:
        """Convert, with a sign for those who want the same meanwhile."""
        sign: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine = [key for key in keys if key not in self._coming]
        for key in mine:
            self._coming[key] = sign
        try:
            made = await make(items)
            for key, item in zip(keys, made, strict=True):
                self._keep(key, item)
            return made
        finally:
            for key in mine:
                del self._coming[key]
            sign.set_result(None)

    def _keep(self, key: Key, item: Item) -> None:
        if key in self._items or len(item.data) > self._limit // 16:
            return
        self._items[key] = item
        self._size += len(item.data)
        while self._size > self._limit:
            self._size -= len(self._items.popitem(last=False)[1].data)
