"""How good a fitting node is, 0–100 per scorer, weighted as upstream does by default. Pure.

Two parts: `base(ask, node)` depends on the node alone and needs no comparison; `marks` (taints it should avoid, wishes
it meets) only mean something relative to the other fitting nodes, which `normalised` makes of them. Called by `table`.

Upstream: the score plugins of pkg/scheduler/framework/plugins and their weights in apis/config/v1/default_plugins.go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.machinery.placement import term_matches, tolerates
from controlplane.scheduler.fit import Ask
from controlplane.scheduler.snapshot import NodeInfo, Snapshot

BEST = 100.0
MIB = 1024 * 1024
IMAGE_LEAST, IMAGE_MOST = 23 * MIB, 1000 * MIB  # bytes of present images that count as nothing, and as all
ROUNDING = 6  # digits: sums of equal parts must compare equal


Resources = tuple[tuple[str, int], ...]  # names with weights
EVENLY: Resources = (("cpu", 1), ("memory", 1))


@dataclass(frozen=True, slots=True)
class Strategy:
    """How full nodes are liked: free ones (LeastAllocated), full ones (MostAllocated), or by `shape`, points of
    (utilisation 0–100, score 0–100) with straight lines between them (RequestedToCapacityRatio)."""

    kind: str = "LeastAllocated"
    resources: Resources = EVENLY
    shape: tuple[tuple[int, float], ...] = ()


LEAST_ALLOCATED = Strategy()


@dataclass(frozen=True, slots=True)
class Weights:
    """What each scorer counts; 0 switches it off. Equal ones rank all nodes alike."""

    taints: int = 3
    affinity: int = 2
    spread: int = 2
    neighbours: int = 2
    fit: int = 1
    balanced: int = 1
    images: int = 1
    strategy: Strategy = LEAST_ALLOCATED
    balance: Resources = EVENLY  # what `balanced` looks at
    pull: int = 1  # a running pod's required affinity in a newcomer's score: hardPodAffinityWeight
    shy: bool = False  # pods without preferences ignore those of running pods: ignorePreferredTermsOfExistingPods


DEFAULT = Weights()


def _used(wants: Ask, node: NodeInfo, resource: str) -> int:
    """What is taken once the pod runs there; containers that ask for nothing count as a little."""
    if resource == "cpu":
        return node.cpu_floor + wants.demand.cpu_floor
    if resource == "memory":
        return node.memory_floor + wants.demand.memory_floor
    return node.requested.get(resource, 0) + wants.demand.requests.get(resource, 0)


def _liked(strategy: Strategy, share: float) -> float:
    """0–100 for a node of which `share` would be used."""
    if strategy.kind == "LeastAllocated":
        return BEST * max(0.0, 1 - share)
    if strategy.kind == "MostAllocated":
        return BEST * min(1.0, share)
    utilisation, before = 100 * min(1.0, share), strategy.shape[0]
    for point in strategy.shape:
        if utilisation <= point[0]:
            run = point[0] - before[0]
            return point[1] if not run else before[1] + (point[1] - before[1]) * (utilisation - before[0]) / run
        before = point
    return before[1]


def _fit(wants: Ask, node: NodeInfo, strategy: Strategy) -> float:
    """The weighted mean of how the use of each resource is liked, 0–100."""
    total, weights = 0.0, 0
    for resource, weight in strategy.resources:
        have = node.allocatable.get(resource, 0)
        if not have or (resource not in ("cpu", "memory") and not wants.demand.requests.get(resource)):
            continue
        points = _liked(strategy, _used(wants, node, resource) / have)
        if points or not strategy.shape:  # by a shape, resources without a point do not count
            total += weight * points
            weights += weight
    return total / weights if weights else 0.0


def _balance(wants: Ask, node: NodeInfo, resources: Resources) -> float:
    """How near the used shares of the resources are to each other; only for pods that ask for something."""
    asked = wants.demand.requests
    if not asked:
        return 0.0
    shares = [min(1.0, (node.requested.get(name, 0) + asked.get(name, 0)) / have) for name, _ in resources
              if (have := node.allocatable.get(name, 0)) and (name in ("cpu", "memory") or asked.get(name))]
    if len(shares) < 2:
        return BEST
    mean = sum(shares) / len(shares)
    return BEST * (1 - math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares)))


def _images(wants: Ask, node: NodeInfo, snapshot: Snapshot, nodes: int) -> float:
    """Bytes of the pod's images that are there, each scaled by how common it is, lest all pods run to one node."""
    if not node.images or not nodes:
        return 0.0
    present = sum(node.images[name] * snapshot.images.get(name, 0) / nodes
                  for name in map(_tagged, wants.images) if name in node.images)
    most = IMAGE_MOST * len(wants.images)
    return BEST * (min(max(present, IMAGE_LEAST), most) - IMAGE_LEAST) / (most - IMAGE_LEAST)


def _tagged(image: str) -> str:
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def base(wants: Ask, node: NodeInfo, weights: Weights, snapshot: Snapshot, nodes: int) -> float:
    """The weighted part that the node's own state decides; `nodes` is how many there are."""
    found = weights.fit * _fit(wants, node, weights.strategy) if weights.fit else 0.0
    if weights.balanced:
        found += weights.balanced * _balance(wants, node, weights.balance)
    if weights.images and node.images:
        found += weights.images * _images(wants, node, snapshot, nodes)
    return round(found, ROUNDING)


def marks(wants: Ask, node: NodeInfo) -> tuple[int, int]:
    """(taints the pod should rather avoid, weight of its preferred node affinity that the node meets)."""
    shunned = sum(t.get("effect") == "PreferNoSchedule" and not any(tolerates(x, t) for x in wants.tolerations)
                  for t in node.taints) if node.taints else 0
    met = sum(p.get("weight", 0) for p in wants.preferred if term_matches(p.get("preference") or {}, node))
    return shunned, met


def normalised(raw: Sequence[float], reverse: bool = False) -> list[float]:
    """Counts to 0–100 of the highest; with `reverse` none is best."""
    most = max(raw, default=0)
    if most <= 0:
        return [BEST if reverse else 0.0] * len(raw)
    return [BEST * (1 - r / most) if reverse else BEST * r / most for r in raw]


def wished(raw: Sequence[float]) -> list[float]:
    """Weights of either sign to 0–100 between the lowest and the highest."""
    low, high = min(raw, default=0), max(raw, default=0)
    return [BEST * (r - low) / (high - low) for r in raw] if high > low else [0.0] * len(raw)


def spread(raw: Sequence[float | None]) -> list[float]:
    """Crowding to 0–100, the least crowded best; None (not comparable) is worst."""
    known = [r for r in raw if r is not None]
    low, high = min(known, default=0), max(known, default=0)
    return [0.0 if r is None else BEST if not high else BEST * (high + low - r) / high for r in raw]
