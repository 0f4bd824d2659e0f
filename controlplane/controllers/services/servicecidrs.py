"""ServiceCIDRs that are being deleted, held until no Service has an address of theirs.

Owns the finalizer of each and the condition that says what it waits for; that a range is in use is told by the API
server, which gives out its addresses. Called by `manager`. Upstream: pkg/controller/servicecidrs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from controlplane.controllers.runtime import Context, Controller, drop_finalizer, set_status
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import named

FINALIZER = "networking.k8s.io/service-cidr-finalizer"
STILL_USED = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"

Obj = dict[str, Any]


def networks(one: Obj) -> list[Any]:
    return [ipaddress.ip_network(text, strict=False) for text in objects.get(one, "spec.cidrs", [])]


def needed(one: Obj, others: Iterable[Obj], addresses: Iterable[str]) -> bool:
    """Whether some address is in this range and in none of the others that stay."""
    rest = [network for other in others if not objects.deleting(other) and objects.name(other) != objects.name(one)
            for network in networks(other)]
    mine = networks(one)
    return any(any(ip in network for network in mine) and not any(ip in network for network in rest)
               for ip in map(ipaddress.ip_address, addresses))


class ServiceCidrs(Controller):
    """Keys are names."""

    name = "service-cidr-controller"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.ranges = context.informer(named("servicecidrs.networking.k8s.io"))
        self.addresses = context.informer(named("ipaddresses.networking.k8s.io"))
        super().__init__(context, self.ranges, self.addresses)
        self.ranges.subscribe(self._range_changed)
        self.addresses.subscribe(self._address_changed)

    def _range_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED":
            self.queue.add(objects.name(new))
        if kind == "ADDED":
            self._wake()  # it may take over what a leaving one waits for

    def _address_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self._wake()

    def _wake(self) -> None:
        for one in self.ranges.items():
            if objects.deleting(one):
                self.queue.add(objects.name(one))

    async def reconcile(self, name: str) -> float | None:
        one = self.ranges.get("", name)
        if one is None:
            return None
        held = one["metadata"].get("finalizers") or []
        try:
            if FINALIZER in held:
                await self._release(one)
            elif not objects.deleting(one):
                await self._hold(one, held)
        except NotFound:
            pass
        return None

    async def _hold(self, one: Obj, held: list[str]) -> None:
        await self.client.patch(self.ranges.resource, objects.name(one), {"metadata": {
            "uid": objects.uid(one), "resourceVersion": objects.revision(one), "finalizers": [*held, FINALIZER]}},
            kind="merge")

    async def _release(self, one: Obj) -> None:
        """Let go of a leaving one that is not needed; else say what it waits for."""
        if not objects.deleting(one):
            return
        if not needed(one, self.ranges.items(), map(objects.name, self.addresses.items())):
            await drop_finalizer(self.client, self.ranges.resource, one, FINALIZER)
            return
        status = objects.deep_copy(one.get("status") or {})
        if objects.set_condition(status.setdefault("conditions", []), "Ready", "False", "Terminating", STILL_USED,
                                 self.clock.timestamp()):
            await set_status(self.client, self.ranges.resource, one, status)
