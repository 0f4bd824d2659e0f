"""Where a pod's volumes let it run, and what must be bound once it has a node. Pure.

Owns the judgement of claims: bound ones hold the pod where their volume is, unbound ones that wait for a first consumer
take a free volume that the node can reach or ask their class to make one there. Promises to hand out no volume twice
while a binding is under way (`reserved`). The looking-up is a `Shelf`'s; `binder` carries decisions out.

Upstream: pkg/scheduler/framework/plugins/{volumebinding,volumerestrictions,volumezone,nodevolumelimits}.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from controlplane.controllers.volumes import matching
from controlplane.machinery import objects, placement, podfacts, quantity, selectors
from controlplane.scheduler.fit import Refusal
from controlplane.scheduler.snapshot import NodeInfo, Snapshot

UNREACHABLE = Refusal(("node(s) didn't match PersistentVolume's node affinity",), True)
NO_SPACE = Refusal(("node(s) did not have enough free storage",), True)
NONE_TO_BIND = Refusal(("node(s) didn't find available persistent volumes to bind",), True)
OTHER_ZONE = Refusal(("node(s) had no available volume zone",), True)
TOO_MANY = Refusal(("node(s) exceed max volume count",))
IN_USE = Refusal(("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",))
UNBOUND = "pod has unbound immediate PersistentVolumeClaims"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
ZONE_LABELS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region",
               "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region")
Obj = dict[str, Any]


class Shelf(Protocol):
    """What is stored about volumes."""

    def claim(self, namespace: str, name: str) -> Obj | None: ...
    def volume(self, name: str) -> Obj | None: ...
    def volumes(self) -> Iterable[Obj]: ...
    def storage_class(self, name: str) -> Obj | None: ...
    def csi_node(self, name: str) -> Obj | None: ...
    def csi_driver(self, name: str) -> Obj | None: ...
    def capacities(self) -> Iterable[Obj]: ...


@dataclass(slots=True)
class Needs:
    """The claims of one pod, sorted by what they still need. `outright`: why no node will do; "" when one might."""

    outright: str = ""
    bound: list[Obj] = field(default_factory=list)  # volumes
    open: list[tuple[Obj, Obj]] = field(default_factory=list)  # claims that wait for a node, with their class
    exclusive: list[str] = field(default_factory=list)  # `namespace/name` of ReadWriteOncePod claims


@dataclass(slots=True)
class Choice:
    """What to bind for a pod on its node: claims to volumes that exist, and claims to be provisioned for."""

    static: list[tuple[Obj, Obj]] = field(default_factory=list)
    provision: list[Obj] = field(default_factory=list)


def needs(pod: Obj, shelf: Shelf) -> Needs | None:
    """None for a pod without claims."""
    names = podfacts.claim_names(pod)
    if not names:
        return None
    found, namespace = Needs(), objects.namespace(pod)
    for name, own in names:
        claim = shelf.claim(namespace, name)
        if claim is None:
            found.outright = (f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{name}"'
                              if own else f'persistentvolumeclaim "{name}" not found')
            return found
        if objects.deleting(claim):
            found.outright = f'persistentvolumeclaim "{name}" is being deleted'
            return found
        if objects.get(claim, "status.phase") == "Lost":
            found.outright = (f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume '
                              f'"{objects.get(claim, "spec.volumeName", "")}"')
            return found
        if own and (objects.controller_of(claim) or {}).get("uid") != objects.uid(pod):
            found.outright = f'PVC "{namespace}/{name}" was not created for pod "{namespace}/{objects.name(pod)}"'
            return found
        _sort(found, claim, shelf)
    return found


def _sort(found: Needs, claim: Obj, shelf: Shelf) -> None:
    if "ReadWriteOncePod" in objects.get(claim, "spec.accessModes", ()):
        found.exclusive.append("/".join(objects.key(claim)))
    name = objects.get(claim, "spec.volumeName", "")
    if name and matching.BIND_COMPLETED in objects.annotations(claim):
        volume = shelf.volume(name)
        if volume is None:
            found.outright = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
        else:
            found.bound.append(volume)
        return
    storage_class = shelf.storage_class(matching.class_of(claim))
    if storage_class is not None and matching.waits_for_pod(storage_class) and not name:
        found.open.append((claim, storage_class))
    else:
        found.outright = UNBOUND


def reaches(volume: Obj, node: NodeInfo) -> bool:
    """Whether the volume can be used on the node."""
    required = objects.get(volume, "spec.nodeAffinity.required", None)
    return required is None or placement.takes(required, node)


def _zoned(volume: Obj, node: NodeInfo) -> bool:
    labels = objects.labels(volume)
    if not any(key in node.labels for key in ZONE_LABELS):
        return True
    return all(node.labels.get(key) in labels[key].split("__") for key in ZONE_LABELS if key in labels)


def refusal(wanted: Needs, node: NodeInfo, shelf: Shelf, reserved: dict[str, tuple[str, str]],
            snapshot: Snapshot) -> Refusal | None:
    """Why the node, perhaps without some pods, does not do for the pod's volumes; None when it does."""
    for claim in wanted.exclusive:
        if any(uid in node.placed or snapshot.node_of(uid) != node.name for uid in snapshot.users.get(claim, ())):
            return IN_USE
    for volume in wanted.bound:
        if not reaches(volume, node):
            return UNREACHABLE
        if not _zoned(volume, node):
            return OTHER_ZONE
    if wanted.open and isinstance(refused := choose(wanted, node, shelf, reserved), Refusal):
        return refused
    return TOO_MANY if _exceeds(wanted, node, shelf) else None


def choose(wanted: Needs, node: NodeInfo, shelf: Shelf, reserved: dict[str, tuple[str, str]]) -> Choice | Refusal:
    """What to bind if the pod goes to `node`, or why a claim finds nothing there."""
    found, taken = Choice(), set()
    for claim, storage_class in sorted(wanted.open, key=lambda pair: matching.asked(pair[0])):
        free = [v for v in shelf.volumes() if objects.name(v) not in taken and reaches(v, node)
                and reserved.get(objects.name(v), objects.key(claim)) == objects.key(claim)]
        volume = matching.best(claim, free, False)
        if volume is not None:
            taken.add(objects.name(volume))
            found.static.append((claim, volume))
        elif storage_class.get("provisioner") == NO_PROVISIONER or not _allowed(storage_class, node):
            return NONE_TO_BIND
        elif not _has_space(claim, storage_class, node, shelf):
            return NO_SPACE
        else:
            found.provision.append(claim)
    return found


def _has_space(claim: Obj, storage_class: Obj, node: NodeInfo, shelf: Shelf) -> bool:
    """Whether the class's driver, if it tells of its capacity, has enough within the node's reach."""
    driver = shelf.csi_driver(storage_class.get("provisioner", ""))
    if driver is None or not objects.get(driver, "spec.storageCapacity", False):
        return True
    name, size = objects.name(storage_class), matching.asked(claim)
    return any(one.get("storageClassName") == name and one.get("nodeTopology") is not None
               and (limit := one.get("maximumVolumeSize") or one.get("capacity")) is not None
               and quantity.parse(str(limit)).value() >= size
               and selectors.from_label_selector(one["nodeTopology"]).matches(node.labels)
               for one in shelf.capacities())


def _allowed(storage_class: Obj, node: NodeInfo) -> bool:
    """Whether the class may make volumes for the node's place."""
    terms = storage_class.get("allowedTopologies") or ()
    return not terms or any(all(node.labels.get(e["key"]) in e["values"] for e in t.get("matchLabelExpressions") or ())
                            for t in terms)


def _exceeds(wanted: Needs, node: NodeInfo, shelf: Shelf) -> bool:
    """Whether a CSI driver of the pod's volumes could not attach them all to the node."""
    asked = {(csi["driver"], csi["volumeHandle"]) for v in wanted.bound if (csi := objects.get(v, "spec.csi", None))}
    for _, storage_class in wanted.open:
        asked.add((storage_class.get("provisioner", ""), f"new {len(asked)}"))
    limits = {d["name"]: count for d in objects.get(shelf.csi_node(node.name) or {}, "spec.drivers", None) or ()
              if (count := objects.get(d, "allocatable.count", None)) is not None}
    if not any(driver in limits for driver, _ in asked):
        return False
    here: set[tuple[str, str]] = set()
    for placed in node.placed.values():
        theirs = needs(placed.pod, shelf)
        for volume in theirs.bound if theirs is not None else ():
            if csi := objects.get(volume, "spec.csi", None):
                here.add((csi["driver"], csi["volumeHandle"]))
    together = here | asked
    return any(driver in limits and sum(d == driver for d, _ in together) > limits[driver]
               for driver, _ in asked - here)
