"""What of a Node follows from its machine in a cloud, and which routes its pods need.

Pure. Owns the patches of an uninitialized node, of one whose machine is off, and the difference of routes. Called by
`controllers.cloudnodes` and `controllers.cloudroutes`.

Upstream: k8s.io/cloud-provider/controllers/{node,nodelifecycle,route}.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.cloud.provider import Metadata, Route
from controlplane.machinery import objects

UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
SHUT_DOWN = "node.cloudprovider.kubernetes.io/shutdown"
_LABELS = {"instance_type": ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type"),
           "zone": ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
           "region": ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region")}
Obj = dict[str, Any]


def is_uninitialized(node: Obj) -> bool:
    return any(taint["key"] == UNINITIALIZED for taint in objects.get(node, "spec.taints", ()) or ())


def initialized(node: Obj, known: Metadata) -> Obj:
    """A merge patch: the machine's name and place, and no taint any more that keeps pods away until these are told."""
    labels = {label: value for field, names in _LABELS.items() if (value := getattr(known, field)) for label in names}
    taints = [t for t in objects.get(node, "spec.taints", ()) or () if t["key"] != UNINITIALIZED]
    spec: Obj = {"taints": taints or None}
    if known.provider_id and not objects.get(node, "spec.providerID"):
        spec["providerID"] = known.provider_id
    return {"metadata": {"labels": labels, "resourceVersion": node["metadata"]["resourceVersion"]}, "spec": spec}


def addressed(node: Obj, known: Metadata) -> Obj | None:
    """A merge patch of the status with the addresses the cloud tells; None when the node has them."""
    wanted = [{"type": kind, "address": address} for kind, address in known.addresses]
    if not any(kind == "Hostname" for kind, _ in known.addresses):
        wanted.append({"type": "Hostname", "address": objects.name(node)})
    have = objects.get(node, "status.addresses", ())
    return None if not known.addresses or have == wanted else {"status": {"addresses": wanted}}


def switched(node: Obj, off: bool) -> Obj | None:
    """A merge patch that taints a node whose machine is off, or frees one whose machine is on again; None if so."""
    taints = list(objects.get(node, "spec.taints", ()) or ())
    rest = [taint for taint in taints if taint["key"] != SHUT_DOWN]
    if (len(rest) < len(taints)) == off:
        return None
    wanted = [*rest, {"key": SHUT_DOWN, "effect": "NoSchedule"}] if off else rest
    return {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": wanted or None}}


def difference(nodes: Iterable[Obj], present: Iterable[Route]) -> tuple[list[Route], list[Route]]:
    """(routes to create, routes to delete)."""
    wanted = {Route(cidr, objects.name(node)) for node in nodes if not objects.deleting(node)
              for cidr in objects.get(node, "spec.podCIDRs") or [objects.get(node, "spec.podCIDR", "")] if cidr}
    have = set(present)
    return sorted(wanted - have), sorted(have - wanted)
