"""PersistentVolumes and claims: which volume fits a claim, and what the annotations between the two mean.

Pure. Owns the match by size, class, mode, access and labels, smallest volume first, and the words for a misfit.
Promises that a volume that somebody reserved for a claim goes to no other. Called by `binding`, `volumebinder` and
`localpath`.

Upstream: k8s.io/component-helpers/storage/volume and pkg/controller/volume/persistentvolume/index.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from controlplane.machinery import objects, quantity, selectors

BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
OLD_PROVISIONER = "volume.beta.kubernetes.io/storage-provisioner"  # what older provisioners read
SELECTED_NODE = "volume.kubernetes.io/selected-node"
OLD_CLASS = "volume.beta.kubernetes.io/storage-class"
DEFAULT_CLASS = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
SIZES = 1024  # sizes remembered as numbers: claims come in round ones

Obj = dict[str, Any]


@lru_cache(SIZES)
def _bytes(text: str) -> int:
    """Nothing for what is no quantity: such a volume fits no claim."""
    try:
        return quantity.parse(text).value()
    except ValueError:
        return 0


def class_of(obj: Obj) -> str:
    """The storage class of a claim or a volume, "" for none."""
    return objects.annotations(obj).get(OLD_CLASS) or objects.get(obj, "spec.storageClassName", "")


def names_class(claim: Obj) -> bool:
    """Whether the claim says which class it wants; "" is an answer too: none."""
    return OLD_CLASS in objects.annotations(claim) or objects.get(claim, "spec.storageClassName") is not None


def default_class(classes: Iterable[Obj]) -> Obj | None:
    """The default class: of several the one made last, of those made in one second the first by name."""
    marked = [one for one in classes if any(objects.annotations(one).get(key) == "true" for key in DEFAULT_CLASS)]
    marked.sort(key=objects.name)
    return max(marked, key=lambda one: one["metadata"].get("creationTimestamp") or "", default=None)


def waits_for_pod(storage_class: Obj | None) -> bool:
    """Whether claims of the class are bound only when a pod that uses them has a node."""
    return (storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer"


def asked(claim: Obj) -> int:
    """Bytes."""
    return _bytes(str(objects.get(claim, "spec.resources.requests.storage", "0")))


def size(volume: Obj) -> int:
    """Bytes."""
    return _bytes(str(objects.get(volume, "spec.capacity.storage", "0")))


def is_for(volume: Obj, claim: Obj) -> bool:
    """Whether the volume is bound to the claim, or reserved for one of its name."""
    ref = objects.get(volume, "spec.claimRef")
    return ref is not None and (ref.get("namespace"), ref.get("name")) == objects.key(claim) \
        and ref.get("uid") in (None, "", objects.uid(claim))


def misfit(volume: Obj, claim: Obj) -> str:
    """Why the volume cannot serve the claim at all; "" when it can."""
    if asked(claim) > size(volume):
        return "requested PV is too small"
    if class_of(volume) != class_of(claim):
        return "storageClassName does not match"
    if _attributes(volume) != _attributes(claim):
        return "volumeAttributesClassName does not match"
    if _mode(volume) != _mode(claim):
        return "incompatible volumeMode: " + _mode(volume)
    if not _access(claim) <= _access(volume):
        return "incompatible accessMode"
    return ""


def _attributes(obj: Obj) -> str:
    return objects.get(obj, "spec.volumeAttributesClassName", "")


def _mode(obj: Obj) -> str:
    return objects.get(obj, "spec.volumeMode", "Filesystem")


def _access(obj: Obj) -> set[str]:
    return set(objects.get(obj, "spec.accessModes", []))


def best(claim: Obj, volumes: Iterable[Obj], reserved_only: bool) -> Obj | None:
    """The volume the claim should have: one reserved for it, else the smallest that fits, of the narrowest access.

    `reserved_only`: free ones are the scheduler's to choose, which knows where the pod can run."""
    selector = objects.get(claim, "spec.selector")
    wanted = selectors.from_label_selector(selector) if selector is not None else None
    found: list[Obj] = []
    for volume in volumes:
        if objects.deleting(volume) or size(volume) < asked(claim) or _mode(volume) != _mode(claim) \
                or _attributes(volume) != _attributes(claim) or not _access(claim) <= _access(volume):
            continue
        if objects.get(volume, "spec.claimRef") is not None:
            if is_for(volume, claim):
                return volume
        elif not reserved_only and objects.get(volume, "status.phase") == "Available" \
                and class_of(volume) == class_of(claim) \
                and (wanted is None or wanted.matches(objects.labels(volume))):
            found.append(volume)
    return min(found, key=lambda one: (len(_access(one)), size(one), objects.name(one)), default=None)


def reference(claim: Obj) -> Obj:
    """A volume's reference to its claim."""
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": objects.namespace(claim),
            "name": objects.name(claim), "uid": objects.uid(claim), "resourceVersion": objects.revision(claim)}


def key_of_claim(volume: Obj) -> tuple[str, str] | None:
    """(namespace, name) of the claim the volume names."""
    ref = objects.get(volume, "spec.claimRef")
    return (ref.get("namespace", ""), ref.get("name", "")) if ref is not None else None
