"""ResourceQuota: a create that would use more than a namespace may is refused, however many come at once.

Owns the reservation: what a request will use is added to `status.used` of every quota it falls under, in one write per
quota, before the object itself is stored. Requests of one namespace are reserved together, one round after the other,
so that concurrent creates cannot overshoot and a burst costs few writes. A reservation whose object is then not stored
is given back by the controller's next count. A dry run checks and reserves nothing. Last in the validating pass.

Upstream: k8s.io/apiserver/pkg/admission/plugin/resourcequota.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.index import Index
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.writing.writes import settled
from controlplane.machinery import objects, podresources, usage
from controlplane.machinery.errors import ApiError, Conflict
from controlplane.machinery.podresources import Amounts, added
from controlplane.store.item import Item
from controlplane.store.log import Stale

RETRIES = 3  # of one round that lost a race against the controller's count; upstream's number
_UPDATES = ("services", "persistentvolumeclaims")  # whose use an update may change; a Pod's only by its resize


@dataclass(eq=False)
class Waiting:
    """One request: what it would use, and how that ended."""

    attributes: Attributes
    used: Amounts
    done: bool = False
    refusal: Exception | None = None


@dataclass(eq=False)
class Queue:
    """The requests of one namespace."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: list[Waiting] = field(default_factory=list)


class ResourceQuotas(Plugin):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._quotas: Index[Item] = Index(context.cache, "resourcequotas", lambda item: item)
        self._queues: defaultdict[str, Queue] = defaultdict(Queue)

    async def validate(self, attributes: Attributes) -> None:
        if not attributes.namespace or attributes.obj is None or not self._quotas.of(attributes.namespace):
            return
        used = self._charge(attributes)
        if not used:
            return
        one, space = Waiting(attributes, used), attributes.namespace
        queue = self._queues[space]
        queue.waiting.append(one)
        try:
            async with queue.lock:  # whoever gets it does the work of all who wait
                if not one.done:
                    batch, queue.waiting = queue.waiting, []
                    await self._round(space, batch)
        finally:
            if one in queue.waiting:
                queue.waiting.remove(one)
            if not queue.waiting and not queue.lock.locked():
                self._queues.pop(space, None)
        if one.refusal is not None:
            raise one.refusal

    def _charge(self, attributes: Attributes) -> Amounts:
        """What the request uses more than before."""
        resource, now = attributes.resource, self.context.clock.now()
        if attributes.operation == CREATE and not attributes.subresource:
            if self.context.cache.get(object_key(resource, attributes.namespace, attributes.name)) is not None:
                return {}  # the write will be refused: nothing to reserve
            return usage.of(resource.name, attributes.obj or {}, now)
        if attributes.operation != UPDATE or attributes.old is None:
            return {}
        if (resource.name in _UPDATES and not attributes.subresource) or attributes.concerns(
                "pods", UPDATE, subresource="resize"):
            new, old = (usage.of(resource.name, obj, now) for obj in (attributes.obj or {}, attributes.old))
            return usage.difference(new, old)
        return {}

    async def _round(self, namespace: str, batch: list[Waiting]) -> None:
        """Decide all of `batch`; none is left undecided, for a write is waited for even by who is cancelled."""
        left = batch
        try:
            for _ in range(RETRIES):
                left = await self._try(namespace, left)
                if not left:
                    return
            for one in left:
                resource = one.attributes.resource
                one.refusal = Conflict.of("resourcequotas", "", "", "the quota was changed by others too often; "
                                          f"please try to write {resource.plural} again")
        except Exception as error:  # a store that takes no writes: whoever was not reserved for must not be let in
            for one in left:
                one.refusal = one.refusal or error
        finally:
            for one in batch:
                one.done = True

    async def _try(self, namespace: str, batch: list[Waiting]) -> list[Waiting]:
        """Reserve for all of `batch` that fit; those to try again, because a quota changed meanwhile."""
        quotas = self._quotas.of(namespace)
        used = {item.key: podresources.parsed((item.obj.get("status") or {}).get("used")) for item in quotas}
        before = dict(used)
        fitting: dict[str, list[Waiting]] = {item.key: [] for item in quotas}
        for one in batch:
            try:
                charges = charged(one, quotas, used)
            except ApiError as error:
                one.refusal = error
                continue
            if not one.attributes.dry_run:
                for key, delta in charges.items():
                    used[key] = added(used[key], delta)
                    fitting[key].append(one)
        again: dict[int, Waiting] = {}
        for item in quotas:
            if used[item.key] != before[item.key] and not await self._store(item, used[item.key]):
                again.update((id(one), one) for one in fitting[item.key])
        return list(again.values())

    async def _store(self, item: Item, used: Amounts) -> bool:
        """Write what is used; False when the quota is another by now."""
        quota = objects.deep_copy(item.obj)
        quota["status"]["used"] = {name: str(value) for name, value in used.items()}
        try:
            await settled(self.context.cache.write(item.key, quota, item.revision))
        except Stale:
            return False
        return True


def charged(one: Waiting, quotas: tuple[Item, ...], used: dict[str, Amounts]) -> dict[str, Amounts]:
    """What the request adds to each quota it falls under, by the quota's key. Raises Forbidden. Pure."""
    attributes, charges = one.attributes, {}
    resource, obj = attributes.resource.name, attributes.obj or {}
    for item in quotas:
        quota = item.obj
        name, hard = quota["metadata"]["name"], podresources.parsed((quota.get("status") or {}).get("hard"))
        tracked = [n for n in hard if usage.resource_of(n, lambda counted: counted == resource) == resource]
        if not tracked or not usage.in_scope(quota, resource, obj):
            continue
        if resource == "pods" and (complaint := usage.unstated(obj, tracked)):
            raise attributes.forbidden(f"failed quota: {name}: {complaint}")
        if unknown := sorted(n for n in tracked if n not in used[item.key]):
            raise attributes.forbidden(f"status unknown for quota: {name}, resources: {','.join(unknown)}")
        delta = {n: value for n, value in one.used.items() if n in tracked and value}
        if complaint := usage.exceeded(name, delta, used[item.key], hard):
            raise attributes.forbidden(complaint)
        if delta:
            charges[item.key] = delta
    return charges
