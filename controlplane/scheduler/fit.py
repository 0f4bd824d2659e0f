"""Which nodes can take a pod, and why the others cannot. Pure.

`reasons(ask, node)` lists everything that speaks against a node, in upstream's words, so that a verdict can count them.
The order follows upstream's filter plugins; like upstream, a node failing an earlier filter is not asked the later
ones, but one that lacks several resources names them all.

Upstream: pkg/scheduler/framework/plugins (nodeunschedulable, nodename, tainttoleration, nodeaffinity, nodeports,
noderesources).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.scheduler import demand
from controlplane.scheduler.demand import Demand
from controlplane.scheduler.snapshot import NodeInfo

UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a pod asks, read once from its spec."""

    demand: Demand
    node_name: str
    selector: Mapping[str, str]
    terms: list[dict[str, Any]] | None  # required node affinity; None = no such wish, [] = matches nothing
    preferred: list[dict[str, Any]]
    tolerations: list[dict[str, Any]]
    owner: str
    images: tuple[str, ...]


def ask(pod: dict[str, Any]) -> Ask:
    spec = pod.get("spec") or {}
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    owner = next((r.get("uid", "") for r in pod["metadata"].get("ownerReferences") or [] if r.get("controller")), "")
    return Ask(demand.of(pod), spec.get("nodeName") or "", spec.get("nodeSelector") or {},
               None if required is None else required.get("nodeSelectorTerms") or [],
               affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or [], spec.get("tolerations") or [],
               owner, tuple(c.get("image", "") for c in spec.get("containers") or []))


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Whether one toleration covers one taint. An empty key with Exists covers all, an empty effect every effect."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    key = toleration.get("key") or ""
    if key and key != taint.get("key"):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(key) and (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(tolerations: list[dict[str, Any]], taints: list[dict[str, Any]],
                effects: tuple[str, ...]) -> dict[str, Any] | None:
    """The first taint of the given effects that no toleration covers."""
    for taint in taints:
        if taint.get("effect") in effects and not any(tolerates(t, taint) for t in tolerations):
            return taint
    return None


def _requirement(requirement: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    key, operator, wanted = requirement.get("key", ""), requirement.get("operator"), requirement.get("values") or []
    if operator == "Exists":
        return key in values
    if operator == "DoesNotExist":
        return key not in values
    if operator == "In":
        return values.get(key) in wanted
    if operator == "NotIn":
        return values.get(key) not in wanted
    try:
        have, limit = int(values[key]), int(wanted[0])
    except (KeyError, ValueError, IndexError):
        return False
    return have > limit if operator == "Gt" else have < limit


def term_matches(term: Mapping[str, Any], node: NodeInfo) -> bool:
    """One node selector term: all its expressions must hold; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    named = {"metadata.name": node.name}
    return all(_requirement(r, node.labels) for r in expressions) and all(_requirement(r, named) for r in fields)


def _shown(taint: Mapping[str, Any]) -> str:
    return f"{{{taint.get('key', '')}: {taint.get('value') or ''}}}"


def reasons(wants: Ask, node: NodeInfo) -> list[str]:
    """Why the pod cannot run on the node; empty when it can."""
    if node.unschedulable and not any(tolerates(t, UNSCHEDULABLE_TAINT) for t in wants.tolerations):
        return ["node(s) were unschedulable"]
    if wants.node_name and wants.node_name != node.name:
        return ["node(s) didn't match the requested node name"]
    taint = untolerated(wants.tolerations, node.taints, ("NoSchedule", "NoExecute"))
    if taint is not None:
        return [f"node(s) had untolerated taint {_shown(taint)}"]
    if any(node.labels.get(k) != v for k, v in wants.selector.items()) or (
            wants.terms is not None and not any(term_matches(t, node) for t in wants.terms)):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if any(port.clashes(taken) for port in wants.demand.ports for taken in node.ports):
        return ["node(s) didn't have free ports for the requested pod ports"]
    lacking = ["Too many pods"] if node.pods + 1 > node.allocatable.get("pods", 0) else []
    return lacking + [f"Insufficient {name}" for name, value in wants.demand.requests.items()
                      if value > node.free(name)]
