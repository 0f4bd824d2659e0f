"""An APIService for every group-version this server serves itself, so that clients find all of them in one list.

Owns the APIServices with the label `automanaged`: those of built-in groups are made right at start and made anew when
someone deletes them, those of custom kinds come and go with the kinds. One without that label is its author's, also
when it has the name of a group-version of this server. Each that no other server answers is `Available`, reason
`Local`. Follows the store and the registry; idle while neither changes. Run by the aggregator.

Upstream: k8s.io/kube-aggregator/pkg/controllers/autoregister, pkg/controlplane/controller/crdregistration.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.aggregation.availability import LOCAL
from controlplane.apiserver.aggregation.remotes import PREFIX, RESOURCE
from controlplane.apiserver.writing import objectmeta
from controlplane.machinery import apiservices, objects
from controlplane.machinery.errors import Finding
from controlplane.store.cache import key_of
from controlplane.store.log import Stale

if TYPE_CHECKING:
    from controlplane.apiserver.context import Context
    from controlplane.machinery.resources import Registry
    from controlplane.store.item import Event, Item

LOG = logging.getLogger("apiserver")
RETRY_SECONDS = 5.0  # after the store refused a write, which it does when the disk is full
OWN_LABELS = (apiservices.ON_START, apiservices.ALWAYS)
UNLISTED = "metrics.k8s.io"  # served here until an APIService says who else serves it
Object = dict[str, Any]


def wanted(registry: Registry) -> dict[str, Object]:
    """By name: the APIServices of everything a registry serves. Pure."""
    custom: dict[tuple[str, str], bool] = {}
    for resource in registry:
        if resource.group != UNLISTED:
            key = resource.group, resource.version
            custom[key] = custom.get(key, True) and resource.custom
    return {apiservices.name_of(g, v): apiservices.local(g, v, only) for (g, v), only in custom.items()}


def settled(stored: Object | None, right: Object | None, anew: bool, now: str) -> Object | None:
    """What shall be stored of one name, `stored` itself when it is right, None when it shall go. `anew` makes what
    somebody changed right again. Pure."""
    if stored is None:
        made = objects.deep_copy(right) if right is not None else None
    else:
        mark = (stored["metadata"].get("labels") or {}).get(apiservices.MANAGED)
        if right is None and mark in OWN_LABELS:
            return None
        made = objects.deep_copy(stored)
        if right is not None and mark in OWN_LABELS and anew:
            made["spec"] = objects.deep_copy(right["spec"])
            made["metadata"]["labels"] = {**made["metadata"]["labels"], **right["metadata"]["labels"]}
    if made is not None and not apiservices.remote(made):
        conditions = made.setdefault("status", {}).setdefault("conditions", [])
        objects.set_condition(conditions, apiservices.AVAILABLE, "True", LOCAL.reason, LOCAL.message, now)
    return made


class Local:
    """`await settle()` once at start, then `run()`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changed = asyncio.Event()

    async def settle(self) -> None:
        """Make all of them right."""
        self._context.registry.on_change.append(self._changed.set)
        self._context.cache.observe(PREFIX, self._event)
        await self._all(anew=True)

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._all(anew=False)

    def _event(self, _: Event) -> None:
        self._changed.set()

    async def _all(self, anew: bool) -> None:
        right = wanted(self._context.registry)
        stored: dict[str, Item] = {i.obj["metadata"]["name"]: i for i in self._context.cache.list(PREFIX)}
        for name in [*right, *(name for name in stored if name not in right)]:
            while True:
                try:
                    await self._one(name, right.get(name), anew)
                    break
                except Stale:
                    continue
                except Finding as finding:
                    LOG.error("the APIService %s cannot be stored: %s", name, finding.fact)
                    await self._context.clock.sleep(RETRY_SECONDS)

    async def _one(self, name: str, right: Object | None, anew: bool) -> None:
        cache, clock = self._context.cache, self._context.clock
        key = key_of(RESOURCE.name, "", name)
        item = cache.get(key)
        made = settled(item.obj if item is not None else None, right, anew, clock.timestamp())
        if item is None and made is not None:
            objectmeta.found(RESOURCE, made, clock.uid(), clock.timestamp())
        if item is not None and made is not None and item.obj["metadata"].get("deletionTimestamp"):
            return
        if item is not None or made is not None:
            await cache.write(key, made, item.revision if item is not None else 0)
