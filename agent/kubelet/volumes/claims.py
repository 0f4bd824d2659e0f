"""From a pod's claim to the volume that is bound to it, and whether this node may mount it.

Owns the reading of claims and volumes from the API, once per pod and volume. Promises that a volume is handed out only
when claim and volume name each other, in the mode the pod uses it in, and on a node the volume can be reached from.
What is kept is forgotten with the pod. Called by `manager`.

Upstream: pkg/kubelet/volumemanager/populator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.kubelet import admit
from agent.kubelet.env import ConfigError
from controlplane.client.rest import Client
from controlplane.machinery import objects, placement
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named

CLAIMS, VOLUMES = named("persistentvolumeclaims"), named("persistentvolumes")
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A bound volume; `block` when the pod gets the device and no file system."""

    volume: Object
    claim: Object
    read_only: bool = False

    @property
    def block(self) -> bool:
        return (self.volume["spec"].get("volumeMode") or "Filesystem") == "Block"


def claim_name(pod: Object, volume: Object) -> str:
    """The name of the claim behind a pod's volume, "" when there is none."""
    if volume.get("ephemeral") is not None:
        return f"{pod['metadata']['name']}-{volume['name']}"
    return str((volume.get("persistentVolumeClaim") or {}).get("claimName") or "")


def fault(pod: Object, volume: Object, claim: Object, found: Object | None) -> str:
    """Why the volume `found` is not to be mounted for the pod's `volume`; "" when it is."""
    space, name = objects.namespace(claim), objects.name(claim)
    bound = claim["spec"].get("volumeName") or ""
    phase = objects.get(claim, "status.phase", "")
    owner = objects.controller_of(claim) or {}
    if volume.get("ephemeral") is not None and owner.get("uid") != pod["metadata"]["uid"]:
        return f"PVC {space}/{name} was not created for pod {space}/{pod['metadata']['name']} (pod is not owner)"
    if objects.deleting(claim) and (pod.get("status") or {}).get("phase") != "Running":
        return "PVC is being deleted"
    if phase != "Bound" or not bound:
        return f'PVC {space}/{name} has non-bound phase ("{phase}") or empty pvc.Spec.VolumeName ("{bound}")'
    if found is None:
        return f'failed to fetch PV {bound} from API server: persistentvolumes "{bound}" not found'
    back = found["spec"].get("claimRef") or {}
    if not back:
        return f"found PV object {bound} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
    if back.get("uid") != objects.uid(claim):
        return (f"found PV object {bound} but its pv.Spec.ClaimRef.UID {back.get('uid')} does not point to claim.UID "
                f"{objects.uid(claim)}")
    return _mode_fault(pod, volume["name"], (found["spec"].get("volumeMode") or "Filesystem") == "Block")


def _mode_fault(pod: Object, name: str, block: bool) -> str:
    containers = [c for group in ("initContainers", "containers") for c in pod["spec"].get(group) or ()]
    mounted = any(m["name"] == name for c in containers for m in c.get("volumeMounts") or ())
    device = any(d["name"] == name for c in containers for d in c.get("volumeDevices") or ())
    if block and mounted:
        return f"volume {name} has volumeMode Block, but is specified in volumeMounts"
    if device and not block:
        return f"volume {name} has volumeMode Filesystem, but is specified in volumeDevices"
    return ""


def reachable(volume: Object, place: admit.Place) -> bool:
    """Whether the volume's node affinity admits this node."""
    required = objects.get(volume, "spec.nodeAffinity.required", None)
    return required is None or placement.takes(required, place)


class Claims:
    """Lookups of one node; `place()` is this node as volumes ask for it."""

    def __init__(self, client: Client, place: Callable[[], admit.Place]) -> None:
        self._client, self._place = client, place
        self._known: dict[str, dict[str, Claimed]] = {}  # by pod uid and volume name

    async def resolve(self, pod: Object, volume: Object, *, fresh: bool = False) -> Claimed:
        """The volume behind a pod's `persistentVolumeClaim` or `ephemeral`, asked for anew when `fresh`. Raises
        ConfigError, ApiError."""
        known = self._known.setdefault(pod["metadata"]["uid"], {})
        if fresh or volume["name"] not in known:
            known[volume["name"]] = await self._read(pod, volume)
        return known[volume["name"]]

    async def _read(self, pod: Object, volume: Object) -> Claimed:
        space, name = pod["metadata"].get("namespace", ""), claim_name(pod, volume)
        try:
            claim = await self._client.get(CLAIMS, name, space)
        except NotFound as error:
            raise ConfigError(f"error processing PVC {space}/{name}: failed to fetch PVC from API server: "
                              f"{error.message}") from error
        found = None
        bound = claim["spec"].get("volumeName")
        if bound and objects.get(claim, "status.phase", "") == "Bound":
            try:
                found = await self._client.get(VOLUMES, bound)
            except NotFound:
                pass
            except ApiError as error:
                raise ConfigError(f"failed to fetch PV {bound} from API server: {error.message}") from error
        if why := fault(pod, volume, claim, found):
            raise ConfigError(f"error processing PVC {space}/{name}: {why}")
        assert found is not None
        if not reachable(found, self._place()):
            raise ConfigError(f'NodeAffinity check failed for volume "{bound}" : no matching NodeSelectorTerms')
        return Claimed(found, claim, bool((volume.get("persistentVolumeClaim") or {}).get("readOnly")))

    def release(self, uid: str) -> None:
        """The pod is gone."""
        self._known.pop(uid, None)
