"""The IPAddress objects that mirror the cluster IPs of Services.

Owns every IPAddress labelled as managed by the allocator: one for each address a Service holds, none beside. Services
are the truth, the objects follow them within moments, for people and tools that look addresses up; one that somebody
deletes, changes or makes under our label is put right. An address for which somebody else made an IPAddress is given to
no Service. `wanted` is pure. Run by the server as a chore; idle while neither changes.

Upstream: k8s.io/kubernetes/pkg/registry/core/service/ipallocator and its repair loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.reading.lists import collection_prefix, object_key
from controlplane.apiserver.services.allocator import Allocator
from controlplane.apiserver.services.servicefamilies import family_of
from controlplane.machinery.resources import named
from controlplane.store.item import Event
from controlplane.store.log import Stale
from controlplane.store.watch import Lagged, Watch

LOG = logging.getLogger("apiserver")
MANAGER, MANAGED_BY = "ipallocator.k8s.io", "ipaddress.kubernetes.io/managed-by"
ATTEMPTS = 5  # to write one object that somebody else writes too; the next change tries again
Object = dict[str, Any]


def held(service: Object) -> set[str]:
    """The cluster IPs of a Service in canonical form, by which their objects are named. Pure."""
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return set()
    found = {spec.get("clusterIP") or "", *(spec.get("clusterIPs") or ())}
    return {str(ipaddress.ip_address(ip)) for ip in found if ip and ip != "None"}


def wanted(ip: str, service: Object) -> Object:
    """The mirror of one address, without identity. Pure."""
    meta = service["metadata"]
    labels = {"ipaddress.kubernetes.io/ip-family": family_of(ip), MANAGED_BY: MANAGER}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": ip, "labels": labels},
            "spec": {"parentRef": {"resource": "services", "namespace": meta["namespace"], "name": meta["name"]}}}


class Mirror:
    """Keeps the objects equal to what Services hold."""

    def __init__(self, context: Context, allocator: Allocator) -> None:
        self._context, self._allocator = context, allocator
        self._addresses, self._services = named("ipaddresses.networking.k8s.io"), named("services")

    def load(self) -> None:
        """Tell the allocator which addresses are somebody else's, and of every later one as it comes."""
        prefix = collection_prefix(self._addresses, "")
        for item in self._context.cache.list(prefix):
            self._mark(Event("ADDED", item, None))
        self._context.cache.observe(prefix, self._mark)

    def _mark(self, event: Event) -> None:
        ours = event.kind == "DELETED" or event.item.labels.get(MANAGED_BY) == MANAGER
        self._allocator.mark(event.item.key.rpartition("/")[2], not ours)

    async def run(self) -> None:
        """Mirror everything, then every change. Ends by cancellation, or Closed when the cache closes."""
        cache = self._context.cache
        while True:
            with (cache.watch(collection_prefix(self._services, ""), None) as services,
                  cache.watch(collection_prefix(self._addresses, ""), None) as addresses):
                await self.all()
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._follow(services, self._service_changed), name="services' addresses")
                        group.create_task(self._follow(addresses, self._address_changed), name="addresses")
                except* Lagged:
                    LOG.warning("Services change faster than their addresses can be mirrored; looking at all of them")

    @staticmethod
    async def _follow(watch: Watch, look: Callable[[Event], Awaitable[None]]) -> None:
        while True:
            for event in await watch.take():
                await look(event)

    async def _service_changed(self, event: Event) -> None:
        now = set() if event.kind == "DELETED" else held(event.item.obj)
        before = held(event.previous.obj) if event.previous is not None else set()
        for ip in now | before | held(event.item.obj):
            await self._one(ip, event.item.obj if ip in now else None, event.item.obj)

    async def _address_changed(self, event: Event) -> None:
        """Somebody, ourselves most often, wrote an IPAddress: it stays as its Service wants it."""
        ip = event.item.key.rpartition("/")[2]
        parent = (event.item.obj.get("spec") or {}).get("parentRef") or {}
        service = None
        if parent.get("resource") == "services" and not parent.get("group"):
            key = object_key(self._services, parent.get("namespace") or "", parent.get("name") or "")
            found = self._context.cache.get(key)
            service = found.obj if found is not None and ip in held(found.obj) else None
        if service is not None:
            await self._one(ip, service)
        elif event.kind != "DELETED" and event.item.labels.get(MANAGED_BY) == MANAGER:
            await self._one(ip, None, {"metadata": {"namespace": parent.get("namespace"), "name": parent.get("name")}})

    async def all(self) -> None:
        """Make every mirror right."""
        cache = self._context.cache
        owners = {ip: item.obj for item in cache.list(collection_prefix(self._services, "")) for ip in held(item.obj)}
        known = {item.key.rpartition("/")[2] for item in cache.list(collection_prefix(self._addresses, ""))
                 if item.labels.get(MANAGED_BY) == MANAGER}
        for ip in sorted(known - set(owners)):
            await self._one(ip, None)
        for ip, service in owners.items():
            await self._one(ip, service)

    async def _one(self, ip: str, service: Object | None, gone: Object | None = None) -> None:
        """Make the mirror of one address right: of `service`, or none; never one that stands for another Service."""
        cache, clock = self._context.cache, self._context.clock
        key = object_key(self._addresses, "", ip)
        for _ in range(ATTEMPTS):
            item = cache.get(key)
            try:
                if service is None:
                    if item is None or (gone is not None and not self._of(item.obj, gone)):
                        return
                    await cache.write(key, None, item.revision)
                    return
                right = wanted(ip, service)
                if item is not None and item.obj.get("spec") == right["spec"] and (
                        right["metadata"]["labels"].items() <= item.labels.items()):
                    return
                right["metadata"] |= {"uid": clock.uid(), "creationTimestamp": clock.timestamp()}
                await cache.write(key, right, 0 if item is None else item.revision)
                return
            except Stale:
                await asyncio.sleep(0)

    @staticmethod
    def _of(address: Object, service: Object) -> bool:
        parent = (address.get("spec") or {}).get("parentRef") or {}
        return (parent.get("namespace"), parent.get("name")) == (service["metadata"]["namespace"],
                                                                 service["metadata"]["name"])
