"""Which zone each endpoint of a Service is for, so that every zone has endpoints by its share of the nodes' CPUs.

Pure. Owns what `service.kubernetes.io/topology-mode: Auto` means: endpoints serve their own zone, and zones with more
than their share give some to zones with less. Where that would leave a zone overloaded by more than a fifth nobody gets
a hint, and the sentence why is upstream's. Promises to move as few endpoints as it must. Called by `slices`.

Upstream: k8s.io/endpointslice/topologycache.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.machinery import objects, quantity

MODES = ("service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode")  # the first one counts
ZONE = "topology.kubernetes.io/zone"
EXCLUDED = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
OVERLOAD = 0.2  # share by which the endpoints of a zone may have more to do than the average
NO_NODES = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
TOO_FEW = "Insufficient number of endpoints ({} endpoints, {} zones)"
UNEVEN = ("Unable to allocate minimum required endpoints to each zone without exceeding overload threshold ({} "
          "endpoints, {} zones)")
NO_ZONE = "One or more endpoints do not have a zone specified"
ENABLED = "Topology Aware Hints has been enabled"

Obj = dict[str, Any]
Key = tuple[str, ...]  # names an endpoint
Shares = Mapping[str, float]  # zone -> its part of all CPUs, 0–1
UNKNOWN: Shares = {}


def automatic(service: Obj) -> bool:
    """Whether the Service asks for hints by shares."""
    notes = objects.annotations(service)
    return next((notes[key] for key in MODES if key in notes), "") in ("Auto", "auto")


def facts(node: Obj) -> tuple[str, int] | None:
    """(zone, milli-CPUs) of a node that counts, "" and 0 for what it does not say; None for one that does not."""
    labels = objects.labels(node)
    if any(key in labels for key in EXCLUDED) or not objects.holds(node, "Ready"):
        return None
    return labels.get(ZONE, ""), quantity.parse(str(objects.get(node, "status.allocatable.cpu", "0"))).milli()


def shares(nodes: Iterable[Obj]) -> Shares:
    """Each zone's part of the CPUs; empty while that is not known of every node, or there is only one zone."""
    found: Counter[str] = Counter()
    for node in nodes:
        fact = facts(node)
        if fact is not None:
            if not fact[0] or not fact[1]:
                return UNKNOWN
            found[fact[0]] += fact[1]
    total = sum(found.values())
    return {zone: cpus / total for zone, cpus in found.items()} if len(found) > 1 else UNKNOWN


def allocate(places: Mapping[Key, str], wanted: Shares,
             before: Mapping[Key, str]) -> tuple[dict[Key, str], str]:
    """(the zone each endpoint is for, "") or ({}, why there are no hints). `places`: the zone each ready endpoint is
    in; `before`: the zone it was for."""
    count = len(places)
    if not wanted:
        return {}, NO_NODES
    if len(wanted) > count:
        return {}, TOO_FEW.format(count, len(wanted))
    least = {zone: math.ceil(share * count / (1 + OVERLOAD)) for zone, share in wanted.items()}
    if sum(least.values()) > count:
        return {}, UNEVEN.format(count, len(wanted))
    if not all(places.values()):
        return {}, NO_ZONE
    result = dict(places)
    desired = {zone: max(share * count, least[zone]) for zone, share in wanted.items()}
    for giver, receiver in _moves(Counter(places.values()), desired):
        result[_given(result, places, before, giver, receiver)] = receiver
    return result, ""


def _moves(have: Mapping[str, int], desired: Mapping[str, float]) -> list[tuple[str, str]]:
    """Single endpoints from the zone that has the most too many to the one that lacks most, while it is worth it."""
    surplus = {zone: have.get(zone, 0) - desired.get(zone, 0.0) for zone in {*have, *desired}}
    gives = {zone: value for zone, value in surplus.items() if value > 0}
    lacks = {zone: -value for zone, value in surplus.items() if value < 0}
    found = []
    while gives and lacks:
        giver = min(gives, key=lambda zone: (-gives[zone], zone))
        receiver = min(lacks, key=lambda zone: (-lacks[zone], zone))
        if min(gives[giver], lacks[receiver]) <= 0 or max(gives[giver], lacks[receiver]) < 0.5:
            break
        gives[giver] -= 1
        lacks[receiver] -= 1
        found.append((giver, receiver))
    return found


def _given(result: Mapping[Key, str], places: Mapping[Key, str], before: Mapping[Key, str], giver: str,
           receiver: str) -> Key:
    """The endpoint a zone gives away: the one that was for the other zone already, if there is one."""
    own = [key for key, zone in result.items() if zone == giver and places[key] == giver]
    return next((key for key in own if before.get(key) == receiver), own[-1])
