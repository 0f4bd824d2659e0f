"""The EndpointSlices of a Service: from what is there to what should be, with few writes.

Pure. Owns the cutting into slices: one address family and one set of ports per slice, up to `LIMIT` endpoints. Promises
that an endpoint which stays keeps its slice, so that a change of one pod rewrites one slice. Called by `endpoints`.

Upstream: k8s.io/endpointslice/reconciler.go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.services import backends, topology
from controlplane.controllers.services.backends import Backend, Port
from controlplane.controllers.services.topology import Shares
from controlplane.machinery import objects

LIMIT = 100  # endpoints per slice: upstream's default
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
HEADLESS = "service.kubernetes.io/headless"
NEAR = {"PreferClose", "PreferSameZone", "PreferSameNode"}  # trafficDistribution that keeps traffic in its zone
_OWN_LABELS = {SERVICE_NAME, MANAGED_BY, HEADLESS}

Obj = dict[str, Any]


@dataclass(slots=True)
class Plan:
    """Slices to create (without a name), to update (whole), to delete; why there are no topology hints, or that there
    are some now, by address family."""

    create: list[Obj] = field(default_factory=list)
    update: list[Obj] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)


def plan(service: Obj, found: list[Backend], slices: list[Obj], zone_of: Callable[[str], str],
         shares: Shares = topology.UNKNOWN) -> Plan:
    """What turns `slices` (ours, of this Service) into those for `found`; `zone_of` a node's name, "" for none."""
    result = Plan()
    for family in objects.get(service, "spec.ipFamilies") or ["IPv4"]:
        groups: dict[tuple[Port, ...], dict[tuple[str, ...], Obj]] = {}
        for backend in found:
            if addresses := backend.addresses(family):
                key = (objects.uid(backend.pod), *addresses)
                groups.setdefault(backend.ports, {})[key] = endpoint(service, backend, addresses, zone_of)
        mine = [one for one in slices if one.get("addressType") == family]
        if topology.automatic(service):
            _hint(family, [pair for group in groups.values() for pair in group.items()], mine, shares, result)
        _family(service, family, groups or {(): {}}, mine, result)
    families = objects.get(service, "spec.ipFamilies") or ["IPv4"]
    result.delete += [one for one in slices if one.get("addressType") not in families]
    return result


def endpoint(service: Obj, backend: Backend, addresses: list[str], zone_of: Callable[[str], str]) -> Obj:
    made: Obj = {"addresses": addresses, "conditions": {"ready": backend.ready, "serving": backend.serving,
                                                        "terminating": backend.terminating}}
    if name := backends.hostname(service, backend.pod):
        made["hostname"] = name
    node = objects.get(backend.pod, "spec.nodeName", "")
    zone = zone_of(node) if node else ""
    made |= {key: value for key, value in (("nodeName", node), ("zone", zone)) if value}
    made["targetRef"] = backends.target(backend.pod)
    if backend.ready and not topology.automatic(service) and (
            hints := _preferred(objects.get(service, "spec.trafficDistribution", ""), node, zone)):
        made["hints"] = hints
    return made


def _hint(family: str, entries: list[tuple[tuple[str, ...], Obj]], slices: list[Obj], shares: Shares,
          result: Plan) -> None:
    """Tell each ready endpoint which zone it is for; nobody where the zones cannot be served evenly."""
    before = {_key(entry): objects.get(entry, "hints.forZones")[0]["name"] for one in slices
              for entry in one.get("endpoints") or () if objects.get(entry, "hints.forZones")}
    places = {key: entry.get("zone", "") for key, entry in entries if entry["conditions"]["ready"]}
    chosen, why = topology.allocate(places, shares, before)
    for key, entry in entries:
        if key in chosen:
            entry["hints"] = {"forZones": [{"name": chosen[key]}]}
    if why or not before:
        result.hints[family] = why or topology.ENABLED


def _preferred(distribution: str, node: str, zone: str) -> Obj:
    """Whom the endpoint is for, by the Service's `trafficDistribution`; proxies may take others when these are few."""
    result: Obj = {}
    if zone and distribution in NEAR:
        result["forZones"] = [{"name": zone}]
    if node and distribution == "PreferSameNode":
        result["forNodes"] = [{"name": node}]
    return result


def _key(entry: Obj) -> tuple[str, ...]:
    return (objects.get(entry, "targetRef.uid", ""), *entry["addresses"])


def _ports_of(one: Obj) -> tuple[Port, ...]:
    return tuple((p.get("name") or "", p.get("protocol") or "TCP", p.get("port"), p.get("appProtocol") or "")
                 for p in one.get("ports") or ())


def _family(service: Obj, family: str, groups: dict[tuple[Port, ...], dict[tuple[str, ...], Obj]],
            slices: list[Obj], result: Plan) -> None:
    spare: list[Obj] = []  # slices nothing belongs to any more: reused before one is made
    kept: list[tuple[tuple[Port, ...], list[tuple[Obj, list[Obj]]], list[Obj]]] = []
    by_ports: dict[tuple[Port, ...], list[Obj]] = {}
    for one in sorted(slices, key=objects.name):
        by_ports.setdefault(_ports_of(one), []).append(one)
    for ports, wanted in groups.items():
        left = dict(wanted)
        filled: list[tuple[Obj, list[Obj]]] = []
        for one in by_ports.pop(ports, []):
            stay = [left.pop(_key(entry)) for entry in one.get("endpoints") or () if _key(entry) in left]
            if stay:
                filled.append((one, stay))
            else:
                spare.append(one)
        kept.append((ports, filled, list(left.values())))
    spare += [one for group in by_ports.values() for one in group]
    for ports, filled, more in kept:
        _place(service, family, ports, filled, more, spare, result)
    result.delete += spare


def _place(service: Obj, family: str, ports: tuple[Port, ...], filled: list[tuple[Obj, list[Obj]]],
           more: list[Obj], spare: list[Obj], result: Plan) -> None:
    """Put the new endpoints into slices that are rewritten anyway, then into those with room, then into others."""
    def changed(one: Obj, entries: list[Obj]) -> bool:
        return entries != (one.get("endpoints") or [])
    for one, entries in sorted(filled, key=lambda pair: not changed(*pair)):
        room = LIMIT - len(entries)
        entries += more[:room]
        del more[:room]
        _update(service, one, ports, entries, result)
    while more or not filled:
        entries, more = more[:LIMIT], more[LIMIT:]
        if spare:
            _update(service, spare.pop(0), ports, entries, result)
        else:
            result.create.append(build(service, family, ports, entries))
        filled = [*filled, ({}, entries)]


def _update(service: Obj, one: Obj, ports: tuple[Port, ...], entries: list[Obj], result: Plan) -> None:
    wanted = build(service, one["addressType"], ports, entries)
    same = (_ports_of(one) == ports and (one.get("endpoints") or []) == entries
            and objects.labels(one) == wanted["metadata"]["labels"])
    if not same:
        wanted["metadata"] = {**one["metadata"], "labels": wanted["metadata"]["labels"]}
        result.update.append(wanted)


def build(service: Obj, family: str, ports: tuple[Port, ...], entries: list[Obj]) -> Obj:
    labels = {k: v for k, v in objects.labels(service).items() if k not in _OWN_LABELS}
    labels |= {SERVICE_NAME: objects.name(service), MANAGED_BY: MANAGER}
    if backends.headless(service):
        labels[HEADLESS] = ""
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": objects.namespace(service), "labels": labels,
                         "ownerReferences": [objects.owner_reference(service)]},
            "endpoints": entries, "ports": [port_entry(port) for port in ports]}


def port_entry(port: Port) -> Obj:
    name, protocol, number, app = port
    return {"name": name, "protocol": protocol, "port": number} | ({"appProtocol": app} if app else {})
