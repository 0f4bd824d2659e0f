"""Deployments: from one template to the next, within surge and unavailability.

Runs `rollout`'s steps and writes `progress`'s status. Promises that each step is taken on a memory that shows the last
one, so that the bounds hold at every instant, and that dying between any two writes only delays the rollout. Never
touches pods. Called by `manager`. Upstream: pkg/controller/deployment.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import (
    PODS,
    STALE_SECONDS,
    Context,
    Controller,
    by_controller,
    by_namespace,
    count_collision,
    delete_quietly,
    set_status,
)
from controlplane.controllers.workloads.deployments import progress, rollout
from controlplane.controllers.workloads.family import Family
from controlplane.machinery import objects, podfacts, selectors
from controlplane.machinery.errors import AlreadyExists
from controlplane.machinery.resources import named

DEPLOYMENTS, REPLICASETS = named("deployments.apps"), named("replicasets.apps")
Obj = dict[str, Any]
Key = tuple[str, str]


class Deployments(Controller):
    name = "deployment-controller"

    def __init__(self, context: Context) -> None:
        self.deployments = context.informer(DEPLOYMENTS, namespace=by_namespace)
        self.sets = context.informer(REPLICASETS, controller=by_controller)
        self.pods = context.informer(PODS, controller=by_controller)
        super().__init__(context, self.deployments, self.sets, self.pods)
        self.family = Family(self.client, self.pending, self.deployments, self.sets, self._selector)
        self.deployments.subscribe(lambda kind, old, new: self.queue.add(objects.key(new)))
        self.sets.subscribe(self._set_changed)
        self.pods.subscribe(self._pod_changed)

    def _set_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for key in self.family.concerned(kind, old, new):
            self.queue.add(key)

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """A Recreate rollout waits for the last old pod to be gone."""
        owner = objects.controller_of(new)
        if not owner or owner.get("kind") != "ReplicaSet" or (kind != "DELETED" and podfacts.active(new)):
            return
        one = self.sets.get(objects.namespace(new), owner["name"])
        above = objects.controller_of(one) if one else None
        if above and above.get("kind") == "Deployment":
            deployment = self.deployments.get(objects.namespace(new), above["name"])
            if deployment is not None and not rollout.rolling(deployment):
                self.queue.add(objects.key(deployment))

    @staticmethod
    def _selector(deployment: Obj) -> Any:
        return selectors.from_label_selector(objects.get(deployment, "spec.selector") or {})

    async def reconcile(self, key: Key) -> float | None:
        deployment = self.deployments.get(*key)
        if deployment is None:
            self.pending.forget(key)
            return None
        if not self.pending.settled(key, self.sets):
            return STALE_SECONDS
        if self._selector(deployment).empty:
            self.recorder.event(deployment, "Warning", "SelectingAll",
                                "This deployment is selecting all pods. A non-empty selector is required.")
            return None
        sets = await self.family.claim(key, deployment)
        new = rollout.newest(deployment, sets)
        old = [one for one in sets if one is not new]
        if objects.deleting(deployment):
            await self._write_status(deployment, progress.base(deployment, new, old, self.clock.timestamp()))
            return None
        if objects.get(deployment, "spec.paused") or rollout.resized(deployment, sets):
            return await self._resize(key, deployment, new, old)
        return await self._roll(key, deployment, new, old)

    async def _resize(self, key: Key, deployment: Obj, new: Obj | None, old: list[Obj]) -> float | None:
        if new is not None:
            new = await self._annotate(key, deployment, new, old)
        sets = [*old, new] if new is not None else old
        steps = rollout.rescale(deployment, new, old)
        named_steps = {objects.name(one) for one, _ in steps}
        steps += [(one, rollout.replicas(one)) for one in sets
                  if rollout.replicas(one) > 0 and objects.name(one) not in named_steps]  # refreshes their annotations
        sets = await self._scale(key, deployment, steps, sets)
        new, old = self._split(new, sets)
        if objects.get(deployment, "spec.paused"):
            await self._clean(key, deployment, old)
        await self._write_status(deployment, progress.paused(deployment, new, old, self.clock.timestamp()))
        return None

    async def _roll(self, key: Key, deployment: Obj, new: Obj | None, old: list[Obj]) -> float | None:
        made = False
        stamp = self.clock.timestamp()
        if not rollout.rolling(deployment) and (steps := [(one, 0) for one in old if rollout.replicas(one)]):
            old = await self._scale(key, deployment, steps, old)
        elif not rollout.rolling(deployment) and new is None and self._any_running(old):
            pass  # the next step follows when the last old pod is gone
        else:
            if new is None:
                new = await self._create(key, deployment, old)
                if new is None:
                    return None
                made = True
            else:
                new = await self._annotate(key, deployment, new, old)
                steps = rollout.roll(deployment, new, old) if rollout.rolling(deployment) else \
                    [(new, rollout.replicas(deployment))] if not self._any_running(old) else []
                new, old = self._split(new, await self._scale(key, deployment, steps, [*old, new]))
            deployment = await self._copy_revision(deployment, new)
        status = progress.rolling_out(deployment, new, old, self.clock.now(), stamp, made)
        if progress.complete(deployment, status):
            await self._clean(key, deployment, old)
        await self._write_status(deployment, status)
        limit = progress.deadline(deployment, status)
        return None if limit is None else max(1.0, limit - self.clock.now() + 1)

    def _any_running(self, old: list[Obj]) -> bool:
        return any(not podfacts.finished(pod)
                   for one in old for pod in self.pods.by("controller", objects.uid(one)))

    @staticmethod
    def _split(new: Obj | None, sets: list[Obj]) -> tuple[Any, list[Obj]]:
        uid = objects.uid(new) if new is not None else ""
        return (next((one for one in sets if objects.uid(one) == uid), None),
                [one for one in sets if objects.uid(one) != uid])

    # --- writes ------------------------------------------------------------------------------------------------

    async def _create(self, key: Key, deployment: Obj, old: list[Obj]) -> Obj | None:
        """The new ReplicaSet; None when its name is taken by another template, and the next try uses another hash."""
        wanted = rollout.new_set(deployment, old)
        try:
            made = await self.client.create(REPLICASETS, wanted)
            if count := rollout.replicas(made):
                self.recorder.event(deployment, "Normal", "ScalingReplicaSet",
                                    f"Scaled up replica set {objects.name(made)} from 0 to {count}")
        except AlreadyExists:
            made = await self.client.get(REPLICASETS, objects.name(wanted), key[0])
            owner = objects.controller_of(made) or {}
            if owner.get("uid") != objects.uid(deployment) or rollout.newest(deployment, [made]) is None:
                await count_collision(self.client, DEPLOYMENTS, deployment)
                return None
        self.pending.wrote(key, made)
        return made

    async def _scale(self, key: Key, deployment: Obj, steps: list[rollout.Scale], sets: list[Obj]) -> list[Obj]:
        """`sets` after the steps; what already is as wanted is not written."""
        after = {objects.uid(one): one for one in sets}
        for one, count in steps:
            before = rollout.replicas(one)
            notes = rollout.sized(deployment)
            if before == count and notes.items() <= objects.annotations(one).items():
                continue
            patch = {"metadata": {"annotations": notes, "uid": objects.uid(one),
                                  "resourceVersion": objects.revision(one)}, "spec": {"replicas": count}}
            changed = await self.client.patch(REPLICASETS, objects.name(one), patch, key[0], "merge")
            self.pending.wrote(key, changed)
            after[objects.uid(one)] = changed
            if before != count:
                way = "up" if count > before else "down"
                self.recorder.event(deployment, "Normal", "ScalingReplicaSet",
                                    f"Scaled {way} replica set {objects.name(one)} from {before} to {count}")
        return list(after.values())

    async def _annotate(self, key: Key, deployment: Obj, new: Obj, old: list[Obj]) -> Obj:
        """The newest set with the Deployment's annotations, its revision and minReadySeconds."""
        notes = rollout.set_annotations(deployment, new, rollout.next_revision(old))
        min_ready = objects.get(deployment, "spec.minReadySeconds", 0)
        if notes == objects.annotations(new) and min_ready == objects.get(new, "spec.minReadySeconds", 0):
            return new
        patch = {"metadata": {"annotations": notes, "uid": objects.uid(new)}, "spec": {"minReadySeconds": min_ready}}
        changed = await self.client.patch(REPLICASETS, objects.name(new), patch, key[0], "merge")
        self.pending.wrote(key, changed)
        return changed

    async def _copy_revision(self, deployment: Obj, new: Obj) -> Obj:
        revision = objects.annotations(new).get(rollout.REVISION, "")
        if not revision or objects.annotations(deployment).get(rollout.REVISION) == revision:
            return deployment
        patch = {"metadata": {"annotations": {rollout.REVISION: revision}, "uid": objects.uid(deployment)}}
        return await self.client.patch(DEPLOYMENTS, objects.name(deployment), patch, objects.namespace(deployment),
                                       "merge")

    async def _clean(self, key: Key, deployment: Obj, old: list[Obj]) -> None:
        for one in rollout.expired_sets(deployment, old):
            if await delete_quietly(self.client, REPLICASETS, one):
                self.pending.deleted(key, one)

    async def _write_status(self, deployment: Obj, status: Obj) -> None:
        await set_status(self.client, DEPLOYMENTS, deployment, status)
