"""How fast the pods of silent nodes may be driven away, by zone.

The more nodes fall silent together, the more it is the network's fault and not theirs.

Pure. Owns the states of a zone and the rate of evictions in each. When every node of every zone is silent it is we who
are cut off: nobody is driven away. Called by `lifecycle`.

Upstream: pkg/controller/nodelifecycle (handleDisruption, ComputeZoneState).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.controllers.nodes import health
from controlplane.machinery import objects

RATE, SLOW_RATE = 0.1, 0.01  # nodes per second of a zone; of a large zone that is partly down: upstream's
PARTLY_DOWN = 0.55  # share of silent nodes from which a zone is partly down: upstream's
FEW = 2  # silent nodes that make no zone partly down, whatever their share
LARGE = 50  # nodes of a zone beyond which it is slowed down rather than halted
_REGION, _ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"

Obj = dict[str, Any]
Counts = dict[str, tuple[int, int]]  # zone -> nodes that are well, nodes that are not


def zone_of(node: Obj) -> str:
    labels = objects.labels(node)
    return f"{labels.get(_REGION, '')}/{labels.get(_ZONE, '')}"


def counts(nodes: Iterable[Obj]) -> Counts:
    found: Counts = {}
    for node in nodes:
        well, ill = found.get(zone_of(node), (0, 0))
        is_well = health.ready(node) == "True"
        found[zone_of(node)] = (well + is_well, ill + (not is_well))
    return found


def cut_off(found: Counts) -> bool:
    """Whether no node is well anywhere."""
    return not any(well for well, _ in found.values())


def rate(well: int, ill: int) -> float:
    """Nodes per second whose pods may be driven away in a zone; 0: none."""
    if well and ill > FEW and ill / (well + ill) >= PARTLY_DOWN:
        return SLOW_RATE if well + ill > LARGE else 0.0
    return RATE
