"""PodDisruptionBudgets: keep their status true, so that the eviction subresource can decide by it.

Runs `budgets.verdict` for each budget that changed or whose pods changed. Promises that a budget which cannot be
counted allows nothing and says why, and that an eviction granted meanwhile is never lost: the status is written by its
version. Also takes back `DisruptionTarget` from pods that were told to go and never went. Called by `manager`.

Upstream: pkg/controller/disruption.
"""

from __future__ import annotations

from typing import Any

from controlplane.client.discovery import Kinds
from controlplane.controllers.runtime import PODS, Context, Controller, by_namespace, picked, set_status
from controlplane.controllers.workloads.disruption import budgets
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.machinery.resources import BUILTIN, named

TARGET = "pod"  # first part of the keys of pods whose condition may go stale
UNMANAGED = ('Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the '
             'status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for '
             'these pods please set ".spec.minAvailable" field of the PDB to an integer value.')

Obj = dict[str, Any]


class Disruption(Controller):
    """Keys are (namespace, name) of a budget, or (TARGET, namespace, name) of a pod."""

    name = "disruption-controller"

    def __init__(self, context: Context) -> None:
        self.budgets = context.informer(named("poddisruptionbudgets.policy"), namespace=by_namespace)
        self.pods = context.informer(PODS, namespace=by_namespace)
        self.scaled = {name: context.informer(named(name)) for name in (
            "replicasets.apps", "deployments.apps", "statefulsets.apps", "replicationcontrollers")}
        self.kinds = Kinds(context.informers)
        super().__init__(context, self.budgets, self.pods, *self.scaled.values(), self.kinds.informer)
        self.budgets.subscribe(self._budget_changed)
        self.pods.subscribe(self._pod_changed)

    def _budget_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED":
            self.queue.add(objects.key(new))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and (left := budgets.stale_in(new, self.clock.now())) is not None:
            self.queue.add_after((TARGET, *objects.key(new)), left)
        if kind == "MODIFIED" and old is not None and not budgets.matters(old, new):
            return
        for budget in picked(self.budgets.by("namespace", objects.namespace(new)),
                             lambda one: any(pod is not None and budgets.selector(one).matches(objects.labels(pod))
                                             for pod in (old, new))):
            self.queue.add(objects.key(budget))

    async def reconcile(self, key: Any) -> float | None:
        if key[0] == TARGET and len(key) == 3:
            return await self._take_back(key[1:])
        budget = self.budgets.get(*key)
        if budget is None:
            return None
        try:
            return await self._count(budget)
        except Conflict:
            raise  # the newer budget is on its way to us
        except (ApiError, ValueError) as error:
            message = error.message if isinstance(error, ApiError) else str(error)
            await self._write(budget, budgets.failed(budget, message, self.clock.now()))
            raise

    async def _count(self, budget: Obj) -> float | None:
        covered = budgets.selector(budget)
        pods = [pod for pod in self.pods.by("namespace", objects.namespace(budget))
                if covered.matches(objects.labels(pod))]
        if not pods:
            self.recorder.event(budget, "Normal", "NoPods", "No matching pods found")
        scale = 0
        if budgets.needs_scale(budget):
            try:
                scale = await self._scale(budget, pods)
            except ApiError as error:
                self.recorder.event(budget, "Warning", "CalculateExpectedPodCountFailed",
                                    f"Failed to calculate the number of expected pods: {error.message}")
                raise
        verdict = budgets.verdict(budget, pods, scale, self.clock.now())
        for pod in verdict.overdue:
            self.recorder.event(pod, "Warning", "NotDeleted", f"Pod was expected by PDB {objects.namespace(budget)}/"
                                f"{objects.name(budget)} to be deleted but it wasn't")
        await self._write(budget, verdict.status)
        return verdict.wake

    async def _write(self, budget: Obj, status: Obj) -> None:
        try:
            await set_status(self.client, self.budgets.resource, budget, status)
        except NotFound:
            pass

    # --- what the pods' controllers want -----------------------------------------------------------------------

    async def _scale(self, budget: Obj, pods: list[Obj]) -> int:
        """The sum of the sizes of all controllers of these pods. ApiError when one of them has no size."""
        sizes: dict[str, int] = {}
        unmanaged = False
        known: set[str] = set()
        for pod in pods:
            owner = objects.controller_of(pod)
            if owner is None:
                unmanaged = True
            elif owner["uid"] not in known:
                known.add(owner["uid"])
                found = self._cached_size(owner, objects.namespace(pod)) or await self._asked_size(owner, pod)
                if found is None:
                    raise ApiError(f'found no controllers for pod "{objects.name(pod)}"')
                sizes[found[0]] = found[1]
        if unmanaged:
            self.recorder.event(budget, "Warning", "UnmanagedPods", UNMANAGED.format(objects.get(budget,
                                                                                                 "spec.selector")))
        return sum(sizes.values())

    def _cached_size(self, ref: Obj, namespace: str) -> tuple[str, int] | None:
        """(uid, replicas) of one of the kinds we follow; of a Deployment's ReplicaSet it is the Deployment's."""
        resource = BUILTIN.of(ref.get("apiVersion", ""), ref.get("kind", ""))
        informer = self.scaled.get(resource.name) if resource is not None else None
        owner = informer.get(namespace, ref.get("name", "")) if informer is not None else None
        if owner is None or objects.uid(owner) != ref.get("uid"):
            return None
        above = objects.controller_of(owner)
        if above is not None and above.get("kind") == "Deployment":
            return self._cached_size(above, namespace)
        return objects.uid(owner), objects.get(owner, "spec.replicas", 1)

    async def _asked_size(self, ref: Obj, pod: Obj) -> tuple[str, int] | None:
        """The same by the scale subresource, which custom kinds may have."""
        resource = self.kinds.referred(ref)
        if resource is None:
            raise ApiError(f'no matches for kind "{ref.get("kind")}" in version "{ref.get("apiVersion")}"')
        if not resource.custom and resource.subresource("scale") is None:
            raise ApiError(f"{resource.name} does not implement the scale subresource")
        try:
            scale = await self.client.get(resource, ref.get("name", ""), objects.namespace(pod), subresource="scale")
        except NotFound:
            return None
        if objects.uid(scale) != ref.get("uid"):
            return None
        return objects.uid(scale), objects.get(scale, "spec.replicas", 0)

    # --- conditions that outlived their reason -----------------------------------------------------------------

    async def _take_back(self, key: tuple[str, str]) -> float | None:
        pod = self.pods.get(*key)
        left = budgets.stale_in(pod, self.clock.now()) if pod is not None else None
        if pod is None or left is None:
            return None
        if left > 0:
            return left
        condition = {"type": "DisruptionTarget", "status": "False", "lastTransitionTime": self.clock.timestamp(),
                     "reason": None, "message": None}
        try:
            await self.client.patch(PODS, key[1], {"metadata": {"uid": objects.uid(pod)}, "status": {
                "conditions": [condition]}}, key[0], subresource="status")
        except NotFound:
            pass
        return None
