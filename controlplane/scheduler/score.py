"""How good a fitting node is, 0–100 per scorer, weighted as upstream does by default. Pure.

Two parts: `base(ask, node)` depends on the node alone and needs no comparison; `marks` (taints it should avoid, wishes
it meets) only mean something relative to the other fitting nodes, which `normalised` makes of them. Called by `table`.

Upstream: the score plugins of pkg/scheduler/framework/plugins and their weights in apis/config/v1/default_plugins.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.scheduler.fit import Ask, term_matches, tolerates
from controlplane.scheduler.snapshot import NodeInfo, Snapshot

BEST = 100.0
MIB = 1024 * 1024
IMAGE_LEAST, IMAGE_MOST = 23 * MIB, 1000 * MIB  # bytes of present images that count as nothing, and as all
ROUNDING = 6  # digits: sums of equal parts must compare equal


@dataclass(frozen=True, slots=True)
class Weights:
    """What each scorer counts; 0 switches it off."""

    taints: int = 3
    affinity: int = 2
    spread: int = 2
    neighbours: int = 2
    least: int = 1
    balanced: int = 1
    images: int = 1
    most: int = 0  # MostAllocated instead of LeastAllocated: packs nodes


DEFAULT = Weights()


def _free(wants: Ask, node: NodeInfo) -> float:
    """The mean share of cpu and memory left once the pod runs there, 0–100."""
    total, parts = 0.0, 0
    cpu, memory = node.allocatable.get("cpu", 0), node.allocatable.get("memory", 0)
    if cpu:
        parts += 1
        total += max(0.0, 1 - (node.cpu_floor + wants.demand.cpu_floor) / cpu)
    if memory:
        parts += 1
        total += max(0.0, 1 - (node.memory_floor + wants.demand.memory_floor) / memory)
    return BEST * total / parts if parts else 0.0


def _balance(wants: Ask, node: NodeInfo) -> float:
    """How near the used shares of cpu and memory are to each other; only for pods that ask for something."""
    asked = wants.demand.requests
    if not asked:
        return 0.0
    cpu, memory = node.allocatable.get("cpu", 0), node.allocatable.get("memory", 0)
    if not cpu or not memory:
        return BEST
    used_cpu = min(1.0, (node.requested.get("cpu", 0) + asked.get("cpu", 0)) / cpu)
    used_memory = min(1.0, (node.requested.get("memory", 0) + asked.get("memory", 0)) / memory)
    return BEST * (1 - abs(used_cpu - used_memory) / 2)


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
    free = _free(wants, node) if weights.least or weights.most else 0.0
    found = weights.least * free + weights.most * (BEST - free) + weights.balanced * _balance(wants, node)
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
