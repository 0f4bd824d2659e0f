"""The nearest miss: the node that lacks least for a pod, and the smallest change that would make it do. Pure.

Called by `loop` and `imagined` for pods that found no node: for their event and condition, and by `pelamis whatif`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.machinery import placement
from controlplane.machinery.quantity import BINARY, Quantity
from controlplane.scheduler import constraints, fit
from controlplane.scheduler.fit import INSUFFICIENT, TOO_MANY, Ask, Refusal
from controlplane.scheduler.snapshot import NodeInfo
from controlplane.scheduler.table import Table

NODES_LIMIT = 500  # nodes looked at: more would not be nearer in any way a person cares for
# How hard each kind of miss is to mend; lacking resources counts by the share that is missing, 0–1.
UNSCHEDULABLE, TAINT, PORTS, LABELS, OTHERS, NAMED = 1.5, 2.0, 2.5, 3.0, 4.0, 9.0


def amount(resource: str, value: int) -> str:
    """The units of `demand.amounts` as people write them."""
    if resource == "cpu":
        return str(Quantity(value * 10**6))
    if resource == "memory" or resource == "ephemeral-storage" or resource.startswith("hugepages-"):
        if value >= 1024 and value % 1024:  # round sizes are read, exact ones are not
            value -= value % (1024 * 1024 if value >= 1024 * 1024 else 1024)
        return str(Quantity(value * 10**9, BINARY))
    return str(value)


def _distance(wants: Ask, node: NodeInfo, refused: Refusal) -> float:
    first = refused.reasons[0]
    if first.startswith(INSUFFICIENT) or first == TOO_MANY:
        shares = [(value - max(0, node.free(name))) / value for name, value in wants.demand.requests.items()
                  if value > node.free(name)]
        return sum(shares) + (TOO_MANY in refused.reasons) * 0.5
    for start, hard in ((fit.UNSCHEDULABLE, UNSCHEDULABLE), (fit.TAINT, TAINT), (fit.PORTS, PORTS),
                        (fit.SELECTOR, LABELS), (fit.OTHER_NAME, NAMED)):
        if first.startswith(start):
            return hard + (len(_missing(wants, node)) / 100 if hard == LABELS else 0)
    return OTHERS


def _missing(wants: Ask, node: NodeInfo) -> list[str]:
    return [f"{k}={v}" for k, v in sorted(wants.selector.items()) if node.labels.get(k) != v]


def _advice(wants: Ask, node: NodeInfo, refused: Refusal) -> str:
    first = refused.reasons[0]
    short = [r.removeprefix(INSUFFICIENT) for r in refused.reasons if r.startswith(INSUFFICIENT)]
    if short:
        lacks = ", ".join(f"{amount(r, wants.demand.requests[r] - max(0, node.free(r)))} {r}" for r in short)
        most = ", ".join(f"{amount(r, max(0, node.free(r)))} {r}" for r in short)
        return f"lacks {lacks}; request at most {most}, or free as much there"
    if first == TOO_MANY:
        return f"runs {node.pods} pods, its limit; remove one there"
    if first == fit.UNSCHEDULABLE:
        return f"is cordoned; kubectl uncordon {node.name}"
    if first.startswith(fit.TAINT):
        taint = placement.untolerated(wants.tolerations, node.taints) or {}
        value = f"={taint['value']}" if taint.get("value") else ""
        return f"has a taint; tolerate {taint.get('key')}{value}:{taint.get('effect')} in the pod"
    if first == fit.SELECTOR:
        missing = _missing(wants, node)
        return f"lacks labels; kubectl label node {node.name} {' '.join(missing)}" if missing else \
            "does not match the required node affinity; label it, or add a term it meets"
    if first == fit.PORTS:
        taken = sorted({p.port for p in wants.demand.ports if any(p.clashes(t) for t in node.ports)})
        return f"has host port {', '.join(map(str, taken))} in use; use another, or none"
    if first in (constraints.SPREAD, constraints.MISSING_LABEL):
        return "would make the spread too uneven; raise maxSkew, or use whenUnsatisfiable: ScheduleAnyway"
    if first in (constraints.ANTI_AFFINITY, constraints.EXISTING):
        return "is near pods kept apart from this one; remove those, or make the anti-affinity preferred"
    if first == constraints.AFFINITY:
        return "is not near the pods this one wants to be with; start those first, or make the affinity preferred"
    return first.removeprefix("node(s) ")


def candidates(table: Table) -> Iterable[tuple[float, NodeInfo, Refusal]]:
    for number, (name, refused) in enumerate(table.refused_nodes(final=True)):
        node = table.snapshot.node(name)
        if number >= NODES_LIMIT:
            return
        if node is not None:
            yield _distance(table.wants, node, refused), node, refused


def miss(table: Table | None, wants: Ask) -> dict[str, Any] | None:
    """`{"node", "advice", "reasons"}` of the nearest miss; None when there is none to name."""
    if table is None:
        return None
    nearest = min(candidates(table), key=lambda c: (c[0], c[1].name), default=None)
    if nearest is None:
        return None
    _, node, refused = nearest
    return {"node": node.name, "advice": _advice(wants, node, refused), "reasons": list(refused.reasons)}


def sentence(found: dict[str, Any] | None) -> str:
    return f"Nearest miss: node {found['node']} {found['advice']}." if found else ""
