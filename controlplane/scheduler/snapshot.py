"""The nodes as the scheduler sees them: allocatable, what is taken, by counters kept up to date with every event.

Owns `NodeInfo` and `Snapshot`. A pod counts on its node from the moment it is assumed (chosen, not yet bound) until it
ends; seeing the same pod again changes nothing, so events may be replayed. Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery import objects
from controlplane.scheduler import demand
from controlplane.scheduler.demand import Amounts, Demand, HostPort

TERMINAL = ("Succeeded", "Failed")


@dataclass(slots=True)
class NodeInfo:
    """One node: `allocatable` and `requested` in milli-cores and units; `owners` counts pods per controller uid."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[dict[str, Any]] = field(default_factory=list)
    unschedulable: bool = False
    allocatable: Amounts = field(default_factory=dict)
    requested: Amounts = field(default_factory=dict)
    ports: list[HostPort] = field(default_factory=list)
    owners: dict[str, int] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    pods: int = 0
    known: bool = False  # False: pods name it, but the Node itself is not there (yet, or any more)

    def free(self, resource: str) -> int:
        return self.allocatable.get(resource, 0) - self.requested.get(resource, 0)


@dataclass(frozen=True, slots=True)
class _Placed:
    node: str
    demand: Demand
    owner: str


class Snapshot:
    """All nodes and the pods that count on them."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._placed: dict[str, _Placed] = {}  # by pod uid

    @property
    def nodes(self) -> list[NodeInfo]:
        return [n for n in self._nodes.values() if n.known]

    def _info(self, name: str) -> NodeInfo:
        return self._nodes.setdefault(name, NodeInfo(name))

    def set_node(self, node: dict[str, Any]) -> None:
        info = self._info(objects.name(node))
        spec, status = node.get("spec") or {}, node.get("status") or {}
        info.known = True
        info.labels = objects.labels(node)
        info.taints = spec.get("taints") or []
        info.unschedulable = bool(spec.get("unschedulable"))
        info.allocatable = demand.amounts(status.get("allocatable") or status.get("capacity"))
        info.images = frozenset(n for image in status.get("images") or [] for n in image.get("names") or [])

    def drop_node(self, name: str) -> None:
        info = self._nodes.get(name)
        if info is None:
            return
        info.known = False
        if not info.pods:
            del self._nodes[name]

    def place(self, pod: dict[str, Any], node: str) -> None:
        """Count `pod` on `node`; a pod counted before, there or elsewhere, is moved."""
        uid = objects.uid(pod)
        owner = (objects.controller_of(pod) or {}).get("uid", "")
        placed = _Placed(node, demand.of(pod), owner)
        if self._placed.get(uid) == placed:
            return
        self.remove(uid)
        self._placed[uid] = placed
        self._count(placed, 1)

    def remove(self, uid: str) -> None:
        placed = self._placed.pop(uid, None)
        if placed is not None:
            self._count(placed, -1)

    def node_of(self, uid: str) -> str:
        placed = self._placed.get(uid)
        return placed.node if placed else ""

    def _count(self, placed: _Placed, sign: int) -> None:
        info = self._info(placed.node)
        info.pods += sign
        demand.add(info.requested, {name: sign * value for name, value in placed.demand.requests.items()})
        for port in placed.demand.ports:
            if sign > 0:
                info.ports.append(port)
            else:
                info.ports.remove(port)
        if placed.owner:
            left = info.owners.get(placed.owner, 0) + sign
            if left:
                info.owners[placed.owner] = left
            else:
                del info.owners[placed.owner]
        if not info.known and not info.pods:
            del self._nodes[info.name]


def counts(pod: dict[str, Any]) -> bool:
    """Whether an assigned pod still takes room on its node."""
    return (pod.get("status") or {}).get("phase") not in TERMINAL
