"""Which of the fitting nodes is best. Pure.

Each scorer gives 0–100; weights follow upstream's defaults. Spreading counts the pods of the same controller on a node,
which is what upstream's default topology spread does for a single-zone cluster.

Upstream: the score plugins of pkg/scheduler/framework/plugins and their weights in apis/config/v1/default_plugins.go.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.scheduler.fit import Ask, term_matches, tolerates
from controlplane.scheduler.snapshot import NodeInfo

BEST = 100.0
# A pod that asks for nothing is counted as this much when nodes are compared, else all such pods would pile up.
LEAST_CPU, LEAST_MEMORY = 100, 200 * 1024 * 1024


def _fractions(wants: Ask, node: NodeInfo) -> tuple[float, float]:
    """The shares of cpu and memory in use once the pod runs there, 0–1."""
    shares = []
    for name, least in (("cpu", LEAST_CPU), ("memory", LEAST_MEMORY)):
        capacity = node.allocatable.get(name, 0)
        used = node.requested.get(name, 0) + (wants.demand.requests.get(name) or least)
        shares.append(min(1.0, used / capacity) if capacity else 1.0)
    return shares[0], shares[1]


def _least_allocated(wants: Ask, node: NodeInfo) -> float:
    cpu, memory = _fractions(wants, node)
    return BEST * (1 - (cpu + memory) / 2)


def _balanced(wants: Ask, node: NodeInfo) -> float:
    cpu, memory = _fractions(wants, node)
    return BEST * (1 - abs(cpu - memory) / 2)


def _soft_taints(wants: Ask, node: NodeInfo) -> float:
    return sum(t.get("effect") == "PreferNoSchedule" and not any(tolerates(x, t) for x in wants.tolerations)
               for t in node.taints)


def _preferences(wants: Ask, node: NodeInfo) -> float:
    return sum(p.get("weight", 0) for p in wants.preferred if term_matches(p.get("preference") or {}, node))


def _spread(wants: Ask, node: NodeInfo) -> float:
    return node.owners.get(wants.owner, 0) if wants.owner else 0


def _images(wants: Ask, node: NodeInfo) -> float:
    return sum(image in node.images for image in wants.images)


def _normalise(raw: list[float], reverse: bool) -> list[float]:
    """Raw counts to 0–100; with `reverse` the smallest is the best."""
    most = max(raw)
    if most <= 0:
        return [BEST if reverse else 0.0] * len(raw)
    return [BEST * (1 - r / most) if reverse else BEST * r / most for r in raw]


def scores(wants: Ask, nodes: Sequence[NodeInfo]) -> list[float]:
    """One score per node, in order; only their order means anything. `nodes` must not be empty."""
    parts = (
        (1, [_least_allocated(wants, n) for n in nodes]),
        (1, [_balanced(wants, n) for n in nodes]),
        (3, _normalise([_soft_taints(wants, n) for n in nodes], True)),
        (2, _normalise([_preferences(wants, n) for n in nodes], False)),
        (2, _normalise([_spread(wants, n) for n in nodes], True)),
        (1, _normalise([_images(wants, n) for n in nodes], False)),
    )
    return [sum(weight * column[i] for weight, column in parts) for i in range(len(nodes))]
