"""Routes to nodes' pods in a cloud that routes by itself.

Owns the cloud's routes of this cluster and the condition `NetworkUnavailable` of nodes, which says whether the node's
are made. Runs only with a provider that has routes; everywhere else nodes find their own way (`netsetup.routes`).
Called by `manager`.

Upstream: k8s.io/cloud-provider/controllers/route.
"""

from __future__ import annotations

from typing import Any

from controlplane.cloud import machines
from controlplane.cloud.provider import Route, Routes
from controlplane.controllers.runtime import NODES, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import Finding, NotFound

AGAIN = 10.0  # seconds until a cloud that refused is asked again: upstream's period of all reconciliations
KEY = "routes"
CONDITION = "NetworkUnavailable"
Obj = dict[str, Any]


class CloudRoutes(Controller):
    """One key: routes are reconciled all at once, for the cloud lists them so."""

    name = "route-controller"
    workers = 1

    def __init__(self, context: Context, routes: Routes) -> None:
        self.nodes = context.informer(NODES)
        super().__init__(context, self.nodes)
        self._routes = routes
        self.nodes.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """A node came or went, or was given its range."""
        if kind == "DELETED" or old is None or old.get("spec") != new.get("spec"):
            self.queue.add(KEY)

    async def reconcile(self, key: str) -> float | None:
        nodes = self.nodes.items()
        failed: dict[str, str] = {}
        try:
            create, delete = machines.difference(nodes, await self._routes.present())
        except (Finding, OSError):
            return AGAIN
        for route in delete:
            failed |= await self._try(self._routes.delete(route), route)
        for route in create:
            failed |= await self._try(self._routes.create(route), route)
        for node in nodes:
            if objects.get(node, "spec.podCIDR"):
                await self._say(node, failed.get(objects.name(node), ""))
        return AGAIN if failed else None

    async def _try(self, work: Any, route: Route) -> dict[str, str]:
        """{} when it was done, else the node and why not."""
        try:
            await work
        except (Finding, OSError) as error:
            return {route.node: str(error)}
        return {}

    async def _say(self, node: Obj, problem: str) -> None:
        name, status = objects.name(node), "True" if problem else "False"
        have = objects.condition(node, CONDITION)
        if have is not None and have.get("status") == status:
            return
        now = self.client.clock.timestamp()
        condition = {"type": CONDITION, "status": status, "reason": "NoRouteCreated" if problem else "RouteCreated",
                     "message": problem or "RouteController created a route", "lastHeartbeatTime": now,
                     "lastTransitionTime": now}
        try:
            await self.client.patch(NODES, name, {"status": {"conditions": [condition]}}, "", "strategic", "status")
        except NotFound:
            pass  # it has gone; the next look deletes its routes
