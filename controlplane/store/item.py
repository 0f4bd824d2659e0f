"""What the cache hands out: items and events, as bytes first.

Owns the forms of one state of one object. An `Item` keeps the served bytes only: a decoded object is some ten times
larger, so decoded objects live in one bounded pool (`Decoded`) and are made again when needed (about 4 µs per KiB).
An `Event` encodes its watch line once, whoever and how many ask. Both are shared by all readers and never change.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from controlplane.store import codec

DECODED_BYTES = 4 << 20  # of encoded size kept decoded: the working set of a busy cluster, about 40 MiB at the worst

Object = dict[str, Any]


class Decoded:
    """The bound on decoded objects: first in, first out, counted by the size of their bytes."""

    def __init__(self, limit: int = DECODED_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._items: deque[Item] = deque()

    def hold(self, item: Item) -> None:
        self._items.append(item)
        self._size += len(item.data)
        while self._size > self._limit and self._items:
            oldest = self._items.popleft()
            self._size -= len(oldest.data)
            oldest.forget()


class Item:
    """One object at one revision. `data` is the whole object's JSON with its resourceVersion."""

    __slots__ = ("_labels", "_obj", "_pool", "created", "data", "key", "revision")

    def __init__(self, key: str, revision: int, created: int, data: bytes, pool: Decoded) -> None:
        self.key = key
        self.revision = revision
        self.created = created
        self.data = data
        self._pool = pool
        self._obj: Object | None = None
        self._labels: dict[str, str] | None = None

    @property
    def bare(self) -> bytes:
        """As an item of a typed list: without apiVersion and kind."""
        return codec.bare(self.data)

    @property
    def obj(self) -> Object:
        """The object, shared: never change it, copy first."""
        found = self._obj
        if found is None:
            found = self._obj = codec.decode(self.data)
            self._pool.hold(self)  # which may let go of this very item
        return found

    @property
    def labels(self) -> dict[str, str]:
        """metadata.labels, kept once asked for, because selectors ask on every list and event. Never change it."""
        if self._labels is None:
            obj = self._obj or codec.decode(self.data)  # a list with a selector must not fill the pool
            found = obj["metadata"].get("labels") or {}
            self._labels = {sys.intern(k): sys.intern(v) if isinstance(v, str) else v for k, v in found.items()}
        return self._labels

    def replaced(self, obj: Object) -> Item:
        """The same state of the same object, seen as `obj`: another version of a custom kind."""
        return Item(self.key, self.revision, self.created, codec.body(codec.encode(obj), self.revision), self._pool)

    def forget(self) -> None:
        """Drop the decoded object; it is decoded again when asked for."""
        self._obj = None

    def __repr__(self) -> str:
        return f"Item({self.key!r}, {self.revision})"


class Event:
    """One change. `kind` is ADDED, MODIFIED or DELETED; of a deletion, `item` is the last state at its revision."""

    __slots__ = ("_data", "item", "kind", "previous")

    def __init__(self, kind: str, item: Item, previous: Item | None) -> None:
        self.kind = kind
        self.item = item
        self.previous = previous
        self._data: bytes | None = None

    @property
    def revision(self) -> int:
        return self.item.revision

    @property
    def data(self) -> bytes:
        """The line of a watch stream, encoded once and shared."""
        if self._data is None:
            self._data = b'{"type":"%b","object":%b}\n' % (self.kind.encode(), self.item.data)
        return self._data

    @property
    def size(self) -> int:
        """Bytes the event keeps alive at most."""
        return 2 * len(self.item.data) + (len(self.previous.data) if self.previous else 0)

    def __repr__(self) -> str:
        return f"Event({self.kind}, {self.item!r})"
