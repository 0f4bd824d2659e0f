"""Volumes and claims that are being deleted, held until nobody uses them.

Owns the finalizers `kubernetes.io/pvc-protection` and `kubernetes.io/pv-protection`, which admission sets: a claim goes
when no Pod that is placed on a node and still runs names it, a volume when it is bound to no claim. Promises never to
let go of one in use by what the server itself says, not by memory alone. Called by `__main__`.

Upstream: pkg/controller/volume/{pvcprotection,pvprotection}.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.podgc import finished
from controlplane.controllers.runtime import PODS, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import Resource, named

CLAIMS, VOLUMES = named("persistentvolumeclaims"), named("persistentvolumes")
FINALIZERS = {CLAIMS.name: "kubernetes.io/pvc-protection", VOLUMES.name: "kubernetes.io/pv-protection"}

Obj = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace, name


def claims_of(pod: Obj) -> list[str]:
    """Index: `namespace/name` of the claims a Pod mounts, those of its ephemeral volumes too."""
    if finished(pod) or not objects.get(pod, "spec.nodeName", ""):
        return []
    space, name = objects.namespace(pod), objects.name(pod)
    found = []
    for volume in objects.get(pod, "spec.volumes", None) or []:
        if volume.get("persistentVolumeClaim"):
            found.append(f"{space}/{volume['persistentVolumeClaim'].get('claimName', '')}")
        elif volume.get("ephemeral") is not None:
            found.append(f"{space}/{name}-{volume['name']}")
    return found


def held(resource: Resource, obj: Obj) -> bool:
    """Whether an object is being deleted and only waits for us."""
    return objects.deleting(obj) and FINALIZERS[resource.name] in (obj["metadata"].get("finalizers") or ())


class StorageProtection(Controller):
    name = "persistentvolumeclaim-protection-controller"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.pods = context.informer(PODS, claims=claims_of)
        self.objects = {resource.name: context.informer(resource) for resource in (CLAIMS, VOLUMES)}
        super().__init__(context, self.pods, *self.objects.values())
        self.objects[CLAIMS.name].subscribe(lambda kind, old, new: self._changed(CLAIMS, kind, new))
        self.objects[VOLUMES.name].subscribe(lambda kind, old, new: self._changed(VOLUMES, kind, new))
        self.pods.subscribe(self._pod_changed)

    def _changed(self, resource: Resource, kind: str, new: Obj) -> None:
        if kind != "DELETED" and held(resource, new):
            self.queue.add((resource.name, *objects.key(new)))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for claim in claims_of(old) if old is not None else []:
            if kind == "DELETED" or claim not in claims_of(new):
                self.queue.add((CLAIMS.name, *claim.split("/", 1)))

    async def reconcile(self, key: Key) -> float | None:
        name, *where = key
        resource = CLAIMS if name == CLAIMS.name else VOLUMES
        known = self.objects[name].get(*where)
        if known is None or not held(resource, known) or self._used(resource, known):
            return None
        try:
            live = await self.client.get(resource, where[1], where[0])
            if not held(resource, live) or self._used(resource, live) or (
                    resource is CLAIMS and await self._mounted(live)):
                return None
            left = [f for f in live["metadata"]["finalizers"] if f != FINALIZERS[name]]
            await self.client.update(resource, {**live, "metadata": {**live["metadata"], "finalizers": left}})
        except NotFound:
            pass
        return None

    def _used(self, resource: Resource, obj: Obj) -> bool:
        if resource is VOLUMES:
            return objects.get(obj, "status.phase", "") == "Bound"
        return bool(self.pods.by("claims", f"{objects.namespace(obj)}/{objects.name(obj)}"))

    async def _mounted(self, claim: Obj) -> bool:
        """The same by the server's word: a Pod may have been placed a moment ago."""
        pods, _ = await self.client.list(PODS, objects.namespace(claim))
        return any(f"{objects.namespace(claim)}/{objects.name(claim)}" in claims_of(pod) for pod in pods)
