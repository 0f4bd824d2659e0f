"""The Endpoints object of a Service: the old form of EndpointSlices, still read by older clients.

Pure. Owns its packing into subsets of addresses with the same ports, in upstream's order, up to `LIMIT` addresses.
Called by `endpoints`. Upstream: pkg/controller/endpoint and endpoints.RepackSubsets.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.services import backends
from controlplane.controllers.services.backends import Backend, Port
from controlplane.machinery import objects

LIMIT = 1000  # addresses per object: upstream's bound, beyond which the object is marked as truncated
MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MANAGER = "endpoint-controller"
HEADLESS = "service.kubernetes.io/headless"
TRUNCATED = "endpoints.kubernetes.io/over-capacity"

Obj = dict[str, Any]


def desired(service: Obj, found: list[Backend], current: Obj | None) -> Obj:
    """The Endpoints as they should be; `current` itself when it is right already."""
    family = (objects.get(service, "spec.ipFamilies") or ["IPv4"])[0]
    listed = [one for one in found if one.addresses(family) and (not one.terminating or one.ready)]
    truncated = len(listed) > LIMIT
    listed = sorted(listed, key=lambda one: not one.ready)[:LIMIT]
    labels = {**objects.labels(service), MANAGED_BY: MANAGER}
    labels.pop(HEADLESS, None)
    if backends.headless(service):
        labels[HEADLESS] = ""
    annotations = dict(objects.annotations(current)) if current else {}
    annotations.pop(TRUNCATED, None)
    if truncated:
        annotations[TRUNCATED] = "truncated"
    packed = subsets(service, listed, family)
    if current is not None and (current.get("subsets") or [], objects.labels(current),
                                objects.annotations(current)) == (packed, labels, annotations):
        return current
    meta = dict(current["metadata"]) if current else {"name": objects.name(service),
                                                      "namespace": objects.namespace(service)}
    meta["labels"] = labels
    meta["annotations"] = annotations
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": packed}


def subsets(service: Obj, found: list[Backend], family: str) -> list[Obj]:
    groups: dict[tuple[Port, ...], tuple[list[Obj], list[Obj]]] = {}
    for backend in found:
        if not backend.ports and not backends.headless(service):
            continue
        ready, waiting = groups.setdefault(tuple(sorted(backend.ports, key=str)), ([], []))
        (ready if backend.ready else waiting).append(_address(service, backend, family))
    packed = []
    for ports, (ready, waiting) in sorted(groups.items(), key=str):
        subset: Obj = {}
        if ready:
            subset["addresses"] = sorted(ready, key=_order)
        if waiting:
            subset["notReadyAddresses"] = sorted(waiting, key=_order)
        if ports:
            subset["ports"] = [_port(port) for port in ports]
        packed.append(subset)
    return packed


def _order(address: Obj) -> tuple[str, str]:
    return address["ip"], address["targetRef"]["uid"]


def _address(service: Obj, backend: Backend, family: str) -> Obj:
    made: Obj = {"ip": backend.addresses(family)[0]}
    if name := backends.hostname(service, backend.pod):
        made["hostname"] = name
    if node := objects.get(backend.pod, "spec.nodeName"):
        made["nodeName"] = node
    return {**made, "targetRef": backends.target(backend.pod)}


def _port(port: Port) -> Obj:
    name, protocol, number, app = port
    made: Obj = {"name": name} if name else {}
    return made | {"port": number, "protocol": protocol} | ({"appProtocol": app} if app else {})
