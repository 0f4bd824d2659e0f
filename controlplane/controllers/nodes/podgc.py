"""Pods nobody else can end: those of vanished nodes and of nodes declared out of service, and finished ones in excess.

Promises that a pod of a missing node is given up only after the node was missing for `QUARANTINE_SECONDS` and the
server confirms it, that a node's own word (it is ready) goes before a taint somebody forgot, and that at most
`TERMINATED_LIMIT` finished pods are kept, the oldest going first.

Upstream: pkg/controller/podgc.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.nodes.lifecycle import by_node
from controlplane.controllers.runtime import NODES, PODS, Context, Controller, delete_quietly
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.podfacts import finished

QUARANTINE_SECONDS = 40.0  # a node that is registered anew within this time keeps its pods
TERMINATED_LIMIT = 12500  # finished pods kept for people to look at: upstream's default
TERMINATED = "terminated"  # the queue's key for the excess of finished pods
GONE, OUT = "node/", "out/"  # and the prefixes of the keys for vanished nodes and those out of service
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"

Obj = dict[str, Any]


def out_of_service(node: Obj | None) -> bool:
    return node is not None and not objects.holds(node, "Ready") and any(
        taint.get("key") == OUT_OF_SERVICE for taint in objects.get(node, "spec.taints", []))


def by_finished(pod: Obj) -> list[str]:
    return [TERMINATED] if finished(pod) else []


class PodCollector(Controller):
    name = "pod-garbage-collector"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer(NODES)
        self.pods = context.informer(PODS, node=by_node, finished=by_finished)
        super().__init__(context, self.nodes, self.pods)

    async def run(self) -> None:
        """Subscribes only when the nodes are known: until then every node looks vanished."""
        await self.nodes.synced()
        self.pods.subscribe(self._pod_changed)
        self.nodes.subscribe(self._node_changed)
        await super().run()

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED" and self.pods.by("node", objects.name(new)):
            self.queue.add_after(GONE + objects.name(new), QUARANTINE_SECONDS)
        elif kind != "DELETED" and out_of_service(new):
            self.queue.add(OUT + objects.name(new))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            return
        node = objects.get(new, "spec.nodeName", "")
        if node and self.nodes.get("", node) is None:
            self.queue.add_after(GONE + node, QUARANTINE_SECONDS)
        elif not node and objects.deleting(new):
            self.queue.add(objects.key(new))
        elif objects.deleting(new) and out_of_service(self.nodes.get("", node)):
            self.queue.add(OUT + node)
        if finished(new) and (old is None or not finished(old)):
            self.queue.add(TERMINATED)

    async def reconcile(self, key: Any) -> float | None:
        if key == TERMINATED:
            for pod in surplus(self.pods.by("finished", TERMINATED), TERMINATED_LIMIT):
                await delete_quietly(self.client, PODS, pod, grace=0)
        elif isinstance(key, tuple):
            unbound = self.pods.get(*key)
            if unbound is not None and objects.deleting(unbound) and not objects.get(unbound, "spec.nodeName"):
                await delete_quietly(self.client, PODS, unbound, grace=0)
        elif key.startswith(OUT):
            node = key.removeprefix(OUT)
            if out_of_service(self.nodes.get("", node)):
                for pod in self.pods.by("node", node):
                    if objects.deleting(pod):
                        await self._end(pod, "PodGC: node is out of service")
        else:
            await self._give_up(key.removeprefix(GONE))
        return None

    async def _give_up(self, node: str) -> None:
        try:
            await self.client.get(NODES, node)
            return
        except NotFound:
            pass
        for pod in self.pods.by("node", node):
            await self._end(pod, "PodGC: node no longer exists")

    async def _end(self, pod: Obj, why: str) -> None:
        """Count the pod as failed and delete it without waiting for its node."""
        if not finished(pod):
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": why,
                         "lastTransitionTime": self.clock.timestamp()}
            patch = {"metadata": {"uid": objects.uid(pod)}, "status": {"phase": "Failed", "conditions": [condition]}}
            try:
                await self.client.patch(PODS, objects.name(pod), patch, objects.namespace(pod), subresource="status")
            except NotFound:
                return
        await delete_quietly(self.client, PODS, pod, grace=0)


def surplus(pods: list[Obj], limit: int) -> list[Obj]:
    """The oldest of `pods` beyond `limit`."""
    over = len(pods) - limit
    if over <= 0:
        return []
    return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", objects.name(pod)))[:over]
