"""Endpoints that people write themselves, mirrored into the EndpointSlices that proxies and DNS read.

Owns the slices of Services without a selector whose Endpoints somebody else keeps. Promises to follow those Endpoints
with as few writes as `plan` finds, to tell by an event what is too much for it, and to leave alone what is marked
`skip-mirror` (the API server keeps the slices of its own Service itself) or is a leader's record. Called by `manager`.

Upstream: pkg/controller/endpointslicemirroring.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import SERVICES, STALE_SECONDS, Context, Controller
from controlplane.controllers.services import slices
from controlplane.controllers.services.endpoints import ENDPOINTS, SLICES, by_service, owners, write_slices
from controlplane.machinery import objects

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LIMIT = 1000  # addresses per subset that are mirrored: upstream's default
LEADER = "control-plane.alpha.kubernetes.io/leader"  # annotation of Endpoints that are a lock
_NOT_COPIED = {"kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"}

Obj = dict[str, Any]


def desired(endpoints: Obj) -> list[Obj]:
    """The slices, without names, that mirror one Endpoints object: one per subset and address family."""
    made = []
    for subset in endpoints.get("subsets") or ():
        entries = [*((a, True) for a in subset.get("addresses") or ()),
                   *((a, False) for a in subset.get("notReadyAddresses") or ())][:LIMIT]
        for family in ("IPv4", "IPv6"):
            found = [_endpoint(address, ready) for address, ready in entries
                     if (":" in address["ip"]) == (family == "IPv6")]
            for start in range(0, len(found), slices.LIMIT):
                made.append(_slice(endpoints, family, subset, found[start:start + slices.LIMIT]))
    return made


def skipped(endpoints: Obj) -> int:
    """How many addresses are more than is mirrored."""
    return sum(max(0, len(subset.get("addresses") or ()) + len(subset.get("notReadyAddresses") or ()) - LIMIT)
               for subset in endpoints.get("subsets") or ())


def _endpoint(address: Obj, ready: bool) -> Obj:
    made: Obj = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
    return made | {key: address[key] for key in ("hostname", "nodeName", "targetRef") if address.get(key)}


def _slice(endpoints: Obj, family: str, subset: Obj, entries: list[Obj]) -> Obj:
    labels = {k: v for k, v in objects.labels(endpoints).items() if k != slices.MANAGED_BY}
    labels |= {slices.SERVICE_NAME: objects.name(endpoints), slices.MANAGED_BY: MANAGER}
    annotations = {k: v for k, v in objects.annotations(endpoints).items() if k not in _NOT_COPIED}
    ports = [slices.port_entry((p.get("name") or "", p.get("protocol") or "TCP", p["port"], p.get("appProtocol") or ""))
             for p in subset.get("ports") or ()]
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": objects.namespace(endpoints), "labels": labels, "annotations": annotations,
                         "ownerReferences": [objects.owner_reference(endpoints)]},
            "endpoints": entries, "ports": ports}


def plan(wanted: list[Obj], current: list[Obj]) -> slices.Plan:
    """What turns `current` into `wanted`: equal slices stay, others are rewritten before any is made or deleted."""
    def content(one: Obj) -> tuple[Any, ...]:
        return (one.get("addressType"), one.get("ports") or [], one.get("endpoints") or [], objects.labels(one),
                objects.annotations(one))
    result, left = slices.Plan(), list(current)
    missing = []
    for one in wanted:
        same = next((have for have in left if content(have) == content(one)), None)
        if same is not None:
            left.remove(same)
        else:
            missing.append(one)
    for one in missing:
        spare = next((have for have in left if have.get("addressType") == one["addressType"]), None)
        if spare is None:
            result.create.append(one)
            continue
        left.remove(spare)
        result.update.append({**one, "metadata": {**spare["metadata"], "labels": one["metadata"]["labels"],
                                                  "annotations": one["metadata"]["annotations"]}})
    result.delete = left
    return result


class Mirror(Controller):
    """Keys are (namespace, name) of a Service and its Endpoints."""

    name = "endpoint-slice-mirroring-controller"

    def __init__(self, context: Context) -> None:
        self.services = context.informer(SERVICES)
        self.endpoints = context.informer(ENDPOINTS)
        self.slices = context.informer(SLICES, service=by_service)
        super().__init__(context, self.services, self.endpoints, self.slices)
        for informer in (self.services, self.endpoints):
            informer.subscribe(lambda kind, old, new: self.queue.add(objects.key(new)))
        self.slices.subscribe(self._slice_changed)

    def _slice_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for key in owners(MANAGER, old, new):
            self.queue.add(key)

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        if not self.pending.settled(key, self.slices):
            return STALE_SECONDS
        service, endpoints = self.services.get(*key), self.endpoints.get(*key)
        mirrored = (service is not None and endpoints is not None and not objects.deleting(endpoints)
                    and not objects.get(service, "spec.selector") and objects.labels(endpoints).get(SKIP) != "true"
                    and LEADER not in objects.annotations(endpoints))
        mine = [one for one in self.slices.by("service", f"{key[0]}/{key[1]}")
                if objects.labels(one).get(slices.MANAGED_BY) == MANAGER and not objects.deleting(one)]
        wanted = desired(endpoints) if mirrored and endpoints is not None else []
        steps = plan(wanted, mine)
        if endpoints is not None and mirrored and steps != slices.Plan() and (more := skipped(endpoints)):
            self.recorder.event(endpoints, "Warning", "TooManyAddressesToMirror",
                                f"A max of {LIMIT} addresses can be mirrored to EndpointSlices per Endpoints subset. "
                                f"{more} addresses were skipped")
        await write_slices(self, key, steps)
        return None
