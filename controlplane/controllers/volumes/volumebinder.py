"""Binds claims to volumes, and tells provisioners which claims want one made.

Runs `binding`'s steps for each claim and volume that changed. Promises that a claim is never bound to two volumes nor a
volume to two claims: every write carries the version it was decided on, and the claim's uid is looked up at the server
before its volume is released. Makes and deletes no storage itself: that is a provisioner's, ours (`localpath`) or
another's. One worker: a hundred bindings a second are enough, and no two of them race. Called by `manager`.

Upstream: pkg/controller/volume/persistentvolume.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import PODS, Context, Controller, set_status
from controlplane.controllers.volumes import binding, localvolumes, matching
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import named

CLAIMS, VOLUMES = named("persistentvolumeclaims"), named("persistentvolumes")
CLASSES = named("storageclasses.storage.k8s.io")
EXTERNAL = ("Waiting for a volume to be created either by the external provisioner '{}' or manually by the system "
            "administrator. If volume creation is delayed, please verify that the provisioner is running and correctly "
            "registered.")
EXPANDING = "waiting for an external controller to expand this PVC"

Obj = dict[str, Any]


def by_volume(claim: Obj) -> list[str]:
    """Index of claims: the volume they name."""
    return [objects.get(claim, "spec.volumeName", "")]


def by_open_class(claim: Obj) -> list[str]:
    """Index of claims that have no volume yet: their class."""
    return [] if objects.get(claim, "spec.volumeName") else [matching.class_of(claim)]


def by_claim(volume: Obj) -> list[str]:
    """Index of volumes: `namespace/name` of the claim they are for."""
    key = matching.key_of_claim(volume)
    return ["/".join(key)] if key is not None else []


def by_free_class(volume: Obj) -> list[str]:
    """Index of volumes that are for no claim: their class."""
    return [] if objects.get(volume, "spec.claimRef") is not None else [matching.class_of(volume)]


def wishes_of(pod: Obj) -> list[str]:
    """Index of pods without a node: `namespace/name` of the claims they wait with."""
    if objects.get(pod, "spec.nodeName"):
        return []
    return [f"{objects.namespace(pod)}/{name}" for name, _ in podfacts.claim_names(pod)]


class VolumeBinder(Controller):
    """Keys are ("claim", namespace, name) and ("volume", "", name)."""

    name = "persistentvolume-controller"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.claims = context.informer(CLAIMS, volume=by_volume, open=by_open_class)
        self.volumes = context.informer(VOLUMES, claim=by_claim, free=by_free_class)
        self.classes = context.informer(CLASSES)
        self.pods = context.informer(PODS, wishes=wishes_of)
        super().__init__(context, self.claims, self.volumes, self.classes, self.pods)
        self.claims.subscribe(self._claim_changed)
        self.volumes.subscribe(self._volume_changed)
        self.classes.subscribe(self._class_changed)

    def _claim_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED":
            self.queue.add(("claim", *objects.key(new)))
        for volume in self.volumes.by("claim", "/".join(objects.key(new))):
            self.queue.add(("volume", *objects.key(volume)))

    def _volume_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED":
            self.queue.add(("volume", *objects.key(new)))
        for claim in self.claims.by("volume", objects.name(new)):
            self.queue.add(("claim", *objects.key(claim)))
        if (key := matching.key_of_claim(new)) is not None:
            self.queue.add(("claim", *key))
        elif objects.get(new, "status.phase") == "Available":
            self._wake(matching.class_of(new))

    def _class_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        self._wake(objects.name(new))
        self._wake("")  # a new default class may be what they wait for

    def _wake(self, name: str) -> None:
        for claim in self.claims.by("open", name):
            self.queue.add(("claim", *objects.key(claim)))

    async def reconcile(self, key: tuple[str, str, str]) -> float | None:
        informer = self.claims if key[0] == "claim" else self.volumes
        obj = informer.get(*key[1:])
        if obj is None:
            return None
        try:
            await (self._claim(obj) if key[0] == "claim" else self._volume(obj))
        except NotFound:
            pass  # it is gone: its event is on the way
        return None

    # --- claims ------------------------------------------------------------------------------------------------

    async def _claim(self, claim: Obj) -> None:
        bound = matching.BIND_COMPLETED in objects.annotations(claim)
        if not bound:
            if objects.deleting(claim):
                return
            if not matching.names_class(claim) and (found := matching.default_class(self.classes.items())) is not None \
                    and not objects.get(claim, "spec.volumeName"):
                claim = await self.client.update(CLAIMS, {**claim, "spec": {
                    **claim["spec"], "storageClassName": objects.name(found)}})
        where = "/".join(objects.key(claim))
        candidates = [*self.volumes.by("claim", where), *self.volumes.by("free", matching.class_of(claim))]
        named_one = self.volumes.get("", objects.get(claim, "spec.volumeName", ""))
        waiting = self.pods.by("wishes", where)
        step = binding.of_claim(claim, candidates, named_one, self.classes.get("", matching.class_of(claim)),
                                objects.name(waiting[0]) if waiting else "")
        if step.bind is not None:
            await self._bind(claim, step.bind)
            return
        if step.event is not None and (step.phase != "Lost" or objects.get(claim, "status.phase") != "Lost"):
            self.recorder.event(claim, *step.event)
        if step.provision:
            claim = await self._ask_for_volume(claim)
        await set_status(self.client, CLAIMS, claim, binding.claim_status(claim, step.phase, None))

    async def _bind(self, claim: Obj, volume: Obj) -> None:
        """Each write is left out when it is done already."""
        if (wanted := binding.volume_bound(volume, claim)) is not None:
            volume = await self.client.update(VOLUMES, wanted)
        volume = await set_status(self.client, VOLUMES, volume,
                                  binding.volume_status(volume, "Bound", self.clock.timestamp()))
        if (wanted := binding.claim_bound(claim, volume)) is not None:
            claim = await self.client.update(CLAIMS, wanted)
        claim = await set_status(self.client, CLAIMS, claim, binding.claim_status(claim, "Bound", volume))
        if matching.asked(claim) > matching.size(volume):
            self.recorder.event(claim, "Normal", "ExternalExpanding", EXPANDING)

    async def _ask_for_volume(self, claim: Obj) -> Obj:
        """The claim, marked for the provisioner of its class."""
        name = matching.class_of(claim)
        storage_class = self.classes.get("", name)
        if storage_class is None:
            self.recorder.event(claim, "Warning", "ProvisioningFailed",
                                f'storageclass.storage.k8s.io "{name}" not found')
            return claim
        provisioner = storage_class.get("provisioner", "")
        if provisioner.startswith("kubernetes.io/"):
            self.recorder.event(claim, "Warning", "ProvisioningFailed",
                                f"no volume plugin matched name: {provisioner}")
            return claim
        if provisioner != localvolumes.PROVISIONER:
            self.recorder.event(claim, "Normal", "ExternalProvisioning", EXTERNAL.format(provisioner))
        notes = {matching.PROVISIONER: provisioner, matching.OLD_PROVISIONER: provisioner}
        if notes.items() <= objects.annotations(claim).items():
            return claim
        return await self.client.update(CLAIMS, {**claim, "metadata": {
            **claim["metadata"], "annotations": {**objects.annotations(claim), **notes}}})

    # --- volumes -----------------------------------------------------------------------------------------------

    async def _volume(self, volume: Obj) -> None:
        step = binding.of_volume(volume, await self._claim_of(volume))
        if step.unbind:
            volume = await self.client.update(VOLUMES, binding.unbound(volume))
        if step.phase:
            volume = await self._phase(volume, step.phase)
        if step.reclaim:
            await self._reclaim(volume)
        key = matching.key_of_claim(volume)
        if step.claim_first and key is not None and self.claims.get(*key) is not None:
            self.queue.add(("claim", *key))

    async def _claim_of(self, volume: Obj) -> Obj | None:
        """The claim the volume is bound to, by the server's word where memory does not show it."""
        ref, key = objects.get(volume, "spec.claimRef") or {}, matching.key_of_claim(volume)
        if key is None or not ref.get("uid"):
            return None
        claim = self.claims.get(*key)
        if claim is None or objects.uid(claim) != ref["uid"]:
            try:
                claim = await self.client.get(CLAIMS, key[1], key[0])
            except NotFound:
                return None
        return claim if objects.uid(claim) == ref["uid"] else None

    async def _phase(self, volume: Obj, phase: str, message: str = "") -> Obj:
        return await set_status(self.client, VOLUMES, volume,
                                binding.volume_status(volume, phase, self.clock.timestamp(), message))

    async def _reclaim(self, volume: Obj) -> None:
        """Say what nobody will do; what a provisioner made, it takes back itself."""
        policy = objects.get(volume, "spec.persistentVolumeReclaimPolicy", "Retain")
        theirs = matching.PROVISIONED_BY in objects.annotations(volume) or objects.get(volume, "spec.csi") is not None
        if policy == "Retain" or (policy == "Delete" and theirs) or objects.get(volume, "status.phase") == "Failed":
            return
        reason, message = ("VolumeFailedDelete", "no deletable volume plugin matched") if policy == "Delete" else (
            "VolumeFailedRecycle", "no recyclable volume plugin matched")
        self.recorder.event(volume, "Warning", reason, message)
        await self._phase(volume, "Failed", message)
