"""Jobs: run pods until enough of them have succeeded.

Runs `completion.plan`. Promises exact counts: the status that counts a pod's end is written before the pod loses its
finalizer, and nothing is decided while the memory of the Job or of its pods is older than our own last write. Pods
whose Job is gone lose their finalizer too, or they would never go. Called by `manager`. Upstream: pkg/controller/job.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import PODS, STALE_SECONDS, Context, in_batches, set_status
from controlplane.controllers.workloads import adoption
from controlplane.controllers.workloads.jobs import attempts, completion
from controlplane.controllers.workloads.podowner import Key, PodOwner
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named

ORPHAN = "orphan"  # first part of the keys of single pods
_LET_GO = {"$deleteFromPrimitiveList/finalizers": [attempts.FINALIZER]}

Obj = dict[str, Any]


class Jobs(PodOwner):
    name = "job-controller"

    def __init__(self, context: Context) -> None:
        super().__init__(context, named("jobs.batch"))

    def owner_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        super().owner_changed(kind, old, new)
        if kind == "DELETED":
            self.pending.forget(("status", objects.key(new)))
            for pod in self.pods.by("controller", objects.uid(new)):
                self._look_at_orphan(pod)

    def pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        super().pod_changed(kind, old, new)
        if kind != "DELETED":
            self._look_at_orphan(new)

    def _look_at_orphan(self, pod: Obj) -> None:
        if attempts.tracked(pod) and self._nobodys(pod):
            self.queue.add((ORPHAN, *objects.key(pod)))

    def _nobodys(self, pod: Obj) -> bool:
        """Whether no Job will ever count the pod."""
        owner = objects.controller_of(pod)
        if owner is None or owner.get("kind") != "Job":
            return True
        job = self.owners.get(objects.namespace(pod), owner["name"])
        return job is None or objects.uid(job) != owner.get("uid") or completion.finished(job)

    def adopt(self, owner: Obj, pod: Obj) -> Obj:
        patch = adoption.adopt(owner, pod)
        patch["metadata"]["finalizers"] = [attempts.FINALIZER]
        return patch

    def release(self, owner: Obj, pod: Obj) -> Obj:
        patch = adoption.release(owner, pod)
        patch["metadata"] |= _LET_GO
        return patch

    def may_own(self, owner: Obj, pod: Obj) -> bool:
        return not completion.finished(owner)

    async def reconcile(self, key: Any) -> float | None:
        if key[0] == ORPHAN and len(key) == 3:
            await self._free_orphan(key[1:])
            return None
        job = self.owners.get(*key)
        if job is None or not completion.ours(job) or completion.finished(job):
            return None
        if not (self.pending.settled(key, self.pods) and self.pending.settled(("status", key), self.owners)):
            return STALE_SECONDS
        pods = await self.claim(key, job)
        now = self.clock.now()
        plan = completion.plan(job, pods, now, self.clock.timestamp())
        error = await self._apply(key, job, plan)
        if error is not None:
            raise error  # tried again with back-off
        return plan.wake

    async def _apply(self, key: Key, job: Obj, plan: completion.Plan) -> ApiError | None:
        async def drop(number: int) -> None:
            pod = plan.drop[number]
            if attempts.tracked(pod):  # first, so that its end does not count as a failure
                await self._let_go(key, pod)
            await self.delete_pod(key, job, pod)
        error = await in_batches(len(plan.drop), drop)
        error = await self.delete_pods(key, job, plan.delete) or error
        error = await self.create_pods(key, job, plan.create, lambda pod: attempts.prefix(job, pod)) or error
        if error is not None:  # how far we came is known when the informers show it
            plan.status["active"] = objects.get(job, "status.active", 0)
        written = await set_status(self.client, self.resource, job, plan.status)
        self.pending.wrote(("status", key), written)
        for event in plan.events:
            self.recorder.event(job, *event)
        return await in_batches(len(plan.settle), lambda number: self._let_go(key, plan.settle[number])) or error

    async def _let_go(self, key: Key, pod: Obj) -> None:
        await self.family.patch(key, pod, {"metadata": {"uid": objects.uid(pod), **_LET_GO}})

    async def _free_orphan(self, key: Key) -> None:
        pod = self.pods.get(*key)
        if pod is None or not attempts.tracked(pod) or not self._nobodys(pod):
            return
        owner = objects.controller_of(pod) or {}
        if owner.get("kind") == "Job":
            try:  # our memory of Jobs may be older than that of pods
                live = await self.client.get(self.resource, owner["name"], key[0])
                if objects.uid(live) == owner.get("uid") and not completion.finished(live):
                    return
            except NotFound:
                pass
        try:
            await self.client.patch(PODS, key[1], {"metadata": {"uid": objects.uid(pod), **_LET_GO}}, key[0])
        except NotFound:
            pass
