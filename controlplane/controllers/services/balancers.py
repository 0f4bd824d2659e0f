"""Services of type LoadBalancer get their addresses, where the cluster has pools of them.

Owns `status.loadBalancer` of the Services that the provider handles, and the annotation by which nodes know that an
address is theirs to announce. The pools are the ConfigMap `kube-system/load-balancer-pools`; while there is none, no
Service is touched: a cloud-controller-manager may do this work. What a pool cannot be, and a Service that gets nothing,
are told by events; until a refused pool is mended, every Service keeps the address it has. Called by `manager`.

Upstream: k8s.io/cloud-provider/controllers/service.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import Any

from controlplane.client.informer import Informer
from controlplane.cloud import lab, provider
from controlplane.cloud.lab import Lab
from controlplane.controllers.runtime import NODES, SERVICES, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import Conflict, Finding, NotFound
from controlplane.machinery.resources import named

ANNOUNCED = "pelamis.local/announced"
RANGES = named("servicecidrs.networking.k8s.io")
LOG = logging.getLogger("controllers")
Obj = dict[str, Any]
Key = tuple[str, str]


class Balancers(Controller):
    """Keys are (namespace, name) of Services. One worker: two must not be given the same address."""

    name = "service-lb-controller"
    workers = 1

    def __init__(self, context: Context, cluster_cidr: str, provider: provider.Balancers) -> None:
        self.services, self.nodes = context.informer(SERVICES), context.informer(NODES)
        self.ranges = context.informer(RANGES)
        super().__init__(context, self.services, self.nodes, self.ranges)
        self.pools = Informer(context.client, named("configmaps"), lab.CONFIG[0],
                              fields=f"metadata.name={lab.CONFIG[1]}", clock=context.clock)
        self._cluster_cidr, self._told = cluster_cidr, ""
        self._spans: list[lab.Span] = []
        self.provider = provider
        self.services.subscribe(self._service_changed)
        self.nodes.subscribe(self._node_changed)
        self.pools.subscribe(lambda *_: self._read())

    async def run(self) -> None:
        for informer in self.informers:  # pools are held against what nodes and Services have
            await informer.synced()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pools.run(), name=f"{self.name} pools")
            await self.pools.synced()
            group.create_task(super().run(), name=self.name)

    def _service_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED" or (old and lab.addresses(old) != lab.addresses(new)):
            self._all()  # an address may be free for who waits for one
        if new["spec"].get("type") == "LoadBalancer" or ANNOUNCED in objects.annotations(new):
            self.queue.add(objects.key(new))

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """A node may have come to an address of a pool, or left one."""
        if kind != "DELETED" and old and _taken(old) == _taken(new):
            return
        if self._told or any(ipaddress.ip_address(one) in span for one in _taken(new) for span in self._spans):
            self._read()

    def _all(self) -> None:
        for service in self.services.items():
            if service["spec"].get("type") == "LoadBalancer":
                self.queue.add(objects.key(service))

    def _read(self) -> None:
        """The pools changed: look at every balancer again."""
        config = self.pools.get(*lab.CONFIG)
        used = dict.fromkeys(self._cluster_cidr.split(","), "the pods' range")
        for one in self.ranges.items():
            used |= dict.fromkeys(one["spec"].get("cidrs") or (), "the Services' range")
        for node in self.nodes.items():
            used |= dict.fromkeys(_taken(node), f"node {objects.name(node)}")
        self._spans, problems = lab.read((config or {}).get("data") or {}, used)
        told = "; ".join(str(problem) for problem in problems)
        if config is not None and told and told != self._told:
            LOG.warning("load balancer pools: %s", told)
            self.recorder.event(config, "Warning", "InvalidPool", told)
        self._told = told
        if isinstance(self.provider, Lab):
            self.provider.spans = self._spans
        self._all()

    async def reconcile(self, key: Key) -> float | None:
        service = self.services.get(*key)
        if service is None or objects.deleting(service) or not self.pending.settled(key, self.services):
            return None
        balancer = (service.get("status") or {}).get("loadBalancer") or {}
        have, ours = balancer.get("ingress") or [], ANNOUNCED in objects.annotations(service)
        if have and ours and self._told and service["spec"].get("type") == "LoadBalancer":
            return None
        wanted: list[Obj] = []
        if self.provider.handles(service):
            try:
                wanted = self.provider.ensure(service, [s for s in self.services.items() if s is not service])
            except Finding as problem:
                self.recorder.event(service, "Warning", "SyncLoadBalancerFailed", str(problem))
                if not ours:
                    return None
        elif not ours:
            return None  # somebody else's
        elif service["spec"].get("type") == "LoadBalancer":
            lost = Finding("the load balancer's address is taken back", "there is no pool of addresses any more",
                           f"add addresses to the ConfigMap {'/'.join(lab.CONFIG)}")
            self.recorder.event(service, "Warning", "SyncLoadBalancerFailed", str(lost))
        if have == wanted and ours == bool(wanted):
            return None
        patch = {"metadata": {"annotations": {ANNOUNCED: "true" if wanted else None}},
                 "status": {"loadBalancer": {"ingress": wanted or None}}}
        try:
            self.pending.wrote(key, await self.client.patch(SERVICES, key[1], patch, key[0], "merge", "status"))
        except (NotFound, Conflict):
            return None
        if wanted:
            given = ", ".join(entry["ip"] for entry in wanted)
            self.recorder.event(service, "Normal", "EnsuredLoadBalancer", f"Ensured load balancer: {given}")
        elif service["spec"].get("type") != "LoadBalancer":
            self.recorder.event(service, "Normal", "DeletedLoadBalancer", "Deleted load balancer")
        return None


def _taken(node: Obj) -> list[str]:
    """The addresses a node has."""
    return [a["address"] for a in objects.get(node, "status.addresses", ())
            if a.get("type") in ("InternalIP", "ExternalIP")]
