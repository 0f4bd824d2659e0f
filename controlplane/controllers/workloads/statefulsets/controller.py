"""StatefulSets: pods with a name, a place and a store of their own.

Runs `ordinals.plan`, with `identity` for what a pod is, and keeps the revisions. Promises that at no time two pods
have one ordinal: their name is it, and a pod is made only when the memory shows that its predecessor is gone. Called by
`manager`. Upstream: pkg/controller/statefulset.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import STALE_SECONDS, Context, count_collision, set_status
from controlplane.controllers.workloads.podowner import Key, PodOwner
from controlplane.controllers.workloads.revisions import Revisions
from controlplane.controllers.workloads.statefulsets import identity, ordinals
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import AlreadyExists, ApiError, NotFound
from controlplane.machinery.resources import named

Obj = dict[str, Any]


class StatefulSets(PodOwner):
    name = "statefulset-controller"

    def __init__(self, context: Context) -> None:
        resource = named("statefulsets.apps")
        self.revisions = Revisions(context, resource)
        self.claims = context.informer(named("persistentvolumeclaims"))
        super().__init__(context, resource, self.revisions.informer, self.claims)

    def owner_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        super().owner_changed(kind, old, new)
        if kind == "DELETED":
            self.revisions.forget(objects.key(new))

    def may_own(self, owner: Obj, pod: Obj) -> bool:
        return ordinals.ordinal(owner, pod) >= 0

    async def reconcile(self, key: Key) -> float | None:
        owner = self.owners.get(*key)
        if owner is None:
            return None
        if not (self.pending.settled(key, self.pods) and self.revisions.settled(key)
                and self.pending.settled(("claims", *key), self.claims)):
            return STALE_SECONDS
        found = await self.revisions.current(key, owner)
        if found is None:
            await count_collision(self.client, self.resource, owner)
            return None
        update, known = found
        current = next((one for one in known if objects.name(one) == objects.get(owner, "status.currentRevision")),
                       update)
        pods = await self.claim(key, owner)
        wait, error = (None, None) if objects.deleting(owner) else await self._apply(key, owner, pods, current, update)
        now = self.clock.now()
        status = ordinals.status(owner, pods, objects.name(current), objects.name(update), now)
        await set_status(self.client, self.resource, owner, status)
        live = {objects.name(current), objects.name(update), status["currentRevision"], *map(ordinals.revision, pods)}
        await self.revisions.forget_surplus(key, owner, known, live)
        if error is not None:
            raise error  # tried again with back-off
        soon = podfacts.next_available(pods, objects.get(owner, "spec.minReadySeconds", 0), now)
        return min((one for one in (wait, soon) if one is not None), default=None)

    async def _apply(self, key: Key, owner: Obj, pods: list[Obj], current: Obj, update: Obj) -> tuple[
            float | None, ApiError | None]:
        """(seconds until a claim in the way may be gone, the error that stopped us)."""
        plan = ordinals.plan(owner, pods, objects.name(update), self.clock.now())
        wait = None
        try:
            await self._keep_owners(key, owner, pods)
            for pod in plan.repair:
                await self._repair(key, owner, pod)
            for number, newest in plan.create:
                pod = identity.child(owner, number, update if newest else current)
                if await self._claims_ready(key, owner, number, pod):
                    await self._create_or_replace(key, owner, pod)
                else:
                    wait = STALE_SECONDS
            for pod in plan.delete:
                await self.delete_pod(key, owner, pod)
        except ApiError as error:
            return wait, error
        return wait, None

    async def _create_or_replace(self, key: Key, owner: Obj, pod: Obj) -> None:
        try:
            await self.create_pod(key, owner, pod)
        except AlreadyExists:  # a stranger has the name: say so (done) and try again later
            raise ApiError(f"pod {objects.name(pod)} exists and belongs to another") from None

    async def _repair(self, key: Key, owner: Obj, pod: Obj) -> None:
        """Give a living pod back its labels and the claims it lacks."""
        if (patch := identity.label_patch(pod)) is not None:
            await self.family.patch(key, pod, patch)
        if objects.get(pod, "status.phase") == "Pending":
            await self._claims_ready(key, owner, ordinals.ordinal(owner, pod), pod)

    # --- claims ------------------------------------------------------------------------------------------------

    async def _claims_ready(self, key: Key, owner: Obj, number: int, pod: Obj) -> bool:
        """Make the ordinal's missing claims; False while one that is about to go is in the way of a new pod."""
        for claim in identity.claims(owner, number):
            existing = self.claims.get(*objects.key(claim))
            if existing is not None:
                if not objects.uid(pod) and identity.stale(owner, number, existing):
                    return False
                continue
            patch = identity.owners_patch(owner, number, None, claim)
            if patch is not None:
                claim["metadata"]["ownerReferences"] = patch["metadata"]["ownerReferences"]
            what = f"Claim {objects.name(claim)} Pod {identity.pod_name(owner, number)} in StatefulSet {key[1]}"
            try:
                made = await self.client.create(self.claims.resource, claim)
            except AlreadyExists:
                continue
            except ApiError as error:
                self.recorder.event(owner, "Warning", "FailedCreate", f"create {what} failed error: {error.message}")
                raise
            self.pending.wrote(("claims", *key), made)
            self.recorder.event(owner, "Normal", "SuccessfulCreate", f"create {what} success")
        return True

    async def _keep_owners(self, key: Key, owner: Obj, pods: list[Obj]) -> None:
        """Make the claims of all ordinals belong to whom the retention policy says."""
        for pod in pods if identity.claim_templates(owner) else ():
            number = ordinals.ordinal(owner, pod)
            for template in identity.claim_templates(owner):
                claim = self.claims.get(key[0], identity.claim_name(owner, template, number))
                patch = identity.owners_patch(owner, number, pod, claim) if claim is not None else None
                if claim is None or patch is None:
                    continue
                try:
                    changed = await self.client.patch(self.claims.resource, objects.name(claim), patch, key[0], "merge")
                except NotFound:
                    continue
                self.pending.wrote(("claims", *key), changed)

    # --- what users read ---------------------------------------------------------------------------------------

    def tell_created(self, owner: Obj, pod: Obj) -> None:
        self._tell(owner, "SuccessfulCreate", f"create Pod {objects.name(pod)}")

    def tell_deleted(self, owner: Obj, pod: Obj) -> None:
        self._tell(owner, "SuccessfulDelete", f"delete Pod {objects.name(pod)}")

    def tell_create_failed(self, owner: Obj, error: ApiError) -> None:
        self.recorder.event(owner, "Warning", "FailedCreate",
                            f"create Pod in StatefulSet {objects.name(owner)} failed error: {error.message}")

    def _tell(self, owner: Obj, reason: str, what: str) -> None:
        self.recorder.event(owner, "Normal", reason, f"{what} in StatefulSet {objects.name(owner)} successful")
