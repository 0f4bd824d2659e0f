"""Garbage collection: dependents follow their owners.

Owns the finalizers `orphan` and `foregroundDeletion` and the deletion of objects whose owners are gone. Promises never
to delete on memory alone: an absent owner, and the object itself, are looked up at the server first, by uid. Shares the
other controllers' informers and keeps no graph of its own: each informer indexes its objects by their owners' uids, and
kinds nobody else follows are followed by their metadata, custom kinds and those of other API servers as they come and
go. Such a server being away holds up nothing but what its own objects own. Called by `manager`.

Upstream: pkg/controller/garbagecollector.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from controlplane.client.aggregated import Aggregated
from controlplane.client.discovery import Kinds
from controlplane.client.informer import Informer
from controlplane.controllers.namespaces import ownership
from controlplane.controllers.namespaces.ownership import Owner
from controlplane.controllers.runtime import Context, Controller, delete_quietly, drop_finalizer
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import BUILTIN, Resource

log = logging.getLogger(__name__)

# Events have no owners and change more than all else together: upstream ignores them too.
IGNORED = {"events", "events.events.k8s.io", "componentstatuses", "bindings"}
Obj = dict[str, Any]
Key = tuple[Resource, str, str]  # kind, namespace, name


def by_owner(obj: Obj) -> Iterable[str]:
    """Index: the uids of all owners."""
    return [ref.get("uid", "") for ref in obj["metadata"].get("ownerReferences") or ()]


def metadata_only(obj: Obj) -> None:
    """Forget everything but the metadata, for servers that cannot send it alone."""
    for field in [field for field in obj if field not in ("apiVersion", "kind", "metadata")]:
        del obj[field]
    obj["metadata"].pop("annotations", None)


def deletable(resource: Resource) -> bool:
    """Whether the collector can follow the objects and remove them."""
    return {"list", "watch", "delete"} <= set(resource.verbs)


class Garbage(Controller):
    name = "garbage-collector-controller"

    def __init__(self, context: Context) -> None:
        self.followed: dict[Resource, Informer] = {}
        self.context = context
        self.kinds = Kinds(context.informers)  # first, for it needs more of the definitions than their metadata
        self.aggregated = Aggregated(context.informers)
        self._elsewhere: set[Resource] = set()  # kinds of other API servers
        self._joins: dict[Resource, asyncio.Task[None]] = {}
        seen: set[str] = set()
        for resource in BUILTIN:
            if deletable(resource) and resource.name not in IGNORED | seen:
                seen.add(resource.name)
                self._follow(resource)
        super().__init__(context, *self.followed.values(), self.kinds.informer, self.aggregated.informer)

    async def run(self) -> None:
        """Subscribes only when all is known: else each owner listed later than its dependent looks absent."""
        for informer in self.informers:
            await informer.synced()
        for resource in self.kinds.all():
            await self._follow(resource).synced()
        for resource, informer in self.followed.items():
            self._listen(resource, informer)
        async with asyncio.TaskGroup() as group:
            known = set(self.kinds.all())

            def changed(resource: Resource, served: bool) -> None:
                if not served:
                    self._leave(resource)
                elif resource not in known:
                    self._joins[resource] = group.create_task(self._join(resource), name=f"garbage of {resource.name}")
                known.discard(resource)

            def elsewhere(resource: Resource, served: bool) -> None:
                if deletable(resource):
                    self._elsewhere.add(resource)
                    changed(resource, served)
                    if not served:  # its objects may live on where nobody can ask for them
                        del self.followed[resource]

            self.kinds.subscribe(changed)
            group.create_task(self.aggregated.run(elsewhere), name="garbage of other servers")
            group.create_task(super().run(), name=self.name)

    def _follow(self, resource: Resource) -> Informer:
        """The informer of one kind. Made here, it knows metadata only: controllers that need more ask first."""
        made = self.context.informers.of(resource, indexes={"owner": by_owner}, keep=metadata_only, metadata=True)
        self.followed[resource] = made
        return made

    def _leave(self, resource: Resource) -> None:
        self.context.informers.drop(self.followed[resource])
        if (join := self._joins.pop(resource, None)) is not None:
            join.cancel()  # it may still wait for a server that never answered

    async def _join(self, resource: Resource) -> None:
        """A kind that came later: what it owns was not judged while nobody knew it."""
        informer = self._follow(resource)
        await informer.synced()
        self._listen(resource, informer)
        for other, followed in list(self.followed.items()):
            for obj in followed.items():
                if any(self._kind(ref) == resource for ref in ownership.owners(obj)):
                    self.queue.add((other, *objects.key(obj)))

    def _listen(self, resource: Resource, informer: Informer) -> None:
        informer.subscribe(lambda kind, old, new: self._changed(resource, kind, old, new))

    def _changed(self, resource: Resource, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            for dependent_kind, dependent in self.dependents(objects.uid(new)):
                self.queue.add((dependent_kind, *objects.key(dependent)))
            self._unblock(new)
            return
        if ownership.waiting(new) or ownership.orphaning(new):
            self.queue.add((resource, *objects.key(new)))
        if old is not None and ownership.owners(old) == ownership.owners(new):
            return
        if old is not None:
            self._unblock(old)
        if any(self._remembered(new, ref) is not Owner.SOLID for ref in ownership.owners(new)):
            self.queue.add((resource, *objects.key(new)))

    def _unblock(self, dependent: Obj) -> None:
        """An owner that waits for this dependent looks again."""
        for ref in ownership.owners(dependent):
            resource, owner = self._cached(dependent, ref)
            if resource is not None and owner is not None and ownership.waiting(owner):
                self.queue.add((resource, *objects.key(owner)))

    def dependents(self, uid: str) -> list[tuple[Resource, Obj]]:
        return [(resource, obj) for resource, informer in self.followed.items() for obj in informer.by("owner", uid)]

    # --- owners ------------------------------------------------------------------------------------------------

    def _kind(self, ref: Obj) -> Resource | None:
        """The followed resource of a reference, whichever version it names."""
        group = ref.get("apiVersion", "").rpartition("/")[0]
        return next((r for r in self.followed if (r.group, r.kind) == (group, ref.get("kind"))), None)

    def _cached(self, dependent: Obj, ref: Obj) -> tuple[Resource | None, Obj | None]:
        resource = self._kind(ref)
        if resource is None:
            return None, None
        where = objects.namespace(dependent) if resource.namespaced else ""
        owner = self.followed[resource].get(where, ref.get("name", ""))
        return resource, owner if owner is not None and objects.uid(owner) == ref.get("uid") else None

    def _remembered(self, dependent: Obj, ref: Obj) -> Owner:
        resource, owner = self._cached(dependent, ref)
        if owner is None:
            return Owner.SOLID if resource is None else Owner.ABSENT
        return Owner.WAITING if ownership.waiting(owner) else Owner.SOLID

    async def _state(self, dependent: Obj, ref: Obj) -> Owner:
        """What the server says of an owner that memory does not show as solid."""
        state = self._remembered(dependent, ref)
        resource = self._kind(ref)
        if state is not Owner.ABSENT or resource is None:
            return state
        where = objects.namespace(dependent) if resource.namespaced else ""
        if resource.namespaced and not where:
            self.recorder.event(dependent, "Warning", "OwnerRefInvalidNamespace",
                                f"ownerRef [{ref.get('apiVersion')}/{ref.get('kind')}, namespace: , name: "
                                f"{ref.get('name')}, uid: {ref.get('uid')}] does not exist in namespace \"\"")
            return Owner.SOLID
        try:
            live = await self.client.get(resource, ref.get("name", ""), where, metadata=True)
        except NotFound as error:
            if resource in self._elsewhere and not (error.details or {}).get("name"):
                raise  # nobody serves the kind any more: its objects may live on
            return Owner.ABSENT
        if objects.uid(live) != ref.get("uid"):
            return Owner.ABSENT
        return Owner.WAITING if ownership.waiting(live) else Owner.SOLID

    # --- the work ----------------------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        resource, namespace, name = key
        informer = self.followed.get(resource)
        known = informer.get(namespace, name) if informer is not None else None
        if known is None:
            return None
        try:
            obj = await self.client.get(resource, name, namespace, metadata=True)
        except NotFound:
            return None
        if objects.uid(obj) != objects.uid(known):
            return None
        if ownership.orphaning(obj):
            await self._orphan(resource, obj)
        elif ownership.waiting(obj):
            await self._foreground(resource, obj)
        else:
            await self._judge(resource, obj)
        return None

    async def _judge(self, resource: Resource, obj: Obj) -> None:
        states = {ref["uid"]: await self._state(obj, ref) for ref in ownership.owners(obj) if ref.get("uid")}
        dependents = [one for _, one in self.dependents(objects.uid(obj))]
        verdict = ownership.decide(obj, states, bool(dependents))
        if verdict.drop:
            await self._patch(resource, obj, ownership.without(obj, verdict.drop))
        elif verdict.delete:
            if verdict.delete == "Foreground" and any(map(ownership.waiting, dependents)):
                await self._patch(resource, obj, ownership.unblocked(obj))  # a circle: somebody must be the first
            log.debug("deleting %s %s/%s", resource.name, *objects.key(obj))
            await delete_quietly(self.client, resource, obj, propagation=verdict.delete)

    async def _orphan(self, resource: Resource, owner: Obj) -> None:
        for kind, dependent in self.dependents(objects.uid(owner)):
            try:
                live = await self.client.get(kind, objects.name(dependent), objects.namespace(dependent),
                                             metadata=True)
            except NotFound:
                continue
            if objects.uid(owner) in by_owner(live):
                await self._patch(kind, live, ownership.without(live, (objects.uid(owner),)))
        await self._let_go(resource, owner, ownership.ORPHAN)

    async def _foreground(self, resource: Resource, owner: Obj) -> None:
        """Let the owner go when no dependent blocks it; else see to those that are not being deleted yet."""
        uid = objects.uid(owner)
        dependents = self.dependents(uid)
        if not any(ownership.blocks(one, uid) and objects.uid(one) != uid for _, one in dependents):
            await self._let_go(resource, owner, ownership.FOREGROUND)
        for kind, dependent in dependents:
            if not objects.deleting(dependent):
                self.queue.add((kind, *objects.key(dependent)))

    async def _let_go(self, resource: Resource, owner: Obj, finalizer: str) -> None:
        try:
            await drop_finalizer(self.client, resource, owner, finalizer)
        except NotFound:
            pass

    async def _patch(self, resource: Resource, obj: Obj, patch: Obj) -> None:
        try:
            await self.client.patch(resource, objects.name(obj), patch, objects.namespace(obj), "merge")
        except NotFound:
            pass
