"""Which node answers for a load balancer's address.

Pure. Owns the order: every node ranks the candidates of an address the same way, by a hash of both names, so addresses
spread over the nodes, nobody has to be asked, and when a node goes only its addresses move. Candidates are the ready
nodes; of a Service with external policy Local those with an endpoint. The first candidate that answers has the address.

Called by `announce`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

ANNOUNCED = "pelamis.local/announced"  # annotation: the Service's address is from a pool of ours
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
Obj = dict[str, Any]


def ranked(address: str, candidates: Iterable[str]) -> list[str]:
    return sorted(candidates, key=lambda node: hashlib.sha256(f"{node}/{address}".encode()).digest())


def ready(nodes: Iterable[Obj]) -> dict[str, str]:
    """Names and addresses of the nodes that may announce anything."""
    found = {}
    for node in nodes:
        meta, status = node["metadata"], node.get("status") or {}
        fine = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
        inner = next((a["address"] for a in status.get("addresses") or () if a.get("type") == "InternalIP"), "")
        if fine and inner and not meta.get("deletionTimestamp") and EXCLUDED not in (meta.get("labels") or {}):
            found[meta["name"]] = inner
    return found


def wanted(service: Obj) -> list[str]:
    """The addresses of a Service that nodes announce."""
    spec, meta = service.get("spec") or {}, service["metadata"]
    if spec.get("type") != "LoadBalancer" or ANNOUNCED not in (meta.get("annotations") or {}):
        return []
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [entry["ip"] for entry in ingress if entry.get("ip")]


def candidates(service: Obj, slices: Iterable[Obj], nodes: Collection[str]) -> set[str]:
    if (service.get("spec") or {}).get("externalTrafficPolicy") != "Local":
        return set(nodes)
    return {e["nodeName"] for piece in slices for e in piece.get("endpoints") or ()
            if e.get("nodeName") in nodes and (e.get("conditions") or {}).get("ready") is not False}


def mine(own: str, ranks: Mapping[str, list[str]], silent: Collection[str]) -> set[str]:
    """The addresses whose first candidate that is not silent is this node."""
    return {address for address, order in ranks.items()
            if next((node for node in order if node == own or node not in silent), None) == own}


def ahead(own: str, ranks: Mapping[str, list[str]]) -> set[str]:
    """The nodes that come before this one anywhere: those whose silence matters here."""
    return {node for order in ranks.values() if own in order for node in order[:order.index(own)]}
