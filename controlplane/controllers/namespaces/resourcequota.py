"""ResourceQuotas: what a namespace may use and uses, recounted.

Owns `status.hard` and `status.used`: a new or changed quota is counted at once, and again when something it counts ends
or is deleted. What is created is counted by the API server itself as it admits it, so creations cost nothing here; a
count every five minutes mends what was reserved for an object that was never stored. Promises that a count never
overwrites a reservation made meanwhile: the write is bound to the version it read. Called by `manager`.

Upstream: pkg/controller/resourcequota.
"""

from __future__ import annotations

from typing import Any

from controlplane.client.discovery import Kinds
from controlplane.client.informer import Informer
from controlplane.controllers.runtime import Context, Controller, by_namespace, set_status
from controlplane.machinery import objects, podresources, usage
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import BUILTIN, Resource, named

RESYNC_SECONDS = 300.0  # between counts of a quota that nothing asked to be counted; upstream's default
FOREIGN_SECONDS = 15.0  # until a status that somebody else wrote is made right: soon, but not under his hands
SETTLE_SECONDS = 0.1  # for what is reserved to be stored and heard of: some ten times what a write takes
QUOTAS = named("resourcequotas")
WEIGHED = ("pods", "services", "persistentvolumeclaims")

Obj = dict[str, Any]


class ResourceQuotas(Controller):
    name = "resourcequota-controller"
    workers = 2

    def __init__(self, context: Context) -> None:
        self.quotas = context.informer(QUOTAS, namespace=by_namespace)
        self.followed: dict[str, Informer] = {}
        # These are counted by what is in them; of all else the number counts, for which metadata will do.
        weighed = {resource: context.informer(resource, namespace=by_namespace) for resource in BUILTIN
                   if resource.name in WEIGHED}
        self.kinds = Kinds(context.informers)
        self.kinds.subscribe(self._kind_changed)
        super().__init__(context, self.quotas, *weighed.values(), self.kinds.informer)
        for resource, informer in weighed.items():
            self._follow(resource, informer)
        self.quotas.subscribe(self._quota_changed)

    def _follow(self, resource: Resource, informer: Informer) -> None:
        self.followed[resource.name] = informer
        informer.subscribe(lambda kind, old, new: self._changed(resource.name, kind, old, new))

    def _kind_changed(self, resource: Resource, served: bool) -> None:
        """A custom kind has come or gone: quotas that count it are counted anew."""
        if not served:
            self.followed.pop(resource.name, None)
        for quota in self.quotas.items():
            if self._counts(quota, resource.name):
                self.queue.add(objects.key(quota))

    def _quota_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and (old is None or old.get("spec") != new.get("spec")):
            self.queue.add(objects.key(new))
        elif kind != "DELETED" and self._told(new, "status.hard") != self._told(new, "spec.hard"):
            self.queue.add_after(objects.key(new), FOREIGN_SECONDS)

    @staticmethod
    def _told(quota: Obj, path: str) -> podresources.Amounts:
        return podresources.parsed(objects.get(quota, path, None))

    def _changed(self, resource: str, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "ADDED" or not len(self.quotas):
            return
        quotas, now = self.quotas.by("namespace", objects.namespace(new)), self.clock.now()
        if not quotas or (old is not None and kind == "MODIFIED" and (
                resource not in WEIGHED
                or usage.of(resource, old, now) == usage.of(resource, new, now))):
            return
        for quota in quotas:
            if self._counts(quota, resource):
                self.queue.add(objects.key(quota))

    @staticmethod
    def _counts(quota: Obj, resource: str) -> bool:
        return any(usage.resource_of(name, lambda counted: counted == resource) == resource
                   for name in objects.get(quota, "spec.hard", None) or {})

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        quota = self.quotas.get(*key)
        if quota is None:
            return None
        hard = objects.get(quota, "spec.hard", None) or {}
        used, known = await self._count(quota, hard), podresources.parsed(objects.get(quota, "status.used", None))
        if any(known[name] > value for name, value in used.items() if name in known):
            # More was reserved than is there: it was deleted, or it is being stored just now. The write below fails if
            # anything is reserved from here on, and what was reserved before is stored by then.
            await self.clock.sleep(SETTLE_SECONDS)
            used = await self._count(quota, hard)
        status = {"hard": dict(hard), "used": {name: str(value) for name, value in used.items()}}
        try:
            await set_status(self.client, QUOTAS, quota, status)  # a conflict is tried again
        except NotFound:
            return None
        return RESYNC_SECONDS

    async def _count(self, quota: Obj, hard: Obj) -> podresources.Amounts:
        counted: dict[str, list[Obj]] = {}
        for resource in {usage.resource_of(name, self._served) for name in hard} - {""}:
            counted[resource] = (await self._informer(resource)).by("namespace", objects.namespace(quota))
        return usage.total(quota, podresources.parsed(hard), counted, self.clock.now())

    async def _informer(self, resource: str) -> Informer:
        """Whoever follows a kind in full, or the collector, by metadata, follows it for us."""
        informer = self.followed.get(resource)
        if informer is None:
            kind = self._kind(resource)
            assert kind is not None  # only what is served is counted
            informer = self.context.informers.of(kind, indexes={"namespace": by_namespace}, metadata=True)
            await informer.synced()
            self._follow(kind, informer)
        return informer

    def _kind(self, name: str) -> Resource | None:
        return next((r for r in (*BUILTIN, *self.kinds.all()) if r.name == name and "list" in r.verbs), None)

    def _served(self, name: str) -> bool:
        """Whether a `count/…` names a kind this cluster serves."""
        return self._kind(name) is not None
