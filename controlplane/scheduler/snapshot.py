"""The nodes as the scheduler sees them: allocatable, what is taken, by counters kept up to date with every event.

Owns `NodeInfo`, `Group` and `Snapshot`. A pod counts on its node from the moment it is assumed (chosen, not yet bound)
until it ends; seeing the same pod again changes nothing, so events may be replayed. Pods that differ in nothing other
pods could ask for share a `Group`, so that a question about pods is asked per group. `changes` names each node that
changed, which is what lets tables be brought up to date instead of being made anew. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.machinery import objects
from controlplane.scheduler import demand, terms
from controlplane.scheduler.demand import Amounts, Demand, HostPort
from controlplane.scheduler.tallies import Journal, Tally
from controlplane.scheduler.terms import Affinities, Term

TALLY_LIMIT = 512  # questions kept answered; the one not asked for longest is forgotten first
Obj = dict[str, Any]


@dataclass(slots=True, eq=False)
class Group:
    """Placed pods alike in namespace, labels, terms and being deleted; `tallies` are those that count them."""

    namespace: str
    labels: Mapping[str, str]
    terms: Affinities
    deleting: bool
    pods: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Placed:
    """One pod that counts on `node`. `pod` is the informer's object, shared and not to be changed."""

    node: str
    demand: Demand
    group: Group
    pod: Obj

    @property
    def priority(self) -> int:
        return int((self.pod.get("spec") or {}).get("priority") or 0)


@dataclass(slots=True, eq=False)
class NodeInfo:
    """One node: `allocatable` and `requested` in milli-cores and units; `images` in bytes by name."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Obj] = field(default_factory=list)
    unschedulable: bool = False
    allocatable: Amounts = field(default_factory=dict)
    requested: Amounts = field(default_factory=dict)
    cpu_floor: int = 0
    memory_floor: int = 0
    ports: list[HostPort] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)
    version: int = 0  # rises with every change
    known: bool = False  # False: pods name it, but the Node itself is not there (yet, or any more)

    @property
    def pods(self) -> int:
        return len(self.placed)

    def free(self, resource: str) -> int:
        return self.allocatable.get(resource, 0) - self.requested.get(resource, 0)

    def count(self, uid: str, placed: Placed, sign: int) -> None:
        """Put a pod here (+1) or take it away (-1)."""
        self.version += 1
        if sign > 0:
            self.placed[uid] = placed
        else:
            del self.placed[uid]
        needs = placed.demand
        for name, value in needs.requests.items():
            self.requested[name] = self.requested.get(name, 0) + sign * value
        self.cpu_floor += sign * needs.cpu_floor
        self.memory_floor += sign * needs.memory_floor
        for port in needs.ports:
            if sign > 0:
                self.ports.append(port)
            else:
                self.ports.remove(port)

    def copy(self) -> NodeInfo:
        """One to try things on."""
        return replace(self, requested=dict(self.requested), ports=list(self.ports), placed=dict(self.placed))


class Snapshot:
    """All nodes and the pods that count on them."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._placed: dict[str, Placed] = {}  # by pod uid
        self._groups: dict[Hashable, Group] = {}
        self._tallies: dict[Hashable, Tally] = {}
        self.own: dict[tuple[str, Term], Tally] = {}  # what placed pods ask of newcomers: (apart | near | wish, term)
        self.own_version = 0  # changes whenever `own` gains or loses a term
        self.namespaces: dict[str, dict[str, str]] = {}
        self.images: dict[str, int] = {}  # name -> nodes that have it
        self.size = 0  # nodes
        self.priorities: Counter[int] = Counter()  # of the placed pods
        self.users: dict[str, set[str]] = {}  # `namespace/name` of a claim -> uids of the placed pods that use it
        self.changes = Journal()
        self.epoch = 0  # changes when all that was derived must be derived again

    # --- nodes -------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[NodeInfo]:
        return [n for n in self._nodes.values() if n.known]

    def node(self, name: str) -> NodeInfo | None:
        info = self._nodes.get(name)
        return info if info is not None and info.known else None

    def _info(self, name: str) -> NodeInfo:
        return self._nodes.setdefault(name, NodeInfo(name))

    def set_node(self, node: Obj) -> bool:
        """Take over a node's state; whether anything changed that scheduling asks for."""
        info = self._info(objects.name(node))
        spec, status = node.get("spec") or {}, node.get("status") or {}
        labels, taints = objects.labels(node), spec.get("taints") or []
        unschedulable = bool(spec.get("unschedulable"))
        allocatable = demand.amounts(status.get("allocatable") or status.get("capacity"))
        images = {name: image.get("sizeBytes", 0) for image in status.get("images") or ()
                  for name in image.get("names") or ()}
        reshaped = not info.known or (labels, taints) != (info.labels, info.taints)
        changed = reshaped or (unschedulable, allocatable) != (info.unschedulable, info.allocatable)
        if not changed and images == info.images:
            return False
        for name in info.images:
            self.images[name] -= 1
        for name in images:
            self.images[name] = self.images.get(name, 0) + 1
        info.labels, info.taints, info.unschedulable, info.allocatable = labels, taints, unschedulable, allocatable
        self.size += not info.known
        info.images, info.known = images, True
        info.version += 1
        if reshaped:
            for tally in (*self._tallies.values(), *self.own.values()):
                self._enter(tally, info)
        self.changes.note(info.name)
        return changed

    def drop_node(self, name: str) -> None:
        info = self._nodes.get(name)
        if info is None:
            return
        self.size -= info.known
        info.known = False
        for image in info.images:
            self.images[image] -= 1
        info.images = {}
        for tally in (*self._tallies.values(), *self.own.values()):
            tally.leave(name)
        self.changes.note(name)
        if not info.placed:
            del self._nodes[name]

    def set_namespace(self, name: str, labels: dict[str, str] | None) -> bool:
        """Take over a namespace's labels (None: it is gone). Terms that select namespaces are then judged afresh."""
        before = self.namespaces.get(name)
        if before == labels:
            return False
        if labels is None:
            del self.namespaces[name]
        else:
            self.namespaces[name] = labels
        if any(group.namespace == name for group in self._groups.values()) or before is not None:
            for group in self._groups.values():
                group.tallies = []
            for tally in (*self._tallies.values(), *self.own.values()):
                for info in self._nodes.values():
                    tally.leave(info.name)
                self._fill(tally)
        self.epoch += 1
        return True

    # --- pods --------------------------------------------------------------------------------------------------

    def place(self, pod: Obj, node: str) -> None:
        """Count `pod` on `node`; a pod counted before, there or elsewhere, is moved."""
        uid = objects.uid(pod)
        needs, group = demand.of(pod), self._group(pod)
        before = self._placed.get(uid)
        placed = Placed(node, needs, group, pod)
        if before is not None and (before.node, before.group, before.demand) == (node, group, needs):
            self._placed[uid] = self._nodes[node].placed[uid] = placed  # the newest object, for its status
            return
        group.pods += 1  # keeps the group while its only pod moves
        self.remove(uid)
        group.pods -= 1
        self._placed[uid] = placed
        self._count(uid, placed, 1)

    def remove(self, uid: str) -> None:
        placed = self._placed.pop(uid, None)
        if placed is not None:
            self._count(uid, placed, -1)

    def has_lesser(self, priority: int) -> bool:
        """Whether any placed pod is less important."""
        return any(count and one < priority for one, count in self.priorities.items())

    def node_of(self, uid: str) -> str:
        placed = self._placed.get(uid)
        return placed.node if placed else ""

    def placed(self, uid: str) -> Placed | None:
        return self._placed.get(uid)

    def _count(self, uid: str, placed: Placed, sign: int) -> None:
        info, group = self._info(placed.node), placed.group
        info.count(uid, placed, sign)
        group.pods += sign
        left = group.nodes.get(placed.node, 0) + sign
        if left:
            group.nodes[placed.node] = left
        else:
            del group.nodes[placed.node]
        for tally in group.tallies:
            tally.add(placed.node, sign)
        self.priorities[placed.priority] += sign
        for claim in placed.demand.claims:
            users = self.users.setdefault(claim, set())
            users.add(uid) if sign > 0 else users.discard(uid)
            if not users:
                del self.users[claim]
        self.changes.note(placed.node)
        if not group.pods:
            self._forget(group)
        if not info.known and not info.placed:
            del self._nodes[info.name]

    # --- groups and tallies ------------------------------------------------------------------------------------

    def describe(self, pod: Obj) -> Group:
        """The group a pod would be in; unknown to the snapshot."""
        return Group(objects.namespace(pod), objects.labels(pod), terms.affinities(pod), objects.deleting(pod))

    def _key(self, group: Group) -> Hashable:
        return group.namespace, tuple(sorted(group.labels.items())), group.terms, group.deleting

    def _group(self, pod: Obj) -> Group:
        made = self.describe(pod)
        key = self._key(made)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = made
            for question in _asked(group.terms):
                self._ask(question)
            group.tallies = [t for t in (*self._tallies.values(), *self.own.values()) if t.covers(group)]
        return group

    def _forget(self, group: Group) -> None:
        del self._groups[self._key(group)]
        for question in _asked(group.terms):
            tally = self.own[question]
            tally.users -= 1
            if not tally.users:
                tally.alive = False
                del self.own[question]
                self.own_version += 1

    def _ask(self, question: tuple[str, Term]) -> None:
        """Count from now on the pods that have this term; groups that have it are yet to come."""
        tally = self.own.get(question)
        if tally is None:
            tally = self.own[question] = Tally(question[1].key, lambda group: question in _asked(group.terms))
            self.own_version += 1
            self._fill(tally)
        tally.users += 1

    def tally(self, question: Hashable, key: str, covers: Callable[[Group], bool],
              eligible: Callable[[NodeInfo], bool] | None = None) -> Tally:
        """The answer to `question`: a name that says all that `covers` and `eligible` depend on."""
        tally = self._tallies.pop(question, None)
        if tally is None:
            tally = Tally(key, covers, eligible)
            self._fill(tally)
            if len(self._tallies) >= TALLY_LIMIT:
                self._release(self._tallies.pop(next(iter(self._tallies))))
        self._tallies[question] = tally
        return tally

    def _release(self, tally: Tally) -> None:
        tally.alive = False
        for group in self._groups.values():
            if tally in group.tallies:
                group.tallies.remove(tally)

    def _fill(self, tally: Tally) -> None:
        pods: dict[str, int] = {}
        for group in self._groups.values():
            if tally.covers(group):
                group.tallies.append(tally)
                for node, count in group.nodes.items():
                    pods[node] = pods.get(node, 0) + count
        for info in self._nodes.values():
            if (domain := _domain(tally, info)) is not None:
                tally.enter(info.name, domain, pods.get(info.name, 0))

    def _enter(self, tally: Tally, info: NodeInfo) -> None:
        """Let the tally see the node as it is now."""
        tally.leave(info.name)
        if (domain := _domain(tally, info)) is not None:
            tally.enter(info.name, domain, sum(tally in placed.group.tallies for placed in info.placed.values()))


def _domain(tally: Tally, info: NodeInfo) -> str | None:
    if not info.known or (tally.eligible is not None and not tally.eligible(info)):
        return None
    return info.labels.get(tally.key)


def _asked(affinities: Affinities) -> list[tuple[str, Term]]:
    """What pods with these terms ask of newcomers; a required affinity is but a wish about them, as upstream has it."""
    return [(kind, term) for kind, listed in (("apart", affinities.apart), ("near", affinities.near),
                                              ("wish", affinities.wishes)) for term in listed]
