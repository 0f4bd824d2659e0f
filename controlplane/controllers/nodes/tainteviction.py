"""Moves pods away from nodes with NoExecute taints they do not tolerate, or not for longer.

Promises that a pod goes only when its time is over, and that one whose node recovers in time is told that it may stay.
Called by `manager`. Upstream: pkg/controller/tainteviction.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.nodes import health
from controlplane.controllers.nodes.lifecycle import by_node
from controlplane.controllers.runtime import NODES, PODS, Context, Controller
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import NotFound

Obj = dict[str, Any]


class TaintEviction(Controller):
    """Keys are (namespace, pod)."""

    name = "taint-eviction-controller"

    def __init__(self, context: Context) -> None:
        self.nodes = context.informer(NODES)
        self.pods = context.informer(PODS, node=by_node)
        super().__init__(context, self.nodes, self.pods)
        self._doomed: dict[tuple[str, str], float] = {}  # pods that go when their time is over -> since when (wall)
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
        if kind == "DELETED":
            self._doomed.pop(objects.key(new), None)
            return
        node = self.nodes.get("", objects.get(new, "spec.nodeName", ""))
        if node is not None and objects.get(node, "spec.taints") and (old is None or seen(old) != seen(new)):
            self.queue.add(objects.key(new))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        pod = self.pods.get(*key)
        if pod is None or not podfacts.active(pod):
            return None
        node = self.nodes.get("", objects.get(pod, "spec.nodeName", ""))
        now = self.clock.now()
        since = self._doomed.get(key, now)  # few taints say when they were added
        when = health.evict_at(pod, node, since) if node is not None else None
        if when is None:
            if self._doomed.pop(key, None) is not None:
                self.recorder.event(pod, "Normal", "TaintManagerEviction",
                                    f"Cancelling deletion of Pod {key[0]}/{key[1]}")
            return None
        if when > now:
            self._doomed[key] = since
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
