"""What events mean for the scheduler: the snapshot follows them, and waiting pods they may help are tried again.

Owns the subscriptions and the knowledge of which pods are being bound. A change wakes only pods whom it can help: room
on a node those that now fit that node, pods coming and going those that other pods stood against, volumes those that
wait with claims. Called by `loop`; calls are plain functions on the event loop, nothing blocks.

Upstream: pkg/scheduler/eventhandlers.go and the queueing hints of the plugins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from controlplane.client.informer import Informer
from controlplane.machinery import objects, podfacts
from controlplane.machinery.clock import Clock
from controlplane.scheduler import claims, constraints, extended, fit
from controlplane.scheduler.configuration import NAME
from controlplane.scheduler.decider import Decider
from controlplane.scheduler.fit import Ask
from controlplane.scheduler.queue import Queue, Waiting
from controlplane.scheduler.verdict import Verdict
from controlplane.scheduler.world import World

SOCIAL = frozenset((constraints.SPREAD, constraints.MISSING_LABEL, constraints.AFFINITY, constraints.ANTI_AFFINITY,
                    constraints.EXISTING))
Obj = dict[str, Any]


class Listening:
    def __init__(self, decider: Decider, queue: Queue, clock: Clock, profiles: Collection[str]) -> None:
        self._decider, self._queue, self._clock, self._profiles = decider, queue, clock, profiles
        self.wake = asyncio.Event()
        self.binding: dict[str, str] = {}  # uid -> node, while the API has not confirmed it

    def start(self, pods: Informer, nodes: Informer, world: World) -> None:
        """Follow from now on; what exists is told first, nodes and namespaces before pods."""
        world.on_namespace(self._on_namespace)
        nodes.subscribe(self._on_node)
        pods.subscribe(self._on_pod)
        world.on_storage(self._on_storage)
        world.on_devices(self._on_devices)

    def unbind(self, uid: str, node: str) -> None:
        """A binding failed: the pod does not count on the node."""
        if self.binding.pop(uid, None) == node and self._decider.snapshot.node_of(uid) == node:
            self._decider.forget(uid)
            self._room(node)
        self.wake.set()

    # --- events ------------------------------------------------------------------------------------------------

    def _on_namespace(self, kind: str, old: Obj | None, new: Obj) -> None:
        labels = None if kind == "DELETED" else objects.labels(new)
        if self._decider.snapshot.set_namespace(objects.name(new), labels):
            self._changed(_was_social)

    def _on_node(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self._decider.snapshot.drop_node(objects.name(new))
            self._changed(_was_social)
        elif self._decider.snapshot.set_node(new):
            self._room(objects.name(new))

    def _on_storage(self, kind: str, old: Obj | None, new: Obj) -> None:
        self._changed(lambda waiting: bool(podfacts.claim_names(waiting.pod)))

    def _on_devices(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED" or objects.get(new, "status.allocation", None) is not None:
            self._decider.granted.pop(objects.uid(new), None)  # what is written need not be remembered
            if extended.ours(new):
                self._decider.granted.pop(extended.temporary((objects.controller_of(new) or {}).get("uid", "")), None)
        self._changed(lambda waiting: bool(claims.asked(waiting.pod)) or extended.may(waiting.pod))

    def _on_pod(self, kind: str, old: Obj | None, new: Obj) -> None:
        uid, spec = objects.uid(new), new.get("spec") or {}
        snapshot, node = self._decider.snapshot, spec.get("nodeName") or ""
        if kind == "DELETED" or podfacts.finished(new):
            self._queue.drop(uid)
            self.binding.pop(uid, None)
            left = self._decider.renounce(uid)
            where = snapshot.node_of(uid)
            if where:
                snapshot.remove(uid)
            if where or left:
                self._room(where or left)
        elif node:
            self._queue.drop(uid)
            confirmed = self.binding.pop(uid, None)
            self._decider.renounce(uid)
            shrunk = old is not None and old.get("spec") != spec
            fresh = snapshot.node_of(uid) != node
            snapshot.place(new, node)
            if shrunk:
                self._room(node)
            elif fresh or confirmed is not None:
                self._changed(_was_social)
        elif (spec.get("schedulerName") or NAME) in self._profiles and uid not in self.binding:
            self._wait(new)

    def _wait(self, pod: Obj) -> None:
        uid = objects.uid(pod)
        if (pod.get("spec") or {}).get("schedulingGates") or objects.deleting(pod):
            self._queue.drop(uid)
            self._decider.renounce(uid)
            return
        promised = (pod.get("status") or {}).get("nominatedNodeName")
        if promised and uid not in self._queue:  # promised by somebody before us: we may have been restarted
            self._decider.nominate(pod, promised)
        self._queue.put(pod, self._clock.monotonic())
        self.wake.set()

    # --- whom it helps -----------------------------------------------------------------------------------------

    def _room(self, name: str) -> None:
        """Something about a node became better, or may have."""
        node = self._decider.snapshot.node(name)
        fitting: dict[bytes, bool] = {}

        def helps(waiting: Waiting) -> bool:
            if waiting.verdict is None or node is None:
                return True
            wants: Ask = waiting.verdict[0]
            if wants.kind not in fitting:
                fitting[wants.kind] = fit.refusal(wants, node) is None
            return fitting[wants.kind] or bool(wants.demand.claims) or _was_social(waiting) or _is_promised(waiting)
        self._changed(helps)

    def _changed(self, helps: Any) -> None:
        self._queue.cluster_changed(self._clock.monotonic(), helps)
        self.wake.set()


def _was_social(waiting: Waiting) -> bool:
    """Whether other pods stood against it, or its group is what it waits for."""
    if waiting.verdict is None:
        return True
    found: Verdict = waiting.verdict[1]
    return bool(found.outright) or not SOCIAL.isdisjoint(found.refusals)


def _is_promised(waiting: Waiting) -> bool:
    """A pod that was promised a node looks again at every change there."""
    return bool((waiting.pod.get("status") or {}).get("nominatedNodeName"))
