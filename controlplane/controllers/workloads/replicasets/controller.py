"""ReplicaSets and ReplicationControllers: keep as many pods as asked for.

Runs `replicas.plan` for each set that changed or whose pods changed. Promises never to create a pod twice: it acts only
when the informer shows its own last writes, and a creation whose answer was lost is repeated under the same name. Never
restarts a pod; that is the node's work. Called by `manager`, once per kind.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import STALE_SECONDS, Context, by_controller, set_status
from controlplane.controllers.workloads import templates
from controlplane.controllers.workloads.podowner import Key, PodOwner
from controlplane.controllers.workloads.replicasets import replicas
from controlplane.machinery import objects, podfacts, selectors
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource, named

Obj = dict[str, Any]


class ReplicaSets(PodOwner):
    """`resource` is replicasets.apps or replicationcontrollers: they differ in how they write their selector."""

    def __init__(self, context: Context, resource: Resource) -> None:
        self.name = "replicaset-controller" if resource.group else "replication-controller"
        super().__init__(context, resource)
        self.owners.add_index("controller", by_controller)

    def selector(self, owner: Obj) -> Any:
        return super().selector(owner) if self.resource.group else \
            selectors.from_map(objects.get(owner, "spec.selector") or {})

    async def reconcile(self, key: Key) -> float | None:
        owner = self.owners.get(*key)
        if owner is None:
            return None
        if not self.pending.settled(key, self.pods):
            return STALE_SECONDS
        pods = await self.claim(key, owner)
        active = [pod for pod in pods if podfacts.active(pod)]
        failure = None
        if not objects.deleting(owner):
            now = self.clock.now()
            plan = replicas.plan(objects.get(owner, "spec.replicas", 1), active, self._related(owner), now)
            error = await self._apply(key, owner, plan)
            if error is not None:
                failure = ("FailedCreate" if plan.create else "FailedDelete", error.message)
        now = self.clock.now()
        leaving = sum(map(podfacts.terminating, pods)) if self.resource.group else None
        status = replicas.status(owner, active, failure, now, self.clock.timestamp(), leaving)
        await set_status(self.client, self.resource, owner, status)
        if failure:
            raise ApiError(failure[1])  # tried again with back-off
        return podfacts.next_available(active, objects.get(owner, "spec.minReadySeconds", 0), now)

    def _related(self, owner: Obj) -> list[Obj]:
        """Active pods of this set and of the sets with the same controller: a rollout's crowd on each node."""
        controller = objects.controller_of(owner)
        sets = self.owners.by("controller", controller["uid"]) if controller else [owner]
        return [pod for one in sets for pod in self.pods.by("controller", objects.uid(one)) if podfacts.active(pod)]

    async def _apply(self, key: Key, owner: Obj, plan: replicas.Plan) -> ApiError | None:
        if plan.create:
            pod, prefix = templates.pod_of(owner), objects.name(owner) + "-"
            return await self.create_pods(key, owner, [pod] * plan.create, lambda _: prefix)
        return await self.delete_pods(key, owner, plan.delete)


def replicasets(context: Context) -> ReplicaSets:
    return ReplicaSets(context, named("replicasets.apps"))


def replication_controllers(context: Context) -> ReplicaSets:
    return ReplicaSets(context, named("replicationcontrollers"))
