"""A pod's claims for devices: which it has, which nodes they allow, and what to write before the pod is bound. Pure.

Owns the judgement of ResourceClaims: an allocated one holds the pod where its devices are, one without devices gets
some of the node's; extended resources that a DeviceClass provides make one more, with what the node's device plugins
have not. Promises to give no device to two pods while a write is under way (`granted`). The looking-up is a `Shelf`'s;
`binder` carries grants out. Called by `decider`; pods without claims cost nothing.

Upstream: pkg/scheduler/framework/plugins/dynamicresources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from controlplane.machinery import objects, placement
from controlplane.scheduler import demand, extended
from controlplane.scheduler.allocation import Request, Search, Wanted
from controlplane.scheduler.devices import Id, Inventory
from controlplane.scheduler.fit import INSUFFICIENT, Refusal
from controlplane.scheduler.snapshot import NodeInfo

ELSEWHERE = Refusal(("resourceclaim not available on the node",), True)
CANNOT = Refusal(("cannot allocate all claims",), True)
FINALIZER = "resource.kubernetes.io/delete-protection"  # kept by a claim while it is allocated
RESERVATIONS = 256  # consumers of one claim: the API's limit
Obj = dict[str, Any]
Granted = Mapping[str, Obj]  # uid of a claim -> the allocation that is being written


class Shelf(Protocol):
    """What is stored about devices."""

    def device_claim(self, namespace: str, name: str) -> Obj | None: ...
    def device_claims(self) -> Iterable[Obj]: ...
    def device_class(self, name: str) -> Obj | None: ...
    def device_classes(self) -> Iterable[Obj]: ...
    def device_slices(self) -> Iterable[Obj]: ...


@dataclass(slots=True)
class Needs:
    """The claims of one pod. `outright`: why no node will do; "" when one might. `provided`: the extended resources it
    asks for that a class provides; `stale`: claims for them that an attempt before left."""

    pod: Obj
    provided: dict[str, Obj] = field(default_factory=dict)
    stale: list[Obj] = field(default_factory=list)
    outright: str = ""
    held: list[tuple[Obj, Obj]] = field(default_factory=list)  # claims with their allocation
    open: list[Wanted] = field(default_factory=list)
    taken: set[Id] = field(default_factory=set)
    inventory: Inventory = field(default_factory=lambda: Inventory(()))


@dataclass(slots=True)
class Grant:
    """What to write for a pod: each claim with the allocation it gets, None where it has one. Where one of them stands
    for extended resources, `mappings` are for the pod's status; `stale` claims go before."""

    claims: list[tuple[Obj, Obj | None]] = field(default_factory=list)
    mappings: list[Obj] = field(default_factory=list)
    stale: list[Obj] = field(default_factory=list)


def asked(pod: Obj) -> list[Obj]:
    return (pod.get("spec") or {}).get("resourceClaims") or []


def needs(pod: Obj, shelf: Shelf, granted: Granted) -> Needs | None:
    """None for a pod without claims."""
    entries, provided = asked(pod), extended.classes(pod, shelf.device_classes())
    if not entries and not provided:
        return None
    found, namespace = Needs(pod, provided), objects.namespace(pod)
    made = {one["name"]: one.get("resourceClaimName") for one in (pod.get("status") or {}).get(
        "resourceClaimStatuses") or ()}
    for entry in entries:
        own = bool(entry.get("resourceClaimTemplateName"))
        name = made.get(entry["name"]) if own else entry.get("resourceClaimName")
        if not name:
            if entry["name"] not in made:
                found.outright = f'pod "{namespace}/{objects.name(pod)}": ResourceClaim not created yet'
                return found
            continue  # its template made none: there is nothing to wait for
        claim = shelf.device_claim(namespace, name)
        found.outright = _judge(claim, name, pod, own)
        if claim is None or found.outright:
            return found
        found.outright = _sort(found, claim, shelf, granted)
        if found.outright:
            return found
    if found.open or provided:
        found.stale = extended.written(pod, shelf.device_claims()) if provided else []
        found.taken = taken((one for one in shelf.device_claims() if one not in found.stale), granted)
        found.inventory = Inventory(shelf.device_slices())
    return found


def _judge(claim: Obj | None, name: str, pod: Obj, own: bool) -> str:
    """Why a claim cannot be used by the pod at all; "" when it can."""
    if claim is None:
        return f'resourceclaim.resource.k8s.io "{name}" not found'
    if objects.deleting(claim):
        return f'resourceclaim "{name}" is being deleted'
    if own and (objects.controller_of(claim) or {}).get("uid") != objects.uid(pod):
        where = objects.namespace(pod)
        return f"ResourceClaim {where}/{name} was not created for pod {where}/{objects.name(pod)} (pod is not owner)"
    reserved = objects.get(claim, "status.reservedFor", None) or []
    if len(reserved) >= RESERVATIONS and all(one.get("uid") != objects.uid(pod) for one in reserved):
        return "resourceclaim in use"
    return ""


def _sort(found: Needs, claim: Obj, shelf: Shelf, granted: Granted) -> str:
    """Put the claim where it belongs; why that cannot be, "" when it can."""
    allocation = objects.get(claim, "status.allocation", None) or granted.get(objects.uid(claim))
    if allocation is not None:
        found.held.append((claim, allocation))
        return ""
    requests: list[list[Request]] = []
    for request in objects.get(claim, "spec.devices.requests", None) or ():
        exactly, alternatives = request.get("exactly"), request.get("firstAvailable") or ()
        named = [(request["name"], exactly)] if exactly else [
            (f"{request['name']}/{one['name']}", one) for one in alternatives]
        listed = []
        for name, given in named:
            device_class = shelf.device_class(given["deviceClassName"])
            if device_class is None:
                return f"request {name}: device class {given['deviceClassName']} does not exist"
            listed.append(Request(name, given, device_class))
        requests.append(listed)
    found.open.append(Wanted(claim, requests))
    return ""


def taken(stored: Iterable[Obj], granted: Granted) -> set[Id]:
    """The devices that claims have, or are about to have; an administrator's access takes none."""
    allocations = {**granted, **{objects.uid(one): objects.get(one, "status.allocation", None)
                                 or granted.get(objects.uid(one)) for one in stored}}.values()
    return {(one["driver"], one["pool"], one["device"]) for allocation in allocations if allocation is not None
            for one in objects.get(allocation, "devices.results", None) or () if not one.get("adminAccess")}


def refusal(wanted: Needs, node: NodeInfo) -> Refusal | None:
    """Why the node does not do for the pod's claims; None when it does."""
    if any(allocation.get("nodeSelector") and not placement.takes(allocation["nodeSelector"], node)
           for _, allocation in wanted.held):
        return ELSEWHERE
    asked_for = demand.of(wanted.pod).requests if wanted.provided else {}
    if short := [name for name in wanted.provided
                 if 0 < node.allocatable.get(name, 0) < asked_for[name] + node.requested.get(name, 0)]:
        return Refusal(tuple(INSUFFICIENT + name for name in short))
    claims = opened(wanted, node)
    if not claims:
        return None
    try:
        return None if Search(claims, node, wanted.inventory, wanted.taken).run() is not None else CANNOT
    except ValueError as error:
        return Refusal((f"claim selector cannot be judged: {error}",), True)


def grant(wanted: Needs, node: NodeInfo) -> Grant:
    """What to write if the pod goes to `node`, which `refusal` has let pass."""
    found = Grant([(claim, None) for claim, _ in wanted.held], stale=wanted.stale)
    if claims := opened(wanted, node):
        results = Search(claims, node, wanted.inventory, wanted.taken).run() or ()
        found.claims += [(one.claim, result) for one, result in zip(claims, results)]
        found.mappings = extended.requested(wanted.pod, lacking(wanted, node))[1]
    return found


def lacking(wanted: Needs, node: NodeInfo) -> dict[str, Obj]:
    """The extended resources that no device plugin of the node provides, with their classes."""
    return {name: one for name, one in wanted.provided.items() if not node.allocatable.get(name)}


def opened(wanted: Needs, node: NodeInfo) -> list[Wanted]:
    """The claims that would get devices of the node, the one for extended resources among them."""
    if not (provided := lacking(wanted, node)):
        return wanted.open
    requests, _ = extended.requested(wanted.pod, provided)
    of = {objects.name(one): one for one in provided.values()}
    return [*wanted.open, Wanted(extended.claim(wanted.pod, requests), [
        [Request(one["name"], one["exactly"], of[one["exactly"]["deviceClassName"]])] for one in requests])]


def reserved(claim: Obj, allocation: Obj | None, pod: Obj) -> Obj | None:
    """The claim's status once the pod holds it; None when that is so already."""
    status = dict(claim.get("status") or {})
    consumers = status.get("reservedFor") or []
    if any(one.get("uid") == objects.uid(pod) for one in consumers) and allocation is None:
        return None
    if allocation is not None:
        status["allocation"] = allocation
    status["reservedFor"] = [*(one for one in consumers if one.get("uid") != objects.uid(pod)),
                             {"resource": "pods", "name": objects.name(pod), "uid": objects.uid(pod)}]
    return status


def freed(claim: Obj, whole: bool, pod: Obj) -> Obj | None:
    """The claim's status without the pod, and without devices if `whole` and nobody else has it; None: no change."""
    status = dict(claim.get("status") or {})
    consumers = status.get("reservedFor") or []
    left = [one for one in consumers if one.get("uid") != objects.uid(pod)]
    if whole and not left:
        status.pop("allocation", None)
        status.pop("devices", None)
    status["reservedFor"] = left
    return status if status != (claim.get("status") or {}) else None


def idle(wanted: Needs, pod: Obj) -> Obj | None:
    """The first claim with devices that nobody but the pod has."""
    return next((claim for claim, _ in wanted.held if objects.get(claim, "status.allocation", None) is not None and all(
        one.get("uid") == objects.uid(pod) for one in objects.get(claim, "status.reservedFor", None) or ())), None)
