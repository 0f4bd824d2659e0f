"""CREATE, UPDATE and PATCH: from a body to a stored object.

Owns the pipeline of a write (default, admit, prepare, validate, allocate, store) and its optimistic concurrency. It
promises that a write is stored whole or not at all, that one which changes nothing stores nothing, that a dry run goes
the whole way except the store, and that two writers never both win. Called by the pipeline and by `subresources`, which
hands in its own way to prepare an update.

Upstream: k8s.io/apiserver/pkg/registry/generic/registry/store.go, endpoints/handlers/patch.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from controlplane.apiserver import admission
from controlplane.apiserver.admission import Attributes, Chain
from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import views
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.request import Request
from controlplane.apiserver.services.allocator import Allocator, Lease
from controlplane.apiserver.writing import bodies, objectmeta, patches
from controlplane.machinery import apply, strategy
from controlplane.machinery.errors import AlreadyExists, Cause, Conflict, Invalid, NotFound
from controlplane.machinery.resources import Resource
from controlplane.store.item import Item
from controlplane.store.log import Stale

RETRIES = 5  # of a write that lost a race although its sender named no version; upstream's number
NAME_RETRIES = 8  # of a generated name that is taken; upstream's number

Object = dict[str, Any]
Stored = Item | Object  # what a write gives: the item, or the would-be object of a dry run or a last update
Make = Callable[[Object], Object]  # the stored object -> the object to store; pure, may change its argument
Prepare = Callable[[Object, Object], None]  # (new, old): what this endpoint may change; in place


class Writes:
    """The verbs create and update; every stored change of an object goes through here."""

    def __init__(self, context: Context, chain: Chain, allocator: Allocator) -> None:
        self._context = context
        self._chain = chain
        self._allocator = allocator

    # --- create ------------------------------------------------------------------------------------------------

    async def create(self, request: Request, resource: Resource) -> Stored:
        """The stored object of a POST. Raises ApiError."""
        if resource.namespaced and not request.namespace:
            raise Invalid.of(resource.kind, "", [Cause("FieldValueRequired", "Required value", "metadata.namespace")])
        obj = await bodies.object_of(request, resource)
        bodies.place(request, resource, obj)
        return await self.create_object(request, resource, obj)

    async def create_object(self, request: Request, resource: Resource, obj: Object) -> Stored:
        """Store a decoded object; a generated name that is taken is tried anew."""
        metadata = obj["metadata"]
        objectmeta.needs_name(resource.kind, resource.group, metadata)
        dry = bodies.dry_run(request)
        if metadata.get("name"):
            return await self._create(request, resource, obj, dry)
        for attempt in range(NAME_RETRIES):
            named = {**obj, "metadata": {**metadata, "name": objectmeta.generated(metadata["generateName"],
                                                                                  self._context.clock.suffix())}}
            try:
                return await self._create(request, resource, _copy(named), dry)
            except AlreadyExists:
                if attempt == NAME_RETRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def _create(self, request: Request, resource: Resource, obj: Object, dry: bool) -> Stored:
        plan, clock = strategy.of(resource), self._context.clock
        name = obj["metadata"]["name"]
        key = object_key(resource, request.namespace, name)
        plan.default(obj)
        attributes = admission.of_request(request, resource, admission.CREATE, name, obj, None, dry)
        await self._chain.mutate(attributes)
        objectmeta.begin(obj["metadata"], clock.uid(), clock.timestamp())
        plan.prepare_create(obj)
        causes = plan.validate(obj)
        if causes:
            raise Invalid.of(resource.kind, name, causes, resource.group)
        for text in plan.warnings(obj, None):
            request.warn(text)
        await self._chain.validate(attributes)
        self._track(request, resource, obj, None)
        lease = self._lease(resource, obj, None)
        try:
            present = self._context.cache.get(key)
            if present is not None:
                deleting = bool(present.obj["metadata"].get("deletionTimestamp"))
                raise AlreadyExists.of(resource.plural, name, resource.group, deleting=deleting)
            if not dry:
                item = await self._write(key, await views.stored(resource, obj) if resource.converts else obj, None)
        except Stale:
            _release(lease)
            raise AlreadyExists.of(resource.plural, name, resource.group) from None
        except BaseException:
            _release(lease)
            raise
        if dry:
            _release(lease)
            return obj
        if lease is not None:
            lease.commit()
        return item

    def _lease(self, resource: Resource, obj: Object, old: Object | None) -> Lease | None:
        return self._allocator.assign(obj, old) if resource.name == "services" else None

    # --- update ------------------------------------------------------------------------------------------------

    async def update(self, request: Request, resource: Resource) -> tuple[Stored, bool]:
        """The stored object of a PUT, and whether it was created by it. Raises ApiError."""
        obj = await bodies.object_of(request, resource)
        bodies.place(request, resource, obj, request.name)
        plan = strategy.of(resource)
        key = object_key(resource, request.namespace, request.name)
        if plan.create_on_update and self._context.cache.get(key) is None:
            if obj["metadata"].get("uid"):
                raise Conflict.of(resource.plural, request.name, resource.group,
                                  f"Precondition failed: UID in precondition: {obj['metadata']['uid']}, "
                                  "UID in object meta: ")
            return await self.create_object(request, resource, obj), True
        return await self.modify(request, resource, lambda _: _copy(obj), plan.prepare_update), False

    async def modify(self, request: Request, resource: Resource, make: Make, prepare: Prepare,
                     validate: bool = True, dry: bool | None = None) -> Stored:
        """Read, `make`, `prepare`, check and store; anew when another writer came first and `make` bound no version.

        `prepare` restores what the endpoint may not change. Raises ApiError."""
        dry = bodies.dry_run(request) if dry is None else dry
        key = object_key(resource, request.namespace, request.name)
        for attempt in range(RETRIES):
            item = self._context.cache.get(key)
            if item is None:
                raise NotFound.of(resource.plural, request.name, resource.group)
            if resource.converts:
                item = await views.shown(resource, item)
            obj = make(_fresh(item))
            bound = obj["metadata"].get("resourceVersion") not in (None, "", "0", str(item.revision))
            try:
                return await self._replace(request, resource, obj, item, prepare, validate, dry)
            except Stale as error:
                explicit = request.verb == "update" and obj["metadata"].get("resourceVersion")
                if bound or explicit or attempt == RETRIES - 1:
                    if error.current is None:
                        raise NotFound.of(resource.plural, request.name, resource.group) from None
                    raise Conflict.of(resource.plural, request.name, resource.group) from None
        raise AssertionError("unreachable")

    async def _replace(self, request: Request, resource: Resource, obj: Object, item: Item, prepare: Prepare,
                       validate: bool, dry: bool) -> Stored:
        """One try to put `obj` in the place of `item`. Raises Stale and ApiError."""
        plan, old = strategy.of(resource), item.obj
        version = obj["metadata"].get("resourceVersion")
        objectmeta.preconditions(resource, request.name, obj["metadata"], old["metadata"], plan.unconditional_update)
        causes = objectmeta.carry(obj["metadata"], old["metadata"])
        plan.default(obj)
        prepare(obj, old)
        attributes = admission.of_request(request, resource, admission.UPDATE, request.name, obj, old, dry)
        await self._chain.mutate(attributes)
        if validate:
            causes += plan.changes(obj, old)
        if causes:
            raise Invalid.of(resource.kind, request.name, causes, resource.group)
        for text in plan.warnings(obj, old):
            request.warn(text)
        await self._chain.validate(attributes)
        self._track(request, resource, obj, old)
        lease = self._lease(resource, obj, old) if not request.subresource else None
        obj["metadata"]["resourceVersion"] = version
        try:
            stored = await self._store(resource, obj, item, dry)
        except BaseException:
            _release(lease)
            raise
        if lease is not None:
            lease.release() if dry else lease.commit()
        return stored

    async def _store(self, resource: Resource, obj: Object, item: Item, dry: bool) -> Stored:
        if objectmeta.finished(obj):
            if not dry:
                await self.remove(resource, item)
            obj["metadata"]["resourceVersion"] = str(item.revision)
            return obj
        if dry:
            obj["metadata"]["resourceVersion"] = str(item.revision)
            return obj
        return await self._write(item.key, await views.stored(resource, obj) if resource.converts else obj, item)

    async def _write(self, key: str, obj: Object | None, present: Item | None) -> Item:
        """Store in the place of `present` and tell the change log, when one is kept. Raises Stale."""
        written = await settled(self._context.cache.write(key, obj, present.revision if present is not None else 0))
        if self._context.changes is not None:
            self._context.changes.tell(present, written if obj is not None else None)
        return written

    def _track(self, request: Request, resource: Resource, obj: Object, old: Object | None) -> None:
        """Keep the book of field owners, `metadata.managedFields`. An apply has kept it already; where defaults made it
        look like a change that is none, its time is the former one."""
        metadata = obj["metadata"]
        if request.content_type.startswith(patches.APPLY_PATCH):
            if old is not None and untimed(metadata) == untimed(old["metadata"]) and unchanged(
                    {**obj, "metadata": {**metadata, "managedFields": None}}, old):
                metadata["managedFields"] = old["metadata"]["managedFields"]
            return
        if old is not None and unchanged(obj, old):
            if "managedFields" in old["metadata"]:
                metadata["managedFields"] = old["metadata"]["managedFields"]
            return
        metadata["managedFields"] = apply.track_update(old, obj, bodies.manager(request), resource.node,
                                                       self._context.clock.timestamp(), request.subresource)
        if not metadata["managedFields"]:
            del metadata["managedFields"]

    async def put(self, item: Item, obj: Object) -> Item:
        """Store a change the server itself makes (marks of deletion). Raises Stale."""
        return await self._write(item.key, obj, item)

    async def remove(self, resource: Resource, item: Item) -> Item:
        """Delete for good. Raises Stale."""
        gone = await self._write(item.key, None, item)
        if resource.name == "services":
            self._allocator.drop(item.obj)
        return gone

    def attributes(self, request: Request, resource: Resource, operation: str, obj: Object | None, old: Object | None,
                   dry: bool) -> Attributes:
        name = ((old or obj or {}).get("metadata") or {}).get("name") or request.name
        return admission.of_request(request, resource, operation, name, obj, old, dry)

    async def admit(self, attributes: Attributes) -> None:
        """The whole chain for what stores no object of its own (deletes, connects, reviews)."""
        await self._chain.mutate(attributes)
        await self._chain.validate(attributes)


def untimed(metadata: Object) -> list[Object]:
    """The managedFields without their times."""
    return [{k: v for k, v in entry.items() if k != "time"} for entry in metadata.get("managedFields") or ()]


def unchanged(obj: Object, old: Object) -> bool:
    """Whether an update changes nothing but, at most, what the server keeps itself. Pure."""
    new, before = obj["metadata"], old["metadata"]
    if new.get("managedFields") not in (None, before.get("managedFields")):
        return False
    ignored = ("managedFields", "resourceVersion")
    return {k: v for k, v in obj.items() if k != "metadata"} == {k: v for k, v in old.items() if k != "metadata"} \
        and {k: v for k, v in new.items() if k not in ignored} == {k: v for k, v in before.items() if k not in ignored}


async def settled(write: Coroutine[Any, Any, Item]) -> Item:
    """The outcome of a write, also when its sender goes away meanwhile: what it claimed hangs on that outcome.

    A cancellation is held back for the few milliseconds of a commit; the answer then finds its connection closed."""
    task = asyncio.create_task(write)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise


def _release(lease: Lease | None) -> None:
    if lease is not None:
        lease.release()


def _copy(obj: Object) -> Object:
    """A deep copy of a JSON object; through its bytes, which is faster than walking it."""
    copied: Object = orjson.loads(orjson.dumps(obj))
    return copied


def _fresh(item: Item) -> Object:
    """The stored object, decoded anew, so that it may be changed."""
    decoded: Object = orjson.loads(item.data)
    return decoded
