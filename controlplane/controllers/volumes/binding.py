"""The next step of one claim and of one volume towards each other.

Pure. Owns the states of the two-way binding: the volume names its claim first, then the claim its volume, and each
phase follows. Every step can be repeated, so a binding that broke off anywhere is completed from what is stored. A
claim whose volume is gone is Lost; a volume whose claim is gone is Released and never given to another.
Called by `volumebinder`.

Upstream: pkg/controller/volume/persistentvolume/pv_controller.go (syncClaim, syncVolume).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlplane.controllers.volumes import matching
from controlplane.machinery import objects

LOST_REFERENCE = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"
LOST_VOLUME = "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
MISBOUND = "Two claims are bound to the same volume, this one is bound incorrectly"
WAITING = "waiting for first consumer to be created before binding"
NONE_LEFT = "no persistent volumes available for this claim and no storage class is set"

Obj = dict[str, Any]
Event = tuple[str, str, str]


@dataclass(slots=True)
class ClaimStep:
    """Bind the claim to `bind`, or else give it `phase`; `provision` asks its class for a volume."""

    bind: Obj | None = None
    phase: str = "Pending"
    provision: bool = False
    event: Event | None = None


@dataclass(slots=True)
class VolumeStep:
    """Give the volume `phase`; `unbind` its claim, if that has another volume; `reclaim` it by its policy."""

    phase: str = ""
    unbind: bool = False
    reclaim: bool = False
    claim_first: bool = False  # the claim's own step completes the binding


# --- claims ------------------------------------------------------------------------------------------------------

def of_claim(claim: Obj, candidates: list[Obj], named: Obj | None, storage_class: Obj | None,
             consumer: str) -> ClaimStep:
    """`candidates` are all volumes that may be for the claim, `named` is the one it names, `consumer` a pod that uses
    the claim and has no node yet."""
    if matching.BIND_COMPLETED in objects.annotations(claim):
        return _bound(claim, named)
    if objects.get(claim, "spec.volumeName"):
        return _wished(claim, named)
    chosen = bool(objects.annotations(claim).get(matching.SELECTED_NODE))
    waits = matching.waits_for_pod(storage_class) and not chosen
    found = matching.best(claim, candidates, waits)
    if found is not None:
        return ClaimStep(bind=found)
    if waits:
        if consumer:
            return ClaimStep(event=("Normal", "WaitForPodScheduled", f"waiting for pod {consumer} to be scheduled"))
        return ClaimStep(event=("Normal", "WaitForFirstConsumer", WAITING))
    if matching.class_of(claim):
        return ClaimStep(provision=True)
    return ClaimStep(event=("Normal", "FailedBinding", NONE_LEFT))


def _wished(claim: Obj, named: Obj | None) -> ClaimStep:
    """The claim names its volume, but they are not bound yet."""
    if named is None:
        return ClaimStep()
    if objects.get(named, "spec.claimRef") is None:
        if why := matching.misfit(named, claim):
            return ClaimStep(event=("Warning", "VolumeMismatch",
                                    f'Cannot bind to requested volume "{objects.name(named)}": {why}'))
        return ClaimStep(bind=named)
    if matching.is_for(named, claim):
        return ClaimStep(bind=named)
    return ClaimStep(event=("Warning", "FailedBinding",
                            f'volume "{objects.name(named)}" already bound to a different claim.'))


def _bound(claim: Obj, named: Obj | None) -> ClaimStep:
    if not objects.get(claim, "spec.volumeName"):
        return ClaimStep(phase="Lost", event=("Warning", "ClaimLost", LOST_REFERENCE))
    if named is None:
        return ClaimStep(phase="Lost", event=("Warning", "ClaimLost", LOST_VOLUME))
    ref = objects.get(named, "spec.claimRef")
    if ref is None or ref.get("uid") == objects.uid(claim):
        return ClaimStep(bind=named)
    return ClaimStep(phase="Lost", event=("Warning", "ClaimMisbound", MISBOUND))


def volume_bound(volume: Obj, claim: Obj) -> Obj | None:
    """The volume naming the claim; None when it does."""
    ref = objects.get(volume, "spec.claimRef")
    if ref is not None and matching.is_for(volume, claim) and ref.get("uid") == objects.uid(claim):
        return None
    meta = dict(volume["metadata"])
    if ref is None:  # nobody but us decided this, so we may undo it
        meta["annotations"] = {**objects.annotations(volume), matching.BOUND_BY_CONTROLLER: "yes"}
    return {**volume, "metadata": meta, "spec": {**volume["spec"], "claimRef": {**(ref or {}),
                                                                               **matching.reference(claim)}}}


def claim_bound(claim: Obj, volume: Obj) -> Obj | None:
    """The claim naming the volume; None when it does."""
    notes = dict(objects.annotations(claim))
    ours = objects.get(claim, "spec.volumeName") != objects.name(volume)
    if ours:
        notes[matching.BOUND_BY_CONTROLLER] = "yes"
    notes[matching.BIND_COMPLETED] = "yes"
    if not ours and notes == objects.annotations(claim):
        return None
    return {**claim, "metadata": {**claim["metadata"], "annotations": notes},
            "spec": {**claim["spec"], "volumeName": objects.name(volume)}}


def claim_status(claim: Obj, phase: str, volume: Obj | None) -> Obj:
    """The claim's status in the phase; what others report in it stays."""
    status = objects.deep_copy(claim.get("status") or {})
    status["phase"] = phase
    if volume is None:
        for field in ("accessModes", "capacity"):
            status.pop(field, None)
        return status
    spec = volume["spec"]
    status["accessModes"] = spec.get("accessModes", [])
    if status.get("capacity", {}).get("storage") is None:  # a later size is told by whoever expands the file system
        status["capacity"] = {**status.get("capacity", {}), "storage": objects.get(spec, "capacity.storage", "0")}
    if attributes := spec.get("volumeAttributesClassName"):
        status.setdefault("currentVolumeAttributesClassName", attributes)
    return status


# --- volumes -----------------------------------------------------------------------------------------------------

def of_volume(volume: Obj, claim: Obj | None) -> VolumeStep:
    """`claim` is the one the volume names, None when there is none of its name and uid."""
    ref = objects.get(volume, "spec.claimRef")
    if ref is None or not ref.get("uid"):
        return VolumeStep("Available", claim_first=ref is not None)
    if claim is None:
        over = objects.get(volume, "status.phase") in ("Released", "Failed")
        return VolumeStep("" if over else "Released", reclaim=True)
    bound_to = objects.get(claim, "spec.volumeName")
    if not bound_to:
        return VolumeStep(claim_first=True)
    if bound_to == objects.name(volume):
        return VolumeStep("Bound")
    notes = objects.annotations(volume)
    if matching.PROVISIONED_BY in notes and objects.get(volume, "spec.persistentVolumeReclaimPolicy") == "Delete":
        return VolumeStep("Released", reclaim=True)  # made for a claim that found another meanwhile
    return VolumeStep("Available", unbind=True)


def unbound(volume: Obj) -> Obj:
    """The volume without its claim; a reservation that somebody made himself stays one."""
    notes = dict(objects.annotations(volume))
    spec = dict(volume["spec"])
    if notes.pop(matching.BOUND_BY_CONTROLLER, None) is None:
        spec["claimRef"] = {field: value for field, value in spec["claimRef"].items()
                            if field not in ("uid", "resourceVersion")}
    else:
        del spec["claimRef"]
    return {**volume, "metadata": {**volume["metadata"], "annotations": notes}, "spec": spec}


def volume_status(volume: Obj, phase: str, stamp: str, message: str = "") -> Obj:
    """The volume's status in the phase since `stamp`; a phase it is in already keeps its time and words."""
    status = dict(volume.get("status") or {})
    if status.get("phase") == phase:
        return status
    status["phase"], status["lastPhaseTransitionTime"] = phase, stamp
    status.pop("reason", None)
    status.pop("message", None)
    if message:
        status["message"] = message
    return status
