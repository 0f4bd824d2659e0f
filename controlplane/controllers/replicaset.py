"""ReplicaSets and ReplicationControllers: keep as many pods as asked for.

Runs `replicas.plan` for each set that changed or whose pods changed. Promises never to create a pod twice: it acts only
when the informer shows its own last writes, and a creation whose answer was lost is repeated under the same name. Never
restarts a pod; that is the node's work. Called by `__main__`, once per kind.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers import claims, replicas
from controlplane.controllers.runtime import (
    PODS,
    STALE_SECONDS,
    Context,
    Controller,
    by_controller,
    by_namespace,
    create_named,
    in_batches,
    set_status,
)
from controlplane.machinery import objects, selectors
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import Resource, named

Obj = dict[str, Any]
Key = tuple[str, str]


class ReplicaSets(Controller):
    """`resource` is replicasets.apps or replicationcontrollers: they differ in how they write their selector."""

    def __init__(self, context: Context, resource: Resource) -> None:
        self.resource = resource
        self.name = "replicaset-controller" if resource.group else "replication-controller"
        self.sets = context.informer(resource, namespace=by_namespace, controller=by_controller)
        self.pods = context.informer(PODS, controller=by_controller)
        super().__init__(context, self.sets, self.pods)
        self.sets.subscribe(self._set_changed)
        self.pods.subscribe(self._pod_changed)

    def _set_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self.pending.forget(objects.key(new))
        else:
            self.queue.add(objects.key(new))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for pod in (old, new) if old is not None else (new,):
            owner = objects.controller_of(pod)
            if owner is not None:
                if (owner.get("apiVersion"), owner.get("kind")) == (self.resource.api_version, self.resource.kind):
                    self.queue.add((objects.namespace(pod), owner["name"]))
            elif kind != "DELETED" and objects.labels(pod):
                for candidate in self.sets.by("namespace", objects.namespace(pod)):
                    if self._selector(candidate).matches(objects.labels(pod)):
                        self.queue.add(objects.key(candidate))

    def _selector(self, owner: Obj) -> Any:
        selector = objects.get(owner, "spec.selector") or {}
        return selectors.from_label_selector(selector) if self.resource.group else selectors.from_map(selector)

    async def reconcile(self, key: Key) -> float | None:
        owner = self.sets.get(*key)
        if owner is None:
            return None
        if not self.pending.settled(key, self.pods):
            return STALE_SECONDS
        pods = await self._claim(key, owner)
        active = [pod for pod in pods if replicas.active(pod)]
        failure = None
        if not objects.deleting(owner):
            now = self.clock.now()
            plan = replicas.plan(objects.get(owner, "spec.replicas", 1), active, self._related(owner), now)
            error = await self._apply(key, owner, plan)
            if error is not None:
                failure = ("FailedCreate" if plan.create else "FailedDelete", error.message)
        now = self.clock.now()
        status = replicas.status(owner, active, failure, now, self.clock.timestamp())
        await set_status(self.client, self.resource, owner, status)
        if failure:
            raise ApiError(failure[1])  # tried again with back-off
        return replicas.next_available(active, objects.get(owner, "spec.minReadySeconds", 0), now)

    async def _claim(self, key: Key, owner: Obj) -> list[Obj]:
        """The set's pods, after adopting and releasing."""
        candidates = [*self.pods.by("controller", objects.uid(owner)),
                      *self.pods.by("controller", f"orphan/{key[0]}")]
        claim = claims.claim(owner, self._selector(owner), candidates)
        mine = list(claim.mine)
        if claim.adopt:  # only if the set still is what we think it is: its successor may have the name by now
            live = await self.client.get(self.resource, key[1], key[0])
            if objects.uid(live) != objects.uid(owner) or objects.deleting(live):
                return mine
        for pod in claim.adopt:
            mine.append(await self._patch(key, pod, claims.adoption(owner, pod)) or pod)
        for pod in claim.release:
            await self._patch(key, pod, claims.release(owner, pod))
        return mine

    async def _patch(self, key: Key, pod: Obj, patch: Obj) -> Obj | None:
        try:
            changed = await self.client.patch(PODS, objects.name(pod), patch, key[0])
        except NotFound:
            return None
        self.pending.wrote(key, changed)
        return changed

    def _related(self, owner: Obj) -> list[Obj]:
        """Active pods of this set and of the sets with the same controller: a rollout's crowd on each node."""
        controller = objects.controller_of(owner)
        sets = self.sets.by("controller", controller["uid"]) if controller else [owner]
        return [pod for one in sets for pod in self.pods.by("controller", objects.uid(one)) if replicas.active(pod)]

    async def _apply(self, key: Key, owner: Obj, plan: replicas.Plan) -> ApiError | None:
        async def create(_: int) -> None:
            try:
                pod = await create_named(self.client, PODS, replicas.child(owner), objects.name(owner) + "-")
            except ApiError as error:
                self.recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {error.message}")
                raise
            self.pending.wrote(key, pod)
            self.recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {objects.name(pod)}")

        async def delete(number: int) -> None:
            pod = plan.delete[number]
            try:
                await self.client.delete(PODS, objects.name(pod), key[0], uid=objects.uid(pod))
            except NotFound:
                pass
            except ApiError as error:
                self.recorder.event(owner, "Warning", "FailedDelete", f"Error deleting: {error.message}")
                raise
            self.pending.deleted(key, pod)
            self.recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {objects.name(pod)}")
        if plan.create:
            return await in_batches(plan.create, create)
        return await in_batches(len(plan.delete), delete)


def replicasets(context: Context) -> ReplicaSets:
    return ReplicaSets(context, named("replicasets.apps"))


def replication_controllers(context: Context) -> ReplicaSets:
    return ReplicaSets(context, named("replicationcontrollers"))
