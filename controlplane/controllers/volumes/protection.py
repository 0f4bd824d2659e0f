"""Volumes, claims and VolumeAttributesClasses that are being deleted, held until nobody uses them.

Owns the finalizers `kubernetes.io/{pvc,pv,vac}-protection`, which admission sets: a claim goes when no Pod that is
placed on a node and still runs names it, a volume when it is bound to no claim, a class when neither names it. Promises
never to let go of a claim or volume in use by what the server itself says, not by memory alone. Called by `manager`.

Upstream: pkg/controller/volume/{pvcprotection,pvprotection,vacprotection}.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import PODS, Context, Controller, drop_finalizer
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import Resource, named

CLAIMS, VOLUMES = named("persistentvolumeclaims"), named("persistentvolumes")
ATTRIBUTES = named("volumeattributesclasses.storage.k8s.io")
KINDS = {resource.name: resource for resource in (CLAIMS, VOLUMES, ATTRIBUTES)}
FINALIZERS = {CLAIMS.name: "kubernetes.io/pvc-protection", VOLUMES.name: "kubernetes.io/pv-protection",
              ATTRIBUTES.name: "kubernetes.io/vac-protection"}

Obj = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace, name


def claims_of(pod: Obj) -> list[str]:
    """Index: `namespace/name` of the claims a Pod mounts, those of its ephemeral volumes too."""
    if podfacts.finished(pod) or not objects.get(pod, "spec.nodeName", ""):
        return []
    return [f"{objects.namespace(pod)}/{name}" for name, _ in podfacts.claim_names(pod)]


def attributes_of(obj: Obj) -> list[str]:
    """Index: the VolumeAttributesClasses a claim or volume has, had, or is about to have."""
    paths = ("spec.volumeAttributesClassName", "status.currentVolumeAttributesClassName",
             "status.modifyVolumeStatus.targetVolumeAttributesClassName")
    return [name for path in paths if (name := objects.get(obj, path))]


def held(resource: Resource, obj: Obj) -> bool:
    """Whether an object is being deleted and only waits for us."""
    return objects.deleting(obj) and FINALIZERS[resource.name] in (obj["metadata"].get("finalizers") or ())


class StorageProtection(Controller):
    name = "persistentvolumeclaim-protection-controller"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.pods = context.informer(PODS, claims=claims_of)
        self.objects = {CLAIMS.name: context.informer(CLAIMS, attributes=attributes_of),
                        VOLUMES.name: context.informer(VOLUMES, attributes=attributes_of),
                        ATTRIBUTES.name: context.informer(ATTRIBUTES)}
        super().__init__(context, self.pods, *self.objects.values())
        for resource in KINDS.values():
            self._listen(resource)
        self.pods.subscribe(self._pod_changed)

    def _listen(self, resource: Resource) -> None:
        self.objects[resource.name].subscribe(lambda kind, old, new: self._changed(resource, kind, old, new))

    def _changed(self, resource: Resource, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and held(resource, new):
            self.queue.add((resource.name, *objects.key(new)))
        for name in attributes_of(old) if old is not None and resource is not ATTRIBUTES else ():
            self.queue.add((ATTRIBUTES.name, "", name))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for claim in claims_of(old) if old is not None else []:
            if kind == "DELETED" or claim not in claims_of(new):
                self.queue.add((CLAIMS.name, *claim.split("/", 1)))

    async def reconcile(self, key: Key) -> float | None:
        name, *where = key
        resource = KINDS[name]
        known = self.objects[name].get(*where)
        if known is None or not held(resource, known) or self._used(resource, known):
            return None
        try:
            live = await self.client.get(resource, where[1], where[0])
            if not held(resource, live) or self._used(resource, live) or (
                    resource is CLAIMS and await self._mounted(live)):
                return None
            await drop_finalizer(self.client, resource, live, FINALIZERS[name])
        except NotFound:
            pass
        return None

    def _used(self, resource: Resource, obj: Obj) -> bool:
        if resource is ATTRIBUTES:
            return any(self.objects[one.name].by("attributes", objects.name(obj)) for one in (CLAIMS, VOLUMES))
        if resource is VOLUMES:
            return objects.get(obj, "status.phase", "") == "Bound"
        return bool(self.pods.by("claims", f"{objects.namespace(obj)}/{objects.name(obj)}"))

    async def _mounted(self, claim: Obj) -> bool:
        """The same by the server's word: a Pod may have been placed a moment ago."""
        pods, _ = await self.client.list(PODS, objects.namespace(claim))
        return any(f"{objects.namespace(claim)}/{objects.name(claim)}" in claims_of(pod) for pod in pods)
