"""The one in-memory view of the log: the current state, and what recently changed.

Owns a bucket per resource: items by key, keys kept sorted as they come, a bounded ring of events, the watchers. Reads
never wait and never touch the disk, except for history older than the ring. Every write goes through here to the log,
and is visible here before it is answered. It also decides when history is forgotten: after `KEEP_SECONDS`, or earlier
past `KEEP_REVISIONS`; a cluster in which nothing is written costs nothing. All methods belong to one event loop.

Keys are `<plural>[.<group>]/[<namespace>/]<name>` (`key_of`, `prefix_of`); the first segment is the bucket.
Called by the apiserver alone.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.store import codec
from controlplane.store.item import Decoded, Event, Item, Object
from controlplane.store.log import Change, Compacted, Entry, Log
from controlplane.store.watch import Closed, Observer, Watch

RING_EVENTS = 1024  # per resource, for watches that resume: reconnects come within seconds
RING_BYTES = 1 << 20  # per resource; older history is read from the log
BODIES_BYTES = 4 << 20  # joined list bodies kept for repeated lists of an unchanged collection
KEEP_SECONDS = 300.0  # history stays readable at least this long: clients page through lists and resume watches
KEEP_REVISIONS = 1_000_000  # unless this many writes came meanwhile: the disk must not fill with history
MARK_SECONDS = 60.0  # how finely the age of history is known, hence how often it is forgotten


def key_of(resource: str, namespace: str, name: str) -> str:
    """The key of an object: `key_of("pods", "default", "a")`, `key_of("nodes", "", "n")`."""
    return f"{resource}/{namespace}/{name}" if namespace else f"{resource}/{name}"


def prefix_of(resource: str, namespace: str = "") -> str:
    """What the keys of a collection begin with; of all namespaces when `namespace` is empty."""
    return f"{resource}/{namespace}/" if namespace else f"{resource}/"


class _Bucket:
    """One resource."""

    __slots__ = ("changed", "floor", "items", "keys", "ring", "ring_bytes", "watchers")

    def __init__(self, floor: int) -> None:
        self.items: dict[str, Item] = {}
        self.keys: list[str] = []
        self.changed = floor  # the revision of the last change
        self.ring: deque[Event] = deque()
        self.ring_bytes = 0
        self.floor = floor  # the ring holds every change after this revision
        self.watchers: list[Watch | Observer] = []

    def apply(self, event: Event) -> None:
        item = event.item
        if event.kind == "DELETED":
            del self.items[item.key]
            del self.keys[bisect_left(self.keys, item.key)]
        else:
            if event.kind == "ADDED":
                insort(self.keys, item.key)
            self.items[item.key] = item
        self.changed = item.revision
        self.ring.append(event)
        self.ring_bytes += event.size
        while self.ring and (len(self.ring) > RING_EVENTS or self.ring_bytes > RING_BYTES):
            oldest = self.ring.popleft()
            self.ring_bytes -= oldest.size
            self.floor = oldest.revision

    def span(self, prefix: str) -> tuple[int, int]:
        """The positions in `keys` of what begins with `prefix`."""
        first = bisect_left(self.keys, prefix)
        return first, bisect_left(self.keys, prefix[:-1] + chr(ord(prefix[-1]) + 1), first)


class Cache:
    """The state of `log`, indexed, encoded and watchable."""

    def __init__(self, log: Log, clock: Clock = SYSTEM, on_fault: Callable[[Exception], None] | None = None) -> None:
        self.log = log
        self.revision = 0
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._decoded = Decoded()
        self._bodies: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._bodies_bytes = 0
        self._written = asyncio.Event()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._opened = 0
        log.on_fault = on_fault

    async def open(self) -> None:
        """Read the log's state and follow it. Raises Finding."""
        entries = await self.log.open(self._follow)
        self.revision = self._opened = self.log.revision
        for entry in entries:
            bucket = self._bucket(entry.key)
            bucket.items[entry.key] = self._item(entry)
            bucket.keys.append(entry.key)  # entries come ordered
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="store-compaction")

    async def close(self) -> None:
        """End every watch, finish accepted writes, let go of the log."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for bucket in self._buckets.values():
            for watcher in list(bucket.watchers):
                watcher.end(Closed())
        await self.log.close()

    # --- reading -----------------------------------------------------------------------------------------------

    def _bucket(self, key: str) -> _Bucket:
        name = key[:key.index("/") + 1]
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(self._opened)
        return bucket

    def _item(self, entry: Entry) -> Item:
        return Item(entry.key, entry.revision, entry.created, codec.body(entry.value, entry.revision), self._decoded)

    def get(self, key: str) -> Item | None:
        return self._bucket(key).items.get(key)

    def list(self, prefix: str, after: str = "", limit: int = 0) -> list[Item]:
        """The items whose key begins with `prefix`, ordered, at `revision`; from behind the key `after`, at most
        `limit` of them (0 = all). `prefix` holds at least a whole bucket's name with its slash."""
        bucket = self._bucket(prefix)
        first, last = bucket.span(prefix)
        if after:
            first = max(first, bisect_right(bucket.keys, after))
        if limit:
            last = min(last, first + limit)
        items = bucket.items
        return [items[key] for key in bucket.keys[first:last]]

    def count(self, prefix: str) -> int:
        first, last = self._bucket(prefix).span(prefix)
        return last - first

    def list_body(self, prefix: str) -> bytes:
        """All items of `list(prefix)` in bare form, joined by commas; kept while the resource does not change."""
        bucket = self._bucket(prefix)
        kept = self._bodies.get(prefix)
        if kept is not None and kept[0] == bucket.changed:
            self._bodies.move_to_end(prefix)
            return kept[1]
        if kept is not None:
            self._bodies_bytes -= len(self._bodies.pop(prefix)[1])
        joined = b",".join([item.bare for item in self.list(prefix)])
        if len(joined) <= BODIES_BYTES // 2:
            self._bodies[prefix] = (bucket.changed, joined)
            self._bodies_bytes += len(joined)
            while self._bodies_bytes > BODIES_BYTES:
                self._bodies_bytes -= len(self._bodies.popitem(last=False)[1][1])
        return joined

    async def list_at(self, prefix: str, revision: int) -> Sequence[Item]:
        """The items as they were at `revision`, which must not be in the future. Raises Compacted."""
        if revision < self.log.compacted:
            raise Compacted(self.log.compacted)
        if revision >= self._bucket(prefix).changed and revision <= self.revision:
            return self.list(prefix)
        return [self._item(entry) for entry in await self.log.at(prefix, revision)]

    async def reached(self, revision: int) -> None:
        """Return once `revision` is readable here; callers bound the wait."""
        if revision > self.revision:
            wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((revision, wake))
            try:
                await wake
            finally:
                self._waiting = [pair for pair in self._waiting if pair[1] is not wake]

    # --- writing -----------------------------------------------------------------------------------------------

    async def write(self, key: str, obj: Object | None, expect: int | None) -> Item:
        """Put `obj`, or delete with None, durably; the item as it is then (of a deletion: the last state, at the
        revision of the deletion). `expect` 0: must not exist; n: must be at revision n; None: whatever is there.

        Writing what is there already is no write: the present item is returned. Raises Stale."""
        value = codec.encode(obj) if obj is not None else None
        current = self.get(key)
        if value is not None and current is not None and expect in (None, current.revision) \
                and codec.body(value, current.revision) == current.data:
            return current
        change = await self.log.write(key, value, expect)
        entry = change.entry
        if entry is None:
            return self._event(change, None).item
        now = self.get(key)
        return now if now is not None and now.revision == change.revision else self._item(entry)

    def _event(self, change: Change, previous: Item | None) -> Event:
        old = change.previous
        if previous is None and old is not None:
            previous = self._item(old)
        if change.value is None:
            if old is None:
                raise ValueError(f"revision {change.revision} deletes {change.key}, which did not exist")
            gone = codec.body(old.value, change.revision)
            return Event("DELETED", Item(change.key, change.revision, old.created, gone, self._decoded), previous)
        item = Item(change.key, change.revision, old.created if old else change.revision,
                    codec.body(change.value, change.revision), self._decoded)
        return Event("MODIFIED" if previous else "ADDED", item, previous)

    def _follow(self, changes: Sequence[Change]) -> None:
        for change in changes:
            bucket = self._bucket(change.key)
            event = self._event(change, bucket.items.get(change.key))
            bucket.apply(event)
            for watcher in tuple(bucket.watchers):
                if change.key.startswith(watcher.prefix):
                    watcher.put(event)
        self.revision = changes[-1].revision
        self._written.set()
        if self._waiting:
            for revision, wake in self._waiting:
                if revision <= self.revision and not wake.done():
                    wake.set_result(None)

    # --- watching ----------------------------------------------------------------------------------------------

    def watch(self, prefix: str, since: int | None) -> Watch:
        """Every event under `prefix` after `since` (None = from now). Raises Compacted.

        A `since` in the future gives the events after it, once they come."""
        bucket = self._bucket(prefix)
        start = self.revision
        backlog: list[Event] = []
        load: Callable[[], Coroutine[Any, Any, list[Event]]] | None = None
        if since is not None and since < bucket.changed:
            if since < self.log.compacted:
                raise Compacted(self.log.compacted)
            if since >= bucket.floor:
                backlog = _under(prefix, since, bucket.ring)
            else:
                async def load() -> list[Event]:
                    changes = await self.log.since(prefix, since)
                    return [self._event(change, None) for change in changes if change.revision <= start]
        watch = Watch(prefix, start if since is None else since, backlog, load, bucket.watchers.remove)
        bucket.watchers.append(watch)
        return watch

    def observe(self, prefix: str, put: Callable[[Event], None]) -> None:
        """Call `put` with every event under `prefix` from now on, as it is applied: for indexes kept beside the cache.
        It must be quick and must not raise."""
        self._bucket(prefix).watchers.append(Observer(prefix, put))

    # --- history -----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Forget old history, in steps of a minute, for as long as there is any; sleep until a write otherwise."""
        marks: deque[tuple[float, int]] = deque()
        while True:
            if not marks:
                await self._written.wait()
            if self._written.is_set():
                self._written.clear()
                marks.append((self._clock.monotonic(), self.revision))
            await self._clock.sleep(MARK_SECONDS)
            target = self.revision - KEEP_REVISIONS
            while marks and marks[0][0] <= self._clock.monotonic() - KEEP_SECONDS:
                target = max(target, marks.popleft()[1])
            if target > self.log.compacted:
                try:
                    await self.log.compact(target)
                except Finding:
                    continue  # a full disk is told to the writers, a fault to `on_fault`; history waits a minute


def _under(prefix: str, since: int, ring: Iterable[Event]) -> list[Event]:
    return [event for event in ring if event.revision > since and event.item.key.startswith(prefix)]
