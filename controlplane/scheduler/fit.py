"""What one pod asks, and what of a node's own speaks against it. Pure.

Owns `Ask`, a pod read once, and `refusal(ask, node)`: everything a node refuses by itself, in upstream's words, so that
a verdict can count them. Like upstream, a node failing an earlier filter is not asked the later ones, but one that
lacks several resources names them all. What other pods in a node's domains speak against is asked of `constraints`.

Upstream: pkg/scheduler/framework/plugins (nodeunschedulable, nodename, tainttoleration, nodeaffinity, nodeports,
noderesources).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from controlplane.machinery import objects, placement
from controlplane.machinery.selectors import LabelSelector
from controlplane.scheduler import demand, terms
from controlplane.scheduler.demand import Demand
from controlplane.scheduler.snapshot import NodeInfo
from controlplane.scheduler.terms import Affinities, DefaultSpread, Spread

UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
UNSCHEDULABLE = "node(s) were unschedulable"
OTHER_NAME = "node(s) didn't match the requested node name"
SELECTOR = "node(s) didn't match Pod's node affinity/selector"
PORTS = "node(s) didn't have free ports for the requested pod ports"
TAINT = "node(s) had untolerated taint "
EXCLUDED = "node(s) didn't satisfy plugin(s) [NodeAffinity]"
TOO_MANY = "Too many pods"
INSUFFICIENT = "Insufficient "


Off = frozenset[str]  # filters that are switched off, by their plugins' names
EVERYTHING_ON: Off = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node does not take a pod. `final`: removing pods from it would not help."""

    reasons: tuple[str, ...]
    final: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """What a pod asks, read once from its spec. `kind` is equal for pods that every node treats alike by itself."""

    pod: dict[str, Any]
    demand: Demand
    node_name: str
    selector: Mapping[str, str]
    terms: list[dict[str, Any]] | None  # required node affinity; None = no such wish, [] = matches nothing
    preferred: list[dict[str, Any]]
    tolerations: list[dict[str, Any]]
    images: tuple[str, ...]
    affinities: Affinities
    hard: tuple[Spread, ...]
    soft: tuple[Spread, ...]
    namespace: str
    labels: Mapping[str, str]
    priority: int
    kind: bytes
    off: Off = EVERYTHING_ON


def ask(pod: dict[str, Any], family: LabelSelector | None = None,
        defaults: Sequence[DefaultSpread] = terms.SYSTEM_SPREADS, off: Off = EVERYTHING_ON) -> Ask:
    """`family` finds the pods of the same Services and workload, which a pod without constraints is spread among by
    `defaults`."""
    spec = pod.get("spec") or {}
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get(terms.REQUIRED)
    wanted = demand.of(pod)
    labels = objects.labels(pod)
    images = tuple(sorted([c.get("image", "") for field in ("containers", "initContainers")
                           for c in spec.get(field) or ()]
                          + [v["image"].get("reference", "") for v in spec.get("volumes") or () if v.get("image")]))
    hard, soft = terms.spreads(pod, "DoNotSchedule"), terms.spreads(pod, "ScheduleAnyway")
    if family is not None and not spec.get("topologySpreadConstraints"):
        hard, soft = (terms.default_spreads([one for one in defaults if one.hard == wanted_hard], family, labels)
                      for wanted_hard in (True, False))
    kind = orjson.dumps([wanted.requests, wanted.cpu_floor, wanted.memory_floor,
                         [[p.ip, p.protocol, p.port] for p in wanted.ports], spec.get("nodeName"),
                         spec.get("nodeSelector"), affinity, spec.get("tolerations"), images, sorted(off)],
                        option=orjson.OPT_SORT_KEYS)
    return Ask(pod, wanted, spec.get("nodeName") or "", spec.get("nodeSelector") or {},
               None if required is None else required.get("nodeSelectorTerms") or [],
               affinity.get(terms.PREFERRED) or [], spec.get("tolerations") or [], images, terms.affinities(pod),
               () if "PodTopologySpread" in off else hard, soft, objects.namespace(pod), labels,
               spec.get("priority") or 0, kind, off)


def ignoring(wants: Ask, resources: frozenset[str]) -> Ask:
    """The ask without resources that somebody else counts; a name that ends with a slash stands for its group."""
    kept = {name: value for name, value in wants.demand.requests.items()
            if name not in resources and f"{name.rpartition('/')[0]}/" not in resources}
    if len(kept) == len(wants.demand.requests):
        return wants
    return replace(wants, demand=replace(wants.demand, requests=kept), kind=wants.kind + orjson.dumps(sorted(kept)))


def shown(taint: Mapping[str, Any]) -> str:
    return f"{{{taint.get('key', '')}: {taint.get('value') or ''}}}"


def named_nodes(wants: Ask) -> set[str] | None:
    """The only nodes the pod can be meant for, where its affinity names them; None when it does not."""
    if not wants.terms or "NodeAffinity" in wants.off:
        return None
    names: set[str] = set()
    for term in wants.terms:
        lists = [set(r.get("values") or ()) for r in term.get("matchFields") or ()
                 if r.get("key") == "metadata.name" and r.get("operator") == "In"]
        if not lists:
            return None
        names |= set.intersection(*lists)
    return names


# --- the node by itself ------------------------------------------------------------------------------------------

def refusal(wants: Ask, node: NodeInfo) -> Refusal | None:
    """Why the node by itself does not take the pod; None when it does."""
    off = wants.off
    if node.unschedulable and "NodeUnschedulable" not in off and not any(
            placement.tolerates(t, UNSCHEDULABLE_TAINT) for t in wants.tolerations):
        return Refusal((UNSCHEDULABLE,), True)
    if wants.node_name and wants.node_name != node.name:
        return Refusal((OTHER_NAME,), True)
    if node.taints and "TaintToleration" not in off and (
            taint := placement.untolerated(wants.tolerations, node.taints)) is not None:
        return Refusal((TAINT + shown(taint),), True)
    if (wants.selector or wants.terms is not None) and "NodeAffinity" not in off and not placement.selects(
            wants.selector, wants.terms, node):
        return Refusal((SELECTOR,), True)
    if wants.demand.ports and "NodePorts" not in off and any(
            port.clashes(taken) for port in wants.demand.ports for taken in node.ports):
        return Refusal((PORTS,))
    return None if "NodeResourcesFit" in off else _short(wants.demand, node)


def _short(wanted: Demand, node: NodeInfo) -> Refusal | None:
    allocatable, requested = node.allocatable, node.requested
    lacking = [TOO_MANY] if node.pods + 1 > allocatable.get("pods", 0) else []
    final = False
    for name, value in wanted.requests.items():
        have = allocatable.get(name, 0)
        if value > have - requested.get(name, 0):
            lacking.append(INSUFFICIENT + name)
            final = final or value > have
    return Refusal(tuple(lacking), final) if lacking else None
