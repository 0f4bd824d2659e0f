"""What the store promises, whatever keeps it: a log of revisions.

Owns the vocabulary (`Change`, `Entry`) and the interface `Log`. Every write gets the next revision, one integer for all
keys; a write is answered only when it is durable; changes are delivered to the one follower (the cache) in revision
order, exactly once, before the writer is answered, so a client that reads after its own write sees it. The only
concurrency control is `expect`, the revision at which the writer saw the key. Only the apiserver uses the store.

A value is an object's canonical JSON without `metadata.resourceVersion` (see `codec`): the revision *is* the version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's state: `revision` of its last write, `created` of the write that made it."""

    key: str
    value: bytes
    revision: int
    created: int


@dataclass(frozen=True, slots=True)
class Change:
    """One write. `value` None = deleted; `previous` is the state it replaced, None for a creation."""

    revision: int
    key: str
    value: bytes | None
    previous: Entry | None

    @property
    def entry(self) -> Entry | None:
        """The state after the change."""
        if self.value is None:
            return None
        return Entry(self.key, self.value, self.revision, self.previous.created if self.previous else self.revision)


class Stale(Exception):  # noqa: N818
    """`expect` did not hold. `current` is the key's state now, None when it does not exist."""

    def __init__(self, key: str, current: Entry | None) -> None:
        super().__init__(key)
        self.key = key
        self.current = current


class Compacted(Exception):  # noqa: N818
    """The asked-for revision is older than the log keeps; `floor` is the oldest that can be read."""

    def __init__(self, floor: int) -> None:
        super().__init__(f"compacted up to revision {floor}")
        self.floor = floor


Follower = Callable[[Sequence[Change]], None]


class Log(ABC):
    """An ordered, durable log with a current state. All methods are called on one event loop."""

    revision: int = 0  # of the last durable write
    compacted: int = 0  # the oldest revision that can still be read; what came before is gone
    on_fault: Callable[[Exception], None] | None = None  # told once, when the log can take no more writes: stop then

    @abstractmethod
    async def open(self, follower: Follower) -> list[Entry]:
        """Open, recover and return the current state ordered by key; later changes go to `follower`.

        Raises Finding when the storage is damaged, locked by another process or out of space."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was accepted, then let go."""

    @abstractmethod
    async def write(self, key: str, value: bytes | None, expect: int | None) -> Change:
        """Put (`value`) or delete (None) durably. `expect` 0: must not exist; n: must be at revision n; None: any.

        Raises Stale. Deleting a missing key raises Stale with current None."""

    @abstractmethod
    async def at(self, prefix: str, revision: int) -> list[Entry]:
        """The state under `prefix` as it was at `revision`, ordered by key. Raises Compacted below `compacted`."""

    @abstractmethod
    async def since(self, prefix: str, revision: int) -> list[Change]:
        """Every change under `prefix` after `revision`, in order, also such as the follower has not been told of yet.

        Raises Compacted below `compacted`."""

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget history before `revision`; the state at it and later history stay. In pieces, so writers get by."""
