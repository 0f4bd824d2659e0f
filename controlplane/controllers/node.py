"""Nodes: notice the silent ones, taint them, move their pods away, and give each its pod addresses.

Runs `health`'s verdicts. Promises that a node is judged by how long *we* have not heard of it, so that neither a wrong
clock nor a restart of ours drives pods away; and that no two nodes get the same podCIDR. Costs one timer per node.
Called by `__main__`. Upstream: pkg/controller/nodelifecycle, tainteviction and nodeipam.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from controlplane.controllers import health
from controlplane.controllers.runtime import NODES, PODS, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import Conflict, NotFound
from controlplane.machinery.resources import named

LEASES = named("leases.coordination.k8s.io")
LEASE_NAMESPACE = "kube-node-lease"
NODE_PREFIX = 24  # length of a node's podCIDR: 254 pods

Obj = dict[str, Any]


def by_node(pod: Obj) -> list[str]:
    return [objects.get(pod, "spec.nodeName", "")]


def forget_lease_metadata(lease: Obj) -> None:
    lease["metadata"].pop("labels", None)


class NodeLifecycle(Controller):
    """Keys are node names."""

    name = "node-controller"

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer(NODES)
        self.leases = context.informers.of(LEASES)
        self.pods = context.informer(PODS, node=by_node)
        super().__init__(context, self.nodes, self.leases, self.pods)
        self._heard: dict[str, float] = {}  # node -> our monotonic time when it last gave a sign of life
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
        if (taints := health.taints(node, stamp)) is not None:
            await self.client.patch(NODES, name, {"metadata": {"resourceVersion": objects.revision(node)},
                                                  "spec": {"taints": taints or None}}, kind="merge")
        return left if left > 0 else None  # a silent node's next sign of life wakes its key

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


class TaintEviction(Controller):
    """Keys are (namespace, pod)."""

    name = "taint-eviction-controller"

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer(NODES)
        self.pods = context.informer(PODS, node=by_node)
        super().__init__(context, self.nodes, self.pods)
        self.nodes.subscribe(self._node_changed)
        self.pods.subscribe(self._pod_changed)

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        before = objects.get(old or {}, "spec.taints", [])
        if kind != "DELETED" and objects.get(new, "spec.taints", []) != before:
            for pod in self.pods.by("node", objects.name(new)):
                self.queue.add(objects.key(pod))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        def seen(pod: Obj) -> tuple[Any, Any]:
            return objects.get(pod, "spec.nodeName"), objects.get(pod, "spec.tolerations")
        node = self.nodes.get("", objects.get(new, "spec.nodeName", ""))
        if kind != "DELETED" and node is not None and objects.get(node, "spec.taints") and \
                (old is None or seen(old) != seen(new)):
            self.queue.add(objects.key(new))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        pod = self.pods.get(*key)
        if pod is None or objects.deleting(pod) or objects.get(pod, "status.phase") in ("Succeeded", "Failed"):
            return None
        node = self.nodes.get("", objects.get(pod, "spec.nodeName", ""))
        now = self.clock.now()
        when = health.evict_at(pod, node, now) if node is not None else None
        if when is None:
            return None
        if when > now:
            return when - now
        self.recorder.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {key[0]}/{key[1]}")
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                     "message": "Taint manager: deleting due to NoExecute taint",
                     "lastTransitionTime": self.clock.timestamp()}
        try:
            await self.client.patch(PODS, key[1], {"metadata": {"uid": objects.uid(pod)},
                                                   "status": {"conditions": [condition]}},
                                    key[0], subresource="status")
            await self.client.delete(PODS, key[1], key[0], uid=objects.uid(pod))
        except NotFound:
            pass
        return None


class PodCidrs(Controller):
    """Gives each node a block of `cluster`, once and for all. Keys are node names; one worker, so no block twice."""

    name = "cidr-allocator"
    workers = 1

    def __init__(self, context: Context, cluster: str) -> None:
        self.nodes = context.informer(NODES)
        super().__init__(context, self.nodes)
        self.cluster = ipaddress.ip_network(cluster)
        self._given: dict[str, str] = {}  # what we wrote and may not have seen yet
        self.nodes.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self._given.pop(objects.name(new), None)
            if old is not None:
                for node in self.nodes.items():  # its block may be what another waits for
                    if not objects.get(node, "spec.podCIDR"):
                        self.queue.add(objects.name(node))
        elif not objects.get(new, "spec.podCIDR"):
            self.queue.add(objects.name(new))

    async def reconcile(self, name: str) -> float | None:
        node = self.nodes.get("", name)
        if node is None or objects.deleting(node) or objects.get(node, "spec.podCIDR") or name in self._given:
            return None
        taken = {cidr for one in self.nodes.items() for cidr in objects.get(one, "spec.podCIDRs") or
                 [objects.get(one, "spec.podCIDR", "")]} | set(self._given.values())
        block = free_block(self.cluster, taken)
        if block is None:
            self.recorder.event(node, "Normal", "CIDRNotAvailable", f"Node {name} status is now: CIDRNotAvailable")
            return None
        patch = {"metadata": {"uid": objects.uid(node)}, "spec": {"podCIDR": block, "podCIDRs": [block]}}
        self._given[name] = block  # before the write: whether an unanswered one took place is unknown
        try:
            await self.client.patch(NODES, name, patch)
        except Exception:
            del self._given[name]
            raise
        return None


def free_block(cluster: Any, taken: set[str]) -> str | None:
    """The first block of the cluster's range that overlaps none of `taken` (texts; empty ones are ignored)."""
    used = [ipaddress.ip_network(text, strict=False) for text in taken if text]
    length = max(cluster.prefixlen, NODE_PREFIX if cluster.version == 4 else 64)
    exact = {network for network in used if network.prefixlen == length}
    odd = [network for network in used if network.prefixlen != length and network.version == cluster.version]
    for block in cluster.subnets(new_prefix=length):
        if block not in exact and not any(block.overlaps(network) for network in odd):
            return str(block)
    return None
