"""Generic ephemeral volumes: a claim that lives and dies with its pod.

Promises that each such volume of a living pod has its claim, owned by the pod so that garbage collection takes it, and
that somebody else's claim of that name is never taken for it. Called by `manager`. Upstream: pkg/controller/volume/
ephemeral.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import PODS, Context, Controller
from controlplane.controllers.volumes.volumebinder import CLAIMS
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import AlreadyExists, ApiError

Obj = dict[str, Any]


def claims_of(pod: Obj) -> list[Obj]:
    """The claims the pod's ephemeral volumes stand for."""
    made = []
    for volume in objects.get(pod, "spec.volumes", None) or ():
        template = objects.get(volume, "ephemeral.volumeClaimTemplate")
        if template is None:
            continue
        source = template.get("metadata") or {}
        meta: Obj = {"name": f"{objects.name(pod)}-{volume['name']}", "namespace": objects.namespace(pod),
                     "ownerReferences": [objects.owner_reference(pod)]}
        meta |= {field: dict(source[field]) for field in ("labels", "annotations") if source.get(field)}
        made.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta,
                     "spec": objects.deep_copy(template.get("spec") or {})})
    return made


class EphemeralVolumes(Controller):
    """Keys are (namespace, name) of a pod."""

    name = "ephemeral_volume"

    def __init__(self, context: Context) -> None:
        self.pods, self.claims = context.informer(PODS), context.informer(CLAIMS)
        super().__init__(context, self.pods, self.claims)
        self.pods.subscribe(self._pod_changed)
        self.claims.subscribe(self._claim_changed)

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "ADDED" and any("ephemeral" in volume for volume in objects.get(new, "spec.volumes", None) or ()):
            self.queue.add(objects.key(new))

    def _claim_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        owner = objects.controller_of(new)
        if kind == "DELETED" and owner is not None and owner.get("kind") == "Pod":
            self.queue.add((objects.namespace(new), owner["name"]))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        pod = self.pods.get(*key)
        if pod is None or not podfacts.active(pod):
            return None
        for claim in claims_of(pod):
            existing = self.claims.get(*objects.key(claim))
            try:
                if existing is None:
                    await self.client.create(CLAIMS, claim)
                    continue
            except AlreadyExists:
                existing = await self.client.get(CLAIMS, objects.name(claim), key[0])
            except ApiError as error:
                self.recorder.event(pod, "Warning", "FailedBinding", f"ephemeral volume controller: {error.message}")
                raise
            if existing is not None and (objects.controller_of(existing) or {}).get("uid") != objects.uid(pod):
                message = (f'PVC "{key[0]}/{objects.name(claim)}" was not created for pod "{key[0]}/{key[1]}" '
                           "(pod is not owner)")
                self.recorder.event(pod, "Warning", "FailedBinding", message)
                raise ApiError(message)
        return None
