"""ResourceClaims of devices: made from templates for pods, freed when the pods that hold them end.

Owns the claims it makes, the pods' record of their names, and the clean-up of `status.reservedFor`: a claim without a
pod left loses its allocation, one that was made for a pod goes with it. Allocating is the scheduler's. Idle while no
pod asks for devices. Called by `manager`. Upstream: pkg/controller/resourceclaim.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import (
    PODS,
    STALE_SECONDS,
    Context,
    Controller,
    by_controller,
    create_named,
    delete_quietly,
    drop_finalizer,
    set_status,
)
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.podfacts import active, finished
from controlplane.machinery.resources import named
from controlplane.scheduler import extended
from controlplane.scheduler.claims import FINALIZER

ENTRY = "resource.kubernetes.io/pod-claim-name"  # annotation of a claim: the pod's entry it is for

Obj = dict[str, Any]
Key = tuple[str, str, str]


def entries(pod: Obj) -> list[Obj]:
    return objects.get(pod, "spec.resourceClaims", None) or []


def by_reserving_pod(claim: Obj) -> list[str]:
    """Index of claims: the uids of what they are reserved for."""
    return [one.get("uid", "") for one in objects.get(claim, "status.reservedFor", None) or ()]


def child(pod: Obj, entry: str, template: Obj) -> Obj:
    """The claim of one entry of the pod, without a name."""
    held = template.get("spec") or {}
    source = held.get("metadata") or {}
    meta: Obj = {"namespace": objects.namespace(pod), "ownerReferences": [objects.owner_reference(pod)],
                 "annotations": {**(source.get("annotations") or {}), ENTRY: entry}}
    if source.get("labels"):
        meta["labels"] = source["labels"]
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": meta,
            "spec": objects.deep_copy(held.get("spec") or {})}


class ResourceClaims(Controller):
    """Keys are ("pod", namespace, name) and ("claim", namespace, name)."""

    name = "resource_claim"

    def __init__(self, context: Context) -> None:
        self.pods = context.informer(PODS)
        self.claims = context.informer(named("resourceclaims.resource.k8s.io"), controller=by_controller,
                                       reserving=by_reserving_pod)
        self.templates = context.informer(named("resourceclaimtemplates.resource.k8s.io"))
        super().__init__(context, self.pods, self.claims, self.templates)
        self.pods.subscribe(self._pod_changed)
        self.claims.subscribe(self._claim_changed)
        self.templates.subscribe(self._template_changed)

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if not entries(new) and not objects.get(new, "status.extendedResourceClaimStatus", None):
            return
        if kind != "DELETED":
            self.queue.add(("pod", *objects.key(new)))
        if kind == "DELETED" or finished(new):
            for claim in (*self.claims.by("reserving", objects.uid(new)),
                          *self.claims.by("controller", objects.uid(new))):
                self.queue.add(("claim", *objects.key(claim)))

    def _claim_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED":
            self.queue.add(("claim", *objects.key(new)))

    def _template_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for pod in self.pods.items() if kind == "ADDED" else ():
            if objects.namespace(pod) == objects.namespace(new) and any(
                    one.get("resourceClaimTemplateName") == objects.name(new) for one in entries(pod)):
                self.queue.add(("pod", *objects.key(pod)))

    async def reconcile(self, key: Key) -> float | None:
        if not self.pending.settled(key, self.claims):
            return STALE_SECONDS
        try:
            if key[0] == "pod" and (pod := self.pods.get(*key[1:])) is not None:
                await self._serve(key, pod)
            elif key[0] == "claim" and (claim := self.claims.get(*key[1:])) is not None:
                await self._clean(claim)
        except NotFound:
            pass
        return None

    # --- pods --------------------------------------------------------------------------------------------------

    async def _serve(self, key: Key, pod: Obj) -> None:
        """Make the claims the pod lacks and record their names in its status."""
        if not active(pod):
            return
        recorded = {one["name"]: one.get("resourceClaimName") for one in objects.get(
            pod, "status.resourceClaimStatuses", None) or ()}
        found = dict(recorded)
        for entry in entries(pod):
            if entry.get("resourceClaimTemplateName") and entry["name"] not in found:
                try:
                    found[entry["name"]] = objects.name(await self._claim(key, pod, entry))
                except ApiError as error:
                    self.recorder.event(pod, "Warning", "FailedResourceClaimCreation",
                                        f"PodResourceClaim {entry['name']}: {error.message}")
                    raise
        if found != recorded:
            listed = [{"name": name, "resourceClaimName": claim} for name, claim in found.items()]
            await self.client.patch(PODS, objects.name(pod), {"metadata": {"uid": objects.uid(pod)}, "status": {
                "resourceClaimStatuses": listed}}, objects.namespace(pod), "merge", "status")

    async def _claim(self, key: Key, pod: Obj, entry: Obj) -> Obj:
        name = entry["name"]
        for one in self.claims.by("controller", objects.uid(pod)):
            if objects.annotations(one).get(ENTRY) == name and not objects.deleting(one):
                return one
        template = self.templates.get(objects.namespace(pod), entry["resourceClaimTemplateName"])
        if template is None:
            raise ApiError(f"resource claim template \"{entry['resourceClaimTemplateName']}\": resourceclaimtemplate."
                           f"resource.k8s.io \"{entry['resourceClaimTemplateName']}\" not found")
        made = await create_named(self.client, self.claims.resource, child(pod, name, template),
                                  f"{objects.name(pod)}-{name}-")
        self.pending.wrote(key, made)
        return made

    # --- claims ------------------------------------------------------------------------------------------------

    async def _clean(self, claim: Obj) -> None:
        """Drop pods that are over from the claim; without any it is free, and goes if it was made for one of them."""
        reserved = objects.get(claim, "status.reservedFor", None) or []
        left = [one for one in reserved if one.get("resource") != "pods" or await self._holds(claim, one)]
        over = not left and (bool(reserved) or objects.deleting(claim))  # else somebody may just be allocating it
        if left != reserved or (over and objects.get(claim, "status.allocation", None) is not None):
            status = {**(claim.get("status") or {}), "reservedFor": left}
            if not left:
                for field in ("reservedFor", "allocation", "devices"):
                    status.pop(field, None)
            claim = await set_status(self.client, self.claims.resource, claim, status)
        if over:
            claim = await drop_finalizer(self.client, self.claims.resource, claim, FINALIZER)
        owner = objects.controller_of(claim)
        made = ENTRY in objects.annotations(claim) or extended.ours(claim)
        if not left and owner is not None and owner.get("kind") == "Pod" and made:
            pod = self.pods.get(objects.namespace(claim), owner.get("name", ""))
            if pod is not None and objects.uid(pod) == owner.get("uid") and finished(pod):
                await delete_quietly(self.client, self.claims.resource, claim)

    async def _holds(self, claim: Obj, consumer: Obj) -> bool:
        """Whether the pod still needs the claim, by the server's word where memory does not know it."""
        pod = self.pods.get(objects.namespace(claim), consumer.get("name", ""))
        if pod is None or objects.uid(pod) != consumer.get("uid"):
            try:
                pod = await self.client.get(PODS, consumer.get("name", ""), objects.namespace(claim))
            except NotFound:
                return False
        if objects.uid(pod) != consumer.get("uid"):
            return False
        return not finished(pod) and not (objects.deleting(pod) and not objects.get(pod, "spec.nodeName"))
