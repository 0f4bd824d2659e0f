"""Which running pods must go so that a more important one fits, and on which node that hurts least. Pure.

Owns the trial of a node without some pods, the choice of victims there and the choice among nodes. Promises the fewest
broken disruption budgets first, then the least important victims, as upstream does; and never a victim of the same or
a higher priority. Called by `decider` when no node fits; `herald` carries it out.

Upstream: pkg/scheduler/framework/preemption and plugins/defaultpreemption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from controlplane.machinery import objects, selectors
from controlplane.scheduler import fit
from controlplane.scheduler.constraints import Constraints
from controlplane.scheduler.fit import Ask
from controlplane.scheduler.snapshot import NodeInfo, Placed, Snapshot
from controlplane.scheduler.table import Table

CANDIDATES_LIMIT = 100  # nodes with victims to choose among: the least upstream would try
PLANS_LIMIT = 20_000  # plans remembered: a few kinds of preemptors at 5,000 nodes
NEVER = "not eligible due to preemptionPolicy=Never."
TERMINATING = "not eligible due to a terminating pod on the nominated node."
NO_VICTIMS = "No preemption victims found for incoming pod"
NOT_HELPFUL = "Preemption is not helpful for scheduling"

Obj = dict[str, Any]
Holds = Callable[[NodeInfo], bool]  # whether what is judged apart from table and constraints allows the node


@dataclass(frozen=True, slots=True)
class Plan:
    """`victims` are to leave `node`, the most important first; `violations` of them break a budget."""

    node: str
    victims: tuple[Placed, ...]
    violations: int = 0


def always(node: NodeInfo) -> bool:
    return True


def fits(wants: Ask, constraints: Constraints, node: NodeInfo, removed: Sequence[Placed], added: Sequence[Placed] = (),
         holds: Holds = always) -> bool:
    """Whether the pod could run on `node` without some pods and with others."""
    trial = node.copy()
    for placed in removed:
        trial.count(objects.uid(placed.pod), placed, -1)
    for placed in added:
        trial.count(objects.uid(placed.pod), placed, 1)
    if fit.refusal(wants, trial) is not None:
        return False
    fewer = constraints.fewer(node.name, [p.group for p in removed], [p.group for p in added])
    return constraints.refusal(constraints.coordinates(node), fewer) is None and holds(trial)


def importance(placed: Placed) -> tuple[int, str]:
    """Sorts the most important first: higher priority, then the longer run."""
    return -placed.priority, started(placed)


def started(placed: Placed) -> str:
    return str((placed.pod.get("status") or {}).get("startTime") or "9")


def ineligible(wants: Ask, snapshot: Snapshot) -> str:
    """Why the pod may not preempt at all; "" when it may."""
    if (wants.pod.get("spec") or {}).get("preemptionPolicy") == "Never":
        return NEVER
    nominated = snapshot.node((wants.pod.get("status") or {}).get("nominatedNodeName") or "")
    if nominated is not None and any(objects.deleting(p.pod) and p.priority < wants.priority
                                     for p in nominated.placed.values()):
        return TERMINATING
    return ""


class Budgets:
    """The disruption budgets, and what is left of each while victims are counted."""

    def __init__(self, budgets: Iterable[Obj]) -> None:
        self._known = [(objects.namespace(b), selectors.from_label_selector((b.get("spec") or {}).get("selector")),
                        objects.get(b, "status.disruptionsAllowed", 0),
                        objects.get(b, "status.disruptedPods", None) or {})
                       for b in budgets]

    @property
    def any(self) -> bool:
        return bool(self._known)

    def violating(self, pods: Sequence[Placed]) -> set[str]:
        """The uids of pods whose leaving, in this order, breaks a budget."""
        left = [allowed for _, _, allowed, _ in self._known]
        found = set()
        for placed in pods:
            for number, (namespace, selector, _, disrupted) in enumerate(self._known):
                pod = placed.pod
                if objects.namespace(pod) == namespace and selector.matches(objects.labels(pod)) and (
                        objects.labels(pod) and objects.name(pod) not in disrupted):
                    left[number] -= 1
                    if left[number] < 0:
                        found.add(objects.uid(pod))
        return found


def victims(wants: Ask, constraints: Constraints, node: NodeInfo, budgets: Budgets, holds: Holds = always,
            also: Sequence[Placed] = ()) -> Plan | None:
    """The fewest and least important pods that must leave `node`; None when even all lesser ones would not do.

    `also` are pods nominated to the node that count as there."""
    lesser = sorted((p for p in node.placed.values() if p.priority < wants.priority), key=importance)
    if not lesser or not fits(wants, constraints, node, lesser, also, holds):
        return None
    violating = budgets.violating(lesser)
    # Spare whom we can, first those whose leaving breaks a budget, the most important first.
    leaving = list(lesser)
    for placed in sorted(lesser, key=lambda p: objects.uid(p.pod) not in violating):
        without = [p for p in leaving if p is not placed]
        if fits(wants, constraints, node, without, also, holds):
            leaving = without
    if not leaving:
        return None
    return Plan(node.name, tuple(leaving), sum(objects.uid(p.pod) in violating for p in leaving))


class Memory:
    """Plans of nodes that have not changed since, for pods that only the node itself stands against: when many pods
    preempt at once, all but the first find most of the work done."""

    def __init__(self) -> None:
        self._plans: dict[tuple[bytes, int, str], tuple[int, Plan | None]] = {}

    def plan(self, wants: Ask, constraints: Constraints, node: NodeInfo, budgets: Budgets, holds: Holds,
             also: Sequence[Placed]) -> Plan | None:
        if constraints.dimensions or budgets.any or also or holds is not always:
            return victims(wants, constraints, node, budgets, holds, also)
        key = (wants.kind, wants.priority, node.name)
        known = self._plans.get(key)
        if known is None or known[0] != node.version:
            if len(self._plans) >= PLANS_LIMIT:
                self._plans.clear()
            known = self._plans[key] = (node.version, victims(wants, constraints, node, budgets))
        return known[1]


def _harm(plan: Plan) -> tuple[Any, ...]:
    """Sorts the least harmful plan first."""
    top = plan.victims[0].priority
    # Of the most important victims the one that started first counts; the later that is, the less is lost.
    earliest = min(started(p) for p in plan.victims if p.priority == top)
    return (plan.violations, top, sum(p.priority + 2**31 for p in plan.victims), len(plan.victims),
            [-ord(letter) for letter in earliest], plan.node)


def choose(plans: Iterable[Plan]) -> Plan | None:
    return min(plans, key=_harm, default=None)


def plans(wants: Ask, table: Table, late: Sequence[str], snapshot: Snapshot, budgets: Budgets, holds: Holds,
          nominated: Callable[[str], Sequence[Placed]], memory: Memory) -> list[Plan]:
    """What could be done, on as many nodes as are worth trying; `late` are nodes that only `holds` refuses."""
    found: list[Plan] = []
    if not snapshot.has_lesser(wants.priority):
        return found
    for name in chain(late, (name for name, _ in table.refused_nodes(final=False))):
        node = snapshot.node(name)
        if node is None:
            continue
        plan = memory.plan(wants, table.constraints, node, budgets, holds, nominated(name))
        if plan is not None:
            found.append(plan)
            if len(found) >= CANDIDATES_LIMIT:
                break
    return found


def told(table: Table, nodes: int) -> str:
    """Upstream's sentence when preemption does not help either."""
    counted: Counter[str] = Counter()
    for refused, number in table.refusals().items():
        counted[NOT_HELPFUL if refused.final else NO_VICTIMS] += number
    counted[NOT_HELPFUL] += nodes - sum(counted.values())  # nodes the pod was not meant for
    listed = sorted(f"{number} {reason}" for reason, number in counted.items() if number)
    return f"0/{nodes} nodes are available: {', '.join(listed)}."
