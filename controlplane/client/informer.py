"""The memory of a client: all objects of one resource, kept current by one LIST and one WATCH.

Owns a dict of shared objects per resource. Promises that every change between two synced states reaches each subscriber
exactly once and in order per object, deletions missed while disconnected included; that it reconnects for ever; and
that a subscriber who joins late first hears of every object that exists. Never changes an object once stored and never
writes to the server; whoever wants to change one copies it. An object that cannot be read disturbs no other. Called by
controllers, scheduler and node agent.

Upstream: k8s.io/client-go/tools/cache (Reflector, SharedInformer).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controlplane.client.rest import PAGE, Client
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Expired
from controlplane.machinery.resources import Resource

log = logging.getLogger(__name__)

BACKOFF_FIRST = 0.5  # seconds before the first retry: a restarting server is back within a second or two
BACKOFF_LIMIT = 15.0  # and never longer apart than this, so that a cluster heals soon after its server returns
SHORT_WATCH_SECONDS = 1.0  # a watch that ends sooner without an event is a failure in disguise

Obj = dict[str, Any]
Key = tuple[str, str]  # namespace ("" for cluster-scoped), name
Subscriber = Callable[[str, Obj | None, Obj], None]
Index = Callable[[Obj], Iterable[str]]


class Informer:
    """Objects of `resource` that match, by (namespace, name) and by any number of indexes.

    `keep(obj)` may drop what the process never reads before an object is stored. `metadata=True` fetches metadata only.
    """

    def __init__(self, client: Client, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                 indexes: dict[str, Index] | None = None, *, keep: Callable[[Obj], None] | None = None,
                 metadata: bool = False, clock: Clock = SYSTEM) -> None:
        self.client, self.resource, self.clock = client, resource, clock
        self.failures = 0  # in a row; 0 while list and watch work
        self._where = {"namespace": namespace, "labels": labels, "fields": fields}
        self._keep, self.metadata = keep, metadata
        self._objects: dict[Key, Obj] = {}
        self._index_functions: dict[str, Index] = {}
        self._indexes: dict[str, dict[str, dict[Key, Obj]]] = {}
        self._subscribers: list[Subscriber] = []
        self._revision = ""
        self._listed = False  # whether _revision is one to watch from
        self._synced = asyncio.Event()
        for name, function in (indexes or {}).items():
            self.add_index(name, function)

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, namespace: str, name: str) -> Obj | None:
        return self._objects.get((namespace, name))

    def items(self) -> list[Obj]:
        return list(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def by(self, index: str, value: str) -> list[Obj]:
        """Objects for which the index function yielded `value`. KeyError for an unknown index."""
        return list(self._indexes[index].get(value, {}).values())

    def by_uid(self, uid: str) -> Obj | None:
        if "uid" not in self._indexes:  # made by the first to ask: most informers never need it
            self.add_index("uid", lambda obj: (obj["metadata"].get("uid", ""),))
        return next(iter(self._indexes["uid"].get(uid, {}).values()), None)

    def add_index(self, name: str, function: Index) -> None:
        """Index objects by what `function` yields; the same name again is a no-op, informers being shared."""
        if name in self._indexes:
            return
        self._index_functions[name] = function
        self._indexes[name] = {}
        for key, obj in self._objects.items():
            self._enter(name, key, obj)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(kind, old, new)` on each change; existing objects are replayed as ADDED now.

        Of ADDED `old` is None; of DELETED `new` is the last state known. It must not block or raise."""
        self._subscribers.append(subscriber)
        for obj in self.items():
            self._tell_one(subscriber, "ADDED", None, obj)

    @property
    def revision(self) -> int:
        """The store's revision this memory has reached; 0 before the first list."""
        return int(self._revision or 0)

    @property
    def has_synced(self) -> bool:
        return self._synced.is_set()

    async def synced(self) -> None:
        """Wait until the first list is complete."""
        await self._synced.wait()

    # --- following ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """List and watch until cancelled. State survives: run again after a cancel and only the difference is told."""
        while True:
            try:
                if not self._listed:
                    await self._relist()
                await self._follow()
                self.failures = 0
                continue
            except Expired:
                self._listed = False
                if self.failures == 0:  # at once, but only once: a server that always says so must not be hammered
                    self.failures = 1
                    continue
                self.failures += 1
            except ApiError as error:
                self._listed = self._listed and error.http_code != 400  # our revision may be what it chokes on
                self._failed(error.message)
            except (KeyError, TypeError, AttributeError) as error:  # another API server may call anything objects
                self._listed = False
                self._failed(f"these are no objects: {error!r}")
            delay = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2 ** min(self.failures - 1, 10))
            await self.clock.sleep(self.clock.jitter(delay))

    def _failed(self, why: str) -> None:
        self.failures += 1
        level = logging.WARNING if self.failures == 1 else logging.DEBUG  # tell it once, not for ever
        log.log(level, "cannot follow %s: %s", self.resource.name, why)

    async def _relist(self) -> None:
        seen: set[Key] = set()
        revision = ""
        async for page, revision in self.client.pages(self.resource, **self._where, limit=PAGE,  # noqa: B007
                                                      metadata=self.metadata):
            for obj in page:
                seen.add(self._key(obj))
                self._store(obj)
        for key in [key for key in self._objects if key not in seen]:
            self._remove(key, None)
        self._revision, self._listed = revision, True
        self._synced.set()

    async def _follow(self) -> None:
        started, events = self.clock.monotonic(), 0
        stream = self.client.watch(self.resource, **self._where, revision=self._revision, metadata=self.metadata)
        async for kind, obj in stream:
            events += 1
            self.failures = 0
            if kind == "DELETED":
                self._remove(self._key(obj), obj)
            elif kind != "BOOKMARK":
                self._store(obj)
            self._revision = (obj.get("metadata") or {}).get("resourceVersion") or self._revision
        if not events and self.clock.monotonic() - started < SHORT_WATCH_SECONDS:
            raise ApiError("the watch ended at once", code=500)

    # --- state -------------------------------------------------------------------------------------------------

    @staticmethod
    def _key(obj: Obj) -> Key:
        metadata = obj["metadata"]
        return metadata.get("namespace", ""), metadata["name"]

    def _store(self, obj: Obj) -> None:
        key = self._key(obj)
        old = self._objects.get(key)
        if old is not None and old["metadata"].get("resourceVersion") == obj["metadata"].get("resourceVersion"):
            return
        if old is not None and old["metadata"].get("uid") != obj["metadata"].get("uid"):
            self._remove(key, None)  # replaced while we looked away: two lives, so its end is told as well
            old = None
        obj["apiVersion"], obj["kind"] = self.resource.api_version, self.resource.kind  # shared strings, always there
        obj["metadata"].pop("managedFields", None)  # half of an object's size, and only field managers read it
        self._trim(obj)
        if old is not None:
            self._leave(key, old)
        self._objects[key] = obj
        for name in self._indexes:
            self._enter(name, key, obj)
        self._tell("ADDED" if old is None else "MODIFIED", old, obj)

    def _remove(self, key: Key, last: Obj | None) -> None:
        old = self._objects.pop(key, None)
        if old is None:
            return
        self._leave(key, old)
        if last is not None:
            self._trim(last)
        self._tell("DELETED", old, last or old)

    def _trim(self, obj: Obj) -> None:
        if self._keep is None:
            return
        try:
            self._keep(obj)
        except Exception:  # an object no server should hold: it stays as it is, and nobody else suffers for it
            log.warning("cannot read %s %s in part", self.resource.name, self._key(obj), exc_info=True)

    def _values(self, index: str, obj: Obj) -> list[str]:
        """What the object is found by; nothing when the index cannot read it."""
        try:
            return list(self._index_functions[index](obj))
        except Exception:
            log.warning("index %s cannot read %s %s", index, self.resource.name, self._key(obj), exc_info=True)
            return []

    def _enter(self, index: str, key: Key, obj: Obj) -> None:
        for value in self._values(index, obj):
            self._indexes[index].setdefault(value, {})[key] = obj

    def _leave(self, key: Key, obj: Obj) -> None:
        for name, index in self._indexes.items():
            for value in self._values(name, obj):
                bucket = index.get(value)
                if bucket is not None:
                    bucket.pop(key, None)
                    if not bucket:
                        del index[value]

    def _tell(self, kind: str, old: Obj | None, new: Obj) -> None:
        for subscriber in self._subscribers:
            self._tell_one(subscriber, kind, old, new)

    def _tell_one(self, subscriber: Subscriber, kind: str, old: Obj | None, new: Obj) -> None:
        try:
            subscriber(kind, old, new)
        except Exception:
            log.exception("a subscriber of %s failed", self.resource.name)


class Informers:
    """One informer per resource and selection, shared by everything in the process that asks for it."""

    def __init__(self, client: Client, clock: Clock = SYSTEM) -> None:
        self.client, self.clock = client, clock
        self._informers: dict[tuple[Any, ...], Informer] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[Informer, asyncio.Task[None]] = {}

    def of(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
           indexes: Mapping[str, Index] | None = None, **options: Any) -> Informer:
        """The shared informer; `options` (keep, metadata) count only for the first to ask, and whoever is content with
        metadata asks last. Raises RuntimeError when it did not."""
        key = (resource.group, resource.version, resource.plural, namespace, labels, fields)
        informer = self._informers.get(key)
        if informer is None:
            informer = Informer(self.client, resource, namespace, labels, fields, clock=self.clock, **options)
            self._informers[key] = informer
            self._start(informer)
        elif informer.metadata and not options.get("metadata"):
            raise RuntimeError(f"{resource.name} is followed by its metadata alone")
        for name, function in (indexes or {}).items():
            informer.add_index(name, function)
        return informer

    def _start(self, informer: Informer) -> None:
        if self._group is not None:
            self._tasks[informer] = self._group.create_task(informer.run(), name=f"informer {informer.resource.name}")

    def drop(self, informer: Informer) -> None:
        """Stop following; whoever asks again gets a fresh informer. For kinds the server no longer has."""
        self._informers = {key: one for key, one in self._informers.items() if one is not informer}
        task = self._tasks.pop(informer, None)
        if task is not None:
            task.cancel()

    def __iter__(self) -> Any:
        return iter(list(self._informers.values()))

    async def run(self) -> None:
        """Run every informer, those asked for later included, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for informer in self:
                    self._start(informer)
                await asyncio.Event().wait()
            finally:
                self._group = None
                self._tasks.clear()

    async def synced(self) -> None:
        """Wait until every informer asked for so far has its first list."""
        for informer in self:
            await informer.synced()
