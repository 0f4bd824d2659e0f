"""EndpointSlices and Endpoints: for each Service with a selector, where its pods are.

Runs `slices.plan` and `subsets.desired`. Promises to leave a Service without a selector alone: its endpoints are not
ours. Called by `manager`.

Upstream: pkg/controller/endpointslice and pkg/controller/endpoint.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import (
    NODES,
    PODS,
    SERVICES,
    STALE_SECONDS,
    Context,
    Controller,
    by_namespace,
    create_named,
    delete_quietly,
    picked,
)
from controlplane.controllers.services import backends, slices, subsets, topology
from controlplane.machinery import objects
from controlplane.machinery.errors import AlreadyExists, NotFound
from controlplane.machinery.resources import named

SLICES, ENDPOINTS = named("endpointslices.discovery.k8s.io"), named("endpoints")
Obj = dict[str, Any]
Key = tuple[str, str]


class ServiceController(Controller):
    """Queues each Service that changed or whose pods changed."""

    def __init__(self, context: Context, *output: Any) -> None:
        self.services = context.informer(SERVICES, namespace=by_namespace)
        self.pods = context.informer(PODS, namespace=by_namespace)
        super().__init__(context, self.services, self.pods, *output)
        self.services.subscribe(lambda kind, old, new: self.queue.add(objects.key(new)))
        self.pods.subscribe(self._pod_changed)

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "MODIFIED" and old is not None and not backends.matters(old, new):
            return
        def chosen(service: Obj) -> bool:
            wanted = objects.get(service, "spec.selector", {}).items()
            return backends.selects(service) and any(
                pod is not None and wanted <= objects.labels(pod).items() for pod in (old, new))
        for service in picked(self.services.by("namespace", objects.namespace(new)), chosen):
            self.queue.add(objects.key(service))

    def backends(self, service: Obj) -> list[backends.Backend]:
        found = backends.backends(service, self.pods.by("namespace", objects.namespace(service)))
        return sorted(found, key=lambda one: objects.name(one.pod))


def _zone(node: Obj) -> str:
    return objects.labels(node).get(topology.ZONE, "")


def by_service(one: Obj) -> list[str]:
    """Index of slices: `namespace/name` of their Service."""
    return [f"{objects.namespace(one)}/{objects.labels(one).get(slices.SERVICE_NAME, '')}"]


def owners(manager: str, *states: Obj | None) -> set[Key]:
    """The Services whose slice this is or was, while `manager` keeps or kept it: somebody may have changed labels."""
    return {(objects.namespace(one), objects.labels(one).get(slices.SERVICE_NAME, "")) for one in states
            if one is not None and objects.labels(one).get(slices.MANAGED_BY) == manager}


async def write_slices(controller: Controller, key: Key, plan: slices.Plan) -> None:
    """Carry out the plan for the Service `key`."""
    client, pending = controller.client, controller.pending
    for one in plan.create:
        pending.wrote(key, await create_named(client, SLICES, one, f"{key[1]}-"))
    for one in plan.update:
        pending.wrote(key, await client.update(SLICES, one))
    for one in plan.delete:
        if await delete_quietly(client, SLICES, one):
            pending.deleted(key, one)


class EndpointSlices(ServiceController):
    name = "endpoint-slice-controller"

    def __init__(self, context: Context) -> None:
        self.slices = context.informer(SLICES, service=by_service)
        self.nodes = context.informer(NODES)
        super().__init__(context, self.slices, self.nodes)
        self._shares: topology.Shares | None = None  # None: to be counted when somebody asks
        self.slices.subscribe(self._slice_changed)
        self.nodes.subscribe(self._node_changed)

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """A node's zone is in every endpoint on it, and its CPUs are in every share."""
        moved = (_zone(old) if old is not None else "") != _zone(new)
        counted = [topology.facts(one) if one is not None else None for one in (old, new)]
        if kind == "DELETED" or counted[0] != counted[1]:
            self._shares = None
        elif not moved:
            return
        for service in self.services.items():
            if moved or topology.automatic(service):
                self.queue.add(objects.key(service))

    def _zone(self, node: str) -> str:
        return _zone(self.nodes.get("", node) or {"metadata": {}})

    def _zone_shares(self) -> topology.Shares:
        if self._shares is None:
            self._shares = topology.shares(self.nodes.items())
        return self._shares

    def _slice_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for key in owners(slices.MANAGER, old, new):
            self.queue.add(key)

    async def reconcile(self, key: Key) -> float | None:
        service = self.services.get(*key)
        if service is None or objects.deleting(service) or not backends.selects(service):
            self.pending.forget(key)
            return None  # the slices of a deleted Service go with their owner
        if not self.pending.settled(key, self.slices):
            return STALE_SECONDS
        mine = [one for one in self.slices.by("service", f"{key[0]}/{key[1]}")
                if objects.labels(one).get(slices.MANAGED_BY) == slices.MANAGER and not objects.deleting(one)
                and (objects.controller_of(one) or {}).get("uid") in (None, objects.uid(service))]
        shares = self._zone_shares() if topology.automatic(service) else topology.UNKNOWN
        plan = slices.plan(service, self.backends(service), mine, self._zone, shares)
        for family, why in plan.hints.items():
            kind, reason = ("Normal", "TopologyAwareHintsEnabled") if why == topology.ENABLED else (
                "Warning", "TopologyAwareHintsDisabled")
            self.recorder.event(service, kind, reason, f"{why}, addressType: {family}")
        await write_slices(self, key, plan)
        return None


class Endpoints(ServiceController):
    name = "endpoint-controller"

    def __init__(self, context: Context) -> None:
        self.endpoints = context.informer(ENDPOINTS)
        super().__init__(context, self.endpoints)
        self.endpoints.subscribe(self._endpoints_changed)

    def _endpoints_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        self.queue.add(objects.key(new))

    async def reconcile(self, key: Key) -> float | None:
        service = self.services.get(*key)
        current = self.endpoints.get(*key)
        if service is None:
            if current is not None and objects.labels(current).get(subsets.MANAGED_BY) == subsets.MANAGER:
                await delete_quietly(self.client, ENDPOINTS, current)
            return None
        if objects.deleting(service) or not backends.selects(service):
            return None
        if not self.pending.settled(key, self.endpoints):
            return STALE_SECONDS
        wanted = subsets.desired(service, self.backends(service), current)
        if wanted is current:
            return None
        try:
            write = self.client.create(ENDPOINTS, wanted) if current is None else self.client.update(ENDPOINTS, wanted)
            self.pending.wrote(key, await write)
        except (AlreadyExists, NotFound):
            return STALE_SECONDS
        return None
