"""ServiceCIDRs: further ranges of cluster IPs, given to the allocator the moment they exist.

Owns the condition `Ready` of each and the allocator's list of ranges. A range that is deleted gives out nothing more;
Services that hold an address of it keep it. A range of a family the cluster does not have is told to be of no use. Run
by the server as a chore; idle while no ServiceCIDR changes.

Upstream: k8s.io/kubernetes/pkg/controller/servicecidrs, pkg/registry/core/service/ipallocator/cidrallocator.go.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.following import follow
from controlplane.apiserver.reading.lists import collection_prefix
from controlplane.apiserver.services.allocator import Allocator
from controlplane.machinery import objects
from controlplane.machinery.resources import named
from controlplane.store.item import Item
from controlplane.store.log import Stale

Object = dict[str, Any]


def spans(ranges: list[Object], family: str = "IPv4") -> tuple[tuple[int, int], ...]:
    """First and last usable address of every range of a family that is not on its way out. Pure."""
    networks = [ipaddress.ip_network(text, strict=False) for obj in ranges if not obj["metadata"].get(
        "deletionTimestamp") for text in (obj.get("spec") or {}).get("cidrs") or ()]
    return tuple(sorted({(int(n.network_address) + 1, max(int(n.broadcast_address) - 1, int(n.network_address) + 1))
                         for n in networks if f"IPv{n.version}" == family and n.num_addresses > 2}))


class Ranges:
    """Keeps the allocator's ranges, and says in each ServiceCIDR that it is in use."""

    def __init__(self, context: Context, allocator: Allocator) -> None:
        self._context, self._allocator = context, allocator
        self._prefix = collection_prefix(named("servicecidrs.networking.k8s.io"), "")

    def load(self) -> None:
        """Hand the stored ranges to the allocator, and every later change as it happens."""
        self._hand_over()
        self._context.cache.observe(self._prefix, lambda _: self._hand_over())

    def _hand_over(self) -> None:
        ranges = [item.obj for item in self._context.cache.list(self._prefix)]
        for family, pool in self._allocator.pools.items():
            pool.more = tuple(span for span in spans(ranges, family) if span[0] != pool.first)

    async def run(self) -> None:
        """Tell of each range whether it is in use. Ends by cancellation, or Closed when the cache closes."""
        await follow(self._context.cache, self._prefix, self._tell)

    async def _tell(self, item: Item) -> None:
        obj = objects.deep_copy(item.obj)
        usable = any(spans([obj], family) for family in self._allocator.pools)
        conditions = obj.setdefault("status", {}).setdefault("conditions", [])
        state = ("True", "", "Kubernetes Service CIDR is ready") if usable else (
            "False", "NoSuchFamily", f"Services have {' and '.join(self._allocator.pools)} addresses only, and "
            "this has none to give")
        if obj["metadata"].get("deletionTimestamp") or not objects.set_condition(
                conditions, "Ready", *state, self._context.clock.timestamp()):
            return
        for condition in conditions:
            condition.setdefault("reason", "")  # such a condition always carries one
        try:
            await self._context.cache.write(item.key, obj, item.revision)
        except Stale:
            await asyncio.sleep(0)  # whoever wrote it made the next event
