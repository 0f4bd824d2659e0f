"""Tells why a pod has no node, and makes others leave for it: the writes around a refusal.

Owns the PodScheduled condition, the FailedScheduling event and a preemption's requests: each victim is marked, deleted
and told; promises to lesser pods are taken back; the pod is nominated. Never decides. A write that fails is left: the
next attempt of the pod does it again. Called by `loop`.

Upstream: pkg/scheduler/schedule_one.go (handleSchedulingFailure) and framework/preemption/executor.go.
"""

from __future__ import annotations

import logging
from typing import Any

from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery import objects, resources
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.scheduler.preemption import Plan

log = logging.getLogger("scheduler")
PODS = resources.named("pods")
MESSAGE_BYTES = 1024  # what an event may hold; the condition follows it
Obj = dict[str, Any]


class Herald:
    def __init__(self, client: Client, pods: Informer, recorder: Recorder, clock: Clock) -> None:
        self._client, self._pods, self._recorder, self._clock = client, pods, recorder, clock

    async def explain(self, pod: Obj, message: str, advice: str, nominated: str | None = None,
                      reason: str = "Unschedulable") -> None:
        """Say it in an event and in the condition; `nominated` also tells the promised node, "" that there is none."""
        text = f"{message} {advice}".rstrip()[:MESSAGE_BYTES]
        self._recorder.event(pod, "Warning", "FailedScheduling", text)
        live = self._pods.get(objects.namespace(pod), objects.name(pod)) or pod
        status: Obj = {}
        old = objects.condition(live, "PodScheduled") or {}
        # The nearest miss moves with every other pod; that alone is no news worth a write.
        if old.get("reason") != reason or old.get("message", "").partition(" Nearest miss")[0] != \
                text.partition(" Nearest miss")[0]:
            since = old.get("lastTransitionTime") if old.get("status") == "False" else None
            condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": text,
                         "lastProbeTime": None, "lastTransitionTime": since or self._clock.timestamp()}
            if generation := live["metadata"].get("generation"):
                condition["observedGeneration"] = generation
            status["conditions"] = [condition]
        if nominated is not None and nominated != ((live.get("status") or {}).get("nominatedNodeName") or ""):
            status["nominatedNodeName"] = nominated or None
        if status:
            await self._patch(pod, status)

    async def _patch(self, pod: Obj, status: Obj) -> None:
        try:
            await self._client.patch(PODS, objects.name(pod), {"metadata": {"uid": objects.uid(pod)}, "status": status},
                                     namespace=objects.namespace(pod), subresource="status")
        except (ApiError, OSError) as error:
            log.debug("the status of %s was not written: %s", objects.name(pod), error)

    async def evict(self, plan: Plan, preemptor: Obj, lesser: list[Obj]) -> None:
        """Make the plan's victims leave; `lesser` are pods whose promise of the node ends."""
        for placed in plan.victims:
            victim = placed.pod
            if not objects.deleting(victim):
                await self._remove(victim, preemptor)
                self._recorder.event(victim, "Normal", "Preempted",
                                     f"Preempted by pod {objects.uid(preemptor)} on node {plan.node}")
        for pod in lesser:
            await self._patch(pod, {"nominatedNodeName": None})

    async def _remove(self, victim: Obj, preemptor: Obj) -> None:
        message = (f"{(preemptor.get('spec') or {}).get('schedulerName', 'default-scheduler')}: "
                   "preempting to accommodate a higher priority pod")
        await self._patch(victim, {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message,
            "lastTransitionTime": self._clock.timestamp()}]})
        try:
            await self._client.delete(PODS, objects.name(victim), objects.namespace(victim), uid=objects.uid(victim))
        except NotFound:
            pass
        except (ApiError, OSError) as error:
            log.warning("could not preempt %s/%s: %s", objects.namespace(victim), objects.name(victim), error)
