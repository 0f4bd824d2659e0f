"""Nodes: notice the silent ones and taint them, no faster than their zone allows.

Runs `health`'s verdicts. Promises that a node is judged by how long *we* have not heard of it, so that neither a wrong
clock nor a restart of ours drives pods away, and that pods are left where they are when many nodes fall silent at once
(`zones`). Costs one timer per node. Called by `manager`. Upstream: pkg/controller/nodelifecycle.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.nodes import health, zones
from controlplane.controllers.runtime import NODES, PODS, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.machinery.resources import named

LEASES = named("leases.coordination.k8s.io")
LEASE_NAMESPACE = "kube-node-lease"

Obj = dict[str, Any]


def by_node(pod: Obj) -> list[str]:
    return [objects.get(pod, "spec.nodeName", "")]


class NodeLifecycle(Controller):
    """Keys are node names."""

    name = "node-controller"

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer(NODES)
        self.leases = context.informers.of(LEASES)
        self.pods = context.informer(PODS, node=by_node)
        super().__init__(context, self.nodes, self.leases, self.pods)
        self._heard: dict[str, float] = {}  # node -> our monotonic time when it last gave a sign of life
        self._next: dict[str, float] = {}  # zone -> our monotonic time from which the next node's pods may be moved
        self.nodes.subscribe(self._node_changed)
        self.leases.subscribe(self._lease_changed)

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        name = objects.name(new)
        if kind == "DELETED":
            self._heard.pop(name, None)
            return
        if kind == "ADDED" or (health.ready(new) != "Unknown" and _heartbeat(old) != _heartbeat(new)):
            self._heard[name] = self.clock.monotonic()
        self.queue.add(name)
        if old is not None and (health.ready(old) == "True") != (health.ready(new) == "True"):
            for node in self.nodes.items():  # what may be done to other silent nodes depends on how many there are
                if health.ready(node) != "True":
                    self.queue.add(objects.name(node))

    def _lease_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        name = objects.name(new)
        if objects.namespace(new) != LEASE_NAMESPACE or kind == "DELETED":
            return
        silent = self.clock.monotonic() - self._heard.get(name, 0.0) >= health.GRACE_SECONDS
        self._heard[name] = self.clock.monotonic()
        if silent:
            self.queue.add(name)

    async def reconcile(self, name: str) -> float | None:
        node = self.nodes.get("", name)
        if node is None or objects.deleting(node):
            return None
        stamp = self.clock.timestamp()
        left = self._heard.setdefault(name, self.clock.monotonic()) + health.GRACE_SECONDS - self.clock.monotonic()
        if left <= 0 and (conditions := health.silenced(node, stamp)) is not None:
            node = await self.client.patch(NODES, name, {
                "metadata": {"resourceVersion": objects.revision(node)}, "status": {"conditions": conditions}},
                kind="merge", subresource="status")
            self.recorder.event(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        if health.ready(node) != "True":
            await self._mark_pods(name, stamp)
        execute, wait = self._may_move(node)
        if (taints := health.taints(node, stamp, execute)) is not None:
            try:
                await self.client.patch(NODES, name, {"metadata": {"resourceVersion": objects.revision(node)},
                                                      "spec": {"taints": taints or None}}, kind="merge")
            except ApiError:
                self._next.pop(zones.zone_of(node), None)  # this turn was not taken after all
                raise
        if left > 0:
            return min(left, wait) if wait else left
        return wait  # without one a silent node's next sign of life wakes its key

    def _may_move(self, node: Obj) -> tuple[bool, float | None]:
        """(whether the pods of a node that is not well may be moved away now, seconds until to ask again)."""
        if health.ready(node) == "True":
            return True, None
        found = zones.counts(self.nodes.items())
        if zones.cut_off(found):
            return False, None
        if health.moved(node):
            return True, None
        zone, now = zones.zone_of(node), self.clock.monotonic()
        rate = zones.rate(*found.get(zone, (0, 0)))
        if not rate:
            return False, None
        if (due := self._next.get(zone, 0.0)) > now:
            return False, due - now
        self._next[zone] = now + 1 / rate
        return True, None

    async def _mark_pods(self, name: str, stamp: str) -> None:
        """Take the pods of a node that is not ready out of their Services."""
        for pod in self.pods.by("node", name):
            if (patch := health.unready(pod, stamp)) is not None:
                try:
                    await self.client.patch(PODS, objects.name(pod), patch, objects.namespace(pod),
                                            subresource="status")
                except (NotFound, Conflict):
                    continue
                self.recorder.event(pod, "Warning", "NodeNotReady", "Node is not ready")


def _heartbeat(node: Obj | None) -> Any:
    """What changes when the node writes its status; our own writes make it Unknown."""
    condition = objects.condition(node or {}, "Ready") or {}
    return condition.get("status"), condition.get("lastHeartbeatTime")
