"""The decision about one pod: a node, or why there is none, in upstream's sentence. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from controlplane.scheduler import fit
from controlplane.scheduler.fit import Ask, Refusal
from controlplane.scheduler.score import DEFAULT, Weights
from controlplane.scheduler.snapshot import NodeInfo, Snapshot
from controlplane.scheduler.table import Table, Tables

NO_NODES = "no nodes available to schedule pods"

Check = Callable[[NodeInfo], Refusal | None]  # what is asked of a node only when it would otherwise be chosen


@dataclass(frozen=True, slots=True)
class Verdict:
    """`node` is the choice, "" when there is none; `refusals` counts each reason over all nodes.

    `outright`: what speaks against the pod on every node, before any node is looked at."""

    node: str
    nodes: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    outright: str = ""
    table: Table | None = None
    late: tuple[str, ...] = ()  # nodes that only `check` refused, and might not were there fewer pods

    @property
    def message(self) -> str:
        """As in the FailedScheduling event: `0/3 nodes are available: 1 Too many pods, 2 Insufficient cpu.`"""
        if not self.nodes:
            return NO_NODES
        listed = sorted(f"{count} {reason}" for reason, count in self.refusals.items())
        return f"0/{self.nodes} nodes are available: {self.outright or ', '.join(listed)}."


def decide(wants: Ask, snapshot: Snapshot, tables: Tables, weights: Weights = DEFAULT,
           check: Check | None = None, first: str = "") -> Verdict:
    """The best of the fitting nodes; among equals the one with the fewest pods, then by name: a stable choice.

    `first` is a node that was promised to the pod: it is taken when it fits."""
    nodes = snapshot.size
    table = tables.of(wants, weights)
    refusals: Counter[str] = Counter()
    late = []
    for name in _ordered(table, first):
        node = snapshot.node(name)
        if node is None:
            continue
        refused = check(node) if check is not None else None
        if refused is None:
            return Verdict(name, nodes, table=table)
        refusals.update(refused.reasons)
        if not refused.final:
            late.append(name)
    for refused, count in table.refusals().items():
        for reason in refused.reasons:
            refusals[reason] += count
    if excluded := nodes - len(table):
        refusals[fit.EXCLUDED] += excluded
    return Verdict("", nodes, dict(refusals), table=table, late=tuple(late))


def _ordered(table: Table, first: str) -> Iterator[str]:
    if first and table.takes(first):
        yield first
    yield from (name for name in table.best() if name != first)
