"""The decision about one pod: a node, or why there is none, in upstream's sentence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.scheduler import fit, score
from controlplane.scheduler.fit import Ask
from controlplane.scheduler.snapshot import NodeInfo

NO_NODES = "no nodes available to schedule pods"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`node` is the choice, "" when there is none; `refusals` counts each reason over all nodes."""

    node: str
    nodes: int = 0
    refusals: dict[str, int] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """As in the FailedScheduling event: `0/3 nodes are available: 1 Too many pods, 2 Insufficient cpu.`"""
        if not self.nodes:
            return NO_NODES
        listed = sorted(f"{count} {reason}" for reason, count in self.refusals.items())
        return f"0/{self.nodes} nodes are available: {', '.join(listed)}."


def decide(wants: Ask, nodes: Sequence[NodeInfo]) -> Verdict:
    """The best of the fitting nodes; among equals the one with the fewest pods, then by name: a stable choice."""
    refusals: Counter[str] = Counter()
    fitting = []
    for node in nodes:
        against = fit.reasons(wants, node)
        if against:
            refusals.update(against)
        else:
            fitting.append(node)
    if not fitting:
        return Verdict("", len(nodes), dict(refusals))
    points = score.scores(wants, fitting) if len(fitting) > 1 else [0.0]
    best = min(zip(points, fitting), key=lambda pair: (-round(pair[0], 6), pair[1].pods, pair[1].name))
    return Verdict(best[1].name, len(nodes))
