"""What the pods in a node's topology domains mean for a pod: spread, affinity, anti-affinity. Pure.

Owns `Constraints`: one pod's questions about other pods, each a `Dimension` with a tally. A node's `coordinates` are
where it stands in each dimension; nodes with equal coordinates are treated alike, so that the answer is worked out once
per place and not once per node. In a dimension of few domains (zones) the coordinate is the domain itself, in one of
many (hosts) the number of pods there. None means that the node lacks the label. Called by `table` and `preemption`.

Upstream: pkg/scheduler/framework/plugins/podtopologyspread and interpodaffinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import placement
from controlplane.scheduler.fit import Ask, Refusal
from controlplane.scheduler.snapshot import Group, NodeInfo, Snapshot
from controlplane.scheduler.tallies import Tally
from controlplane.scheduler.terms import HOSTNAME, Spread, Term

FEW_DOMAINS = 64  # up to here a coordinate is the domain itself: places stay few, and no node moves when a pod comes
MISSING_LABEL = "node(s) didn't match pod topology spread constraints (missing required label)"
SPREAD = "node(s) didn't match pod topology spread constraints"
AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING = "node(s) didn't satisfy existing pods anti-affinity rules"

Coordinate = str | int | None
Coordinates = tuple[Coordinate, ...]
Fewer = Mapping[int, int]  # dimension -> pods imagined away from the node's domain there; negative: added
NOBODY: Fewer = {}


@dataclass(frozen=True, slots=True)
class Dimension:
    tally: Tally
    counted: bool  # whether coordinates are counts

    @property
    def current(self) -> bool:
        """Whether it is still counted, and its domains are still few if they were: a cluster may have grown."""
        return self.tally.alive and (self.counted or self.tally.domains <= 2 * FEW_DOMAINS)

    def at(self, node: NodeInfo) -> Coordinate:
        domain = node.labels.get(self.tally.key)
        if domain is None or not self.counted:
            return domain
        return self.tally.counts.get(domain, 0)

    def count(self, coordinate: Coordinate) -> int:
        if isinstance(coordinate, int):
            return coordinate
        return self.tally.counts.get(coordinate, 0) if coordinate is not None else 0


class Constraints:
    """`wants` against the snapshot it was made for. `identity` is equal for pods whose constraints are equal."""

    def __init__(self, wants: Ask, snapshot: Snapshot, pull: int = 1, shy: bool = False) -> None:
        """`pull` and `shy` as in `score.Weights`."""
        self.wants, self._snapshot = wants, snapshot
        self.dimensions: list[Dimension] = []
        self._number: dict[Tally, int] = {}
        self.hard = [(self._spread(s, wants.hard), s) for s in wants.hard]
        self.soft = [(self._spread(s, wants.soft), s) for s in wants.soft]
        self.near = [self._add(self._together(t.key)) for t in wants.affinities.near]
        self.first = all(t.covers(wants.namespace, wants.labels, snapshot.namespaces) for t in wants.affinities.near)
        self.apart = [self._add(self._term(t)) for t in wants.affinities.apart]
        self.wishes = [(self._add(self._term(t)), t.weight) for t in wants.affinities.wishes]
        self.barred: list[int] = []
        ignored = shy and not wants.affinities.wishes
        for kind, term in foreign(wants, snapshot):
            if kind == "apart":
                self.barred.append(self._add(snapshot.own[kind, term]))
            elif not ignored and (weight := term.weight * (pull if kind == "near" else 1)):
                self.wishes.append((self._add(snapshot.own[kind, term]), weight))
        if "InterPodAffinity" in wants.off:
            self.near, self.apart, self.barred = [], [], []

    # --- questions ---------------------------------------------------------------------------------------------

    def _add(self, tally: Tally) -> int:
        number = self._number.get(tally)
        if number is None:
            number = self._number[tally] = len(self.dimensions)
            self.dimensions.append(Dimension(tally, tally.domains > FEW_DOMAINS))
        return number

    def _term(self, term: Term) -> Tally:
        namespaces = self._snapshot.namespaces
        question = ("term", term.key, term.selector, term.namespaces, term.everywhere)
        return self._snapshot.tally(question, term.key, lambda g: term.covers(g.namespace, g.labels, namespaces))

    def _together(self, key: str) -> Tally:
        """Pods that satisfy all required affinity terms at once: only those count, as upstream has it."""
        near, namespaces = self.wants.affinities.near, self._snapshot.namespaces
        return self._snapshot.tally(("together", key, near), key, lambda g: all(
            t.covers(g.namespace, g.labels, namespaces) for t in near))

    def _spread(self, spread: Spread, siblings: Sequence[Spread]) -> int:
        wants, namespace, selector = self.wants, self.wants.namespace, spread.selector
        # Only nodes that have every constraint's label take part; upstream's own defaults take any.
        keys = () if spread.defaulted else tuple(sorted({s.key for s in siblings}))
        affinity = (wants.selector, wants.terms) if spread.honour_affinity else ({}, None)
        tolerations = wants.tolerations if spread.honour_taints else None

        def covers(group: Group) -> bool:
            return not group.deleting and group.namespace == namespace and selector.matches(group.labels)

        def eligible(node: NodeInfo) -> bool:
            return all(key in node.labels for key in keys) and placement.selects(*affinity, node) and (
                tolerations is None or placement.untolerated(tolerations, node.taints) is None)
        question = ("spread", spread.key, namespace, selector, keys, repr(affinity), repr(tolerations))
        return self._add(self._snapshot.tally(question, spread.key, covers, eligible))

    # --- answers -----------------------------------------------------------------------------------------------

    def coordinates(self, node: NodeInfo) -> Coordinates:
        return tuple([dimension.at(node) for dimension in self.dimensions])

    def refusal(self, at: Coordinates, fewer: Fewer = NOBODY) -> Refusal | None:
        """Why a node standing `at` those coordinates cannot take the pod because of other pods; None when it can."""
        for number, spread in self.hard:
            where, dimension = at[number], self.dimensions[number]
            if where is None:
                return Refusal((MISSING_LABEL,), True)
            count, least = dimension.count(where) - fewer.get(number, 0), dimension.tally.least
            if fewer:
                least = min(least, count)
            if dimension.tally.domains < spread.min_domains:
                least = 0
            if count + spread.own - least > spread.skew:
                return Refusal((SPREAD,))
        if self.near and (refused := self._lonely(at, fewer)) is not None:
            return refused
        for numbers, reason in ((self.apart, ANTI_AFFINITY), (self.barred, EXISTING)):
            for number in numbers:
                if at[number] is not None and self.dimensions[number].count(at[number]) > fewer.get(number, 0):
                    return Refusal((reason,))
        return None

    def _lonely(self, at: Coordinates, fewer: Fewer) -> Refusal | None:
        if any(at[number] is None for number in self.near):
            return Refusal((AFFINITY,), True)
        if all(self.dimensions[number].count(at[number]) > fewer.get(number, 0) for number in self.near):
            return None
        # The first of pods that want to be together may start anywhere.
        nobody = all(self.dimensions[number].tally.total <= fewer.get(number, 0) for number in self.near)
        return None if nobody and self.first else Refusal((AFFINITY,), True)

    def wish(self, at: Coordinates) -> float:
        """The sum of weights of preferred terms that other pods make true there, theirs about us included."""
        return sum(weight * self.dimensions[number].count(at[number]) for number, weight in self.wishes)

    def crowding(self, places: Mapping[Coordinates, int]) -> dict[Coordinates, float | None]:
        """How crowded each of the feasible places (-> nodes there) is by the soft constraints; None: not comparable."""
        required = {number for number, spread in self.soft if not spread.defaulted}
        open_ = {at: nodes for at, nodes in places.items() if all(at[number] is not None for number in required)}
        weights = []
        for number, spread in self.soft:
            if spread.key == HOSTNAME:
                size = sum(open_.values())
            elif self.dimensions[number].counted:
                size = self.dimensions[number].tally.domains
            else:
                size = len({at[number] for at in open_} - {None})
            weights.append((number, math.log(size + 2), spread.skew - 1))
        return {at: sum(self.dimensions[number].count(at[number]) * weight + slack
                        for number, weight, slack in weights if at[number] is not None) if at in open_ else None
                for at in places}

    def fewer(self, node: str, removed: Sequence[Group], added: Sequence[Group] = ()) -> dict[int, int]:
        """What imagining pods away from a node, and others there, means in each dimension."""
        found: dict[int, int] = {}
        for number, dimension in enumerate(self.dimensions):
            covers = dimension.tally.covers
            if dimension.tally.domain_of(node) is None:
                continue
            if delta := sum(map(covers, removed)) - sum(map(covers, added)):
                found[number] = delta
        return found


def foreign(wants: Ask, snapshot: Snapshot) -> list[tuple[str, Term]]:
    """What running pods ask that concerns this one."""
    return [(kind, term) for kind, term in snapshot.own
            if term.covers(wants.namespace, wants.labels, snapshot.namespaces)]


def identity(wants: Ask, concerns: Sequence[Any], snapshot: Snapshot) -> Hashable:
    """Equal for pods that every node treats alike, other pods considered."""
    affinities = wants.affinities
    namespaced = wants.namespace if wants.hard or wants.soft else ""
    first: Callable[[], bool] = lambda: all(  # noqa: E731 - only pods with terms pay for it
        t.covers(wants.namespace, wants.labels, snapshot.namespaces) for t in affinities.near)
    return (wants.kind, wants.hard, wants.soft, namespaced, affinities, not affinities.near or first(),
            tuple(concerns))
