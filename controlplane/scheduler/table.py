"""All nodes judged for one kind of pod, kept current by re-judging only what changed. Pure.

Owns `Table` and `Tables`. Nodes that fit by themselves lie in *places*: equal coordinates, equal marks. What other pods
mean is worked out per place and the best node of a place is the top of its heap, so that a decision costs as much as
there are places and changed nodes, not as there are nodes. Promises the same answer as judging every node anew. Called
by `verdict`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from heapq import heapify, heappop, heappush

from controlplane.scheduler import constraints, fit, score
from controlplane.scheduler.constraints import Constraints, Coordinates
from controlplane.scheduler.fit import Ask, Refusal
from controlplane.scheduler.score import Weights
from controlplane.scheduler.snapshot import NodeInfo, Snapshot

ENTRIES_LIMIT = 100_000  # judged nodes kept over all tables, some 20 MB: twenty kinds of pods at 5,000 nodes
CONCERNS_LIMIT = 4096  # label sets remembered with the terms that concern them
SLACK = 32  # outdated entries a heap may hold beyond its members before it is made anew

Place = tuple[Coordinates, tuple[int, int]]
Entry = tuple[float, int, str]  # -base score, pods, name: the smallest is the best


class _Heap:
    """The nodes of one place, best first; entries whose node moved on are skipped when they surface."""

    __slots__ = ("entries", "members")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.members = 0


class Table:
    """The nodes (`only` those named, if given) as pods like `wants` see them."""

    def __init__(self, wants: Ask, snapshot: Snapshot, weights: Weights, only: Iterable[str] | None = None) -> None:
        self.wants, self.snapshot, self.weights = wants, snapshot, weights
        self.constraints = Constraints(wants, snapshot, weights.pull, weights.shy)
        self.refused: Counter[Refusal] = Counter()  # by the nodes themselves
        self._places: dict[Place, _Heap] = {}
        self._judged: dict[str, Refusal | tuple[Place, Entry]] = {}
        self._only = None if only is None else frozenset(only)
        self._epoch = snapshot.epoch
        self._size = snapshot.size
        self._mark()
        for node in snapshot.nodes if self._only is None else filter(None, map(snapshot.node, self._only)):
            self._judge(node.name, node)

    def __len__(self) -> int:
        return len(self._judged)

    def _mark(self) -> None:
        self._position = self.snapshot.changes.end
        self._domains = [d.tally.journal.end for d in self.constraints.dimensions]

    def refresh(self) -> bool:
        """Re-judge what changed; False when the table must be made anew."""
        dimensions = self.constraints.dimensions
        if self._epoch != self.snapshot.epoch or not all(d.current for d in dimensions):
            return False
        changed = self.snapshot.changes.since(self._position)
        if changed is None:
            return False
        names = set(changed)
        for dimension, position in zip(dimensions, self._domains):
            if dimension.counted:
                moved = dimension.tally.journal.since(position)
                if moved is None:
                    return False
                if moved:
                    names |= self._nodes_in(dimension.tally.key, set(moved))
        self._mark()
        for name in names:
            self._judge(name, self.snapshot.node(name))
        return True

    def _nodes_in(self, key: str, domains: set[str]) -> set[str]:
        if key == constraints.HOSTNAME and all(
                (n := self.snapshot.node(d)) is not None and n.labels.get(key) == d for d in domains):
            return domains  # hosts are named as their nodes are
        return {n.name for n in self.snapshot.nodes if n.labels.get(key) in domains}

    def _judge(self, name: str, node: NodeInfo | None) -> None:
        before = self._judged.pop(name, None)
        if isinstance(before, Refusal):
            self.refused[before] -= 1
        elif before is not None:
            self._leave(before[0])
        if node is None or (self._only is not None and name not in self._only):
            return
        refused = fit.refusal(self.wants, node)
        if refused is not None:
            self.refused[refused] += 1
            self._judged[name] = refused
            return
        place = (self.constraints.coordinates(node), score.marks(self.wants, node))
        entry = (-score.base(self.wants, node, self.weights, self.snapshot, self._size), node.pods, name)
        self._judged[name] = (place, entry)
        heap = self._places.get(place)
        if heap is None:
            heap = self._places[place] = _Heap()
        heap.members += 1
        heappush(heap.entries, entry)

    def _leave(self, place: Place) -> None:
        heap = self._places[place]
        heap.members -= 1
        if not heap.members:
            del self._places[place]
        elif len(heap.entries) > 2 * heap.members + SLACK:
            heap.entries = list(self._members(place, heap))
            heapify(heap.entries)

    def _members(self, place: Place, heap: _Heap) -> set[Entry]:
        return {entry for entry in heap.entries if self._current(place, entry)}

    def _current(self, place: Place, entry: Entry) -> bool:
        judged = self._judged.get(entry[2])
        return isinstance(judged, tuple) and judged[1] == entry and judged[0] == place

    def _top(self, place: Place, heap: _Heap) -> Entry:
        while not self._current(place, heap.entries[0]):
            heappop(heap.entries)
        return heap.entries[0]

    # --- answers -----------------------------------------------------------------------------------------------

    def best(self) -> Iterator[str]:
        """The fitting nodes, the best first; among equals the one with the fewest pods, then by name."""
        points = self._points()
        if not points:
            return
        tops = [(self._ranked(points[place], self._top(place, self._places[place]))) for place in points]
        first = min(tops)[2]
        yield first
        ranked = [self._ranked(value, entry) for place, value in points.items()
                  for entry in self._members(place, self._places[place])]
        yield from (name for _, _, name in sorted(ranked) if name != first)

    @staticmethod
    def _ranked(points: float, entry: Entry) -> Entry:
        return round(entry[0] - points, score.ROUNDING), entry[1], entry[2]

    def _points(self) -> dict[Place, float]:
        """The fitting places and what being there is worth, beside the nodes' own scores."""
        refusal = self.constraints.refusal
        places = [place for place in self._places if refusal(place[0]) is None]
        if len(places) <= 1:
            return dict.fromkeys(places, 0.0)
        weights, total = self.weights, [0.0] * len(places)
        parts: list[tuple[int, list[float]]] = [
            (weights.taints, score.normalised([marks[0] for _, marks in places], True)),
            (weights.affinity, score.normalised([marks[1] for _, marks in places]))]
        if self.constraints.wishes:
            parts.append((weights.neighbours, score.wished([self.constraints.wish(at) for at, _ in places])))
        if self.constraints.soft:
            nodes: Counter[Coordinates] = Counter()
            for place in places:
                nodes[place[0]] += self._places[place].members
            crowded = self.constraints.crowding(nodes)
            parts.append((weights.spread, score.spread([crowded[at] for at, _ in places])))
        for weight, column in parts:
            if weight:
                total = [t + weight * value for t, value in zip(total, column)]
        return dict(zip(places, total))

    def refusals(self) -> Counter[Refusal]:
        """Why nodes do not take the pod, counted."""
        found = Counter({refused: count for refused, count in self.refused.items() if count})
        for place, heap in self._places.items():
            refused = self.constraints.refusal(place[0])
            if refused is not None:
                found[refused] += heap.members
        return found

    def takes(self, name: str) -> bool:
        judged = self._judged.get(name)
        return isinstance(judged, tuple) and self.constraints.refusal(judged[0][0]) is None

    def refused_nodes(self, final: bool) -> Iterator[tuple[str, Refusal]]:
        """Nodes that refuse; with `final` False only those which might not, were there fewer pods."""
        by_place = {place: self.constraints.refusal(place[0]) for place in self._places}
        for name, judged in self._judged.items():
            refused = judged if isinstance(judged, Refusal) else by_place[judged[0]]
            if refused is not None and (final or not refused.final):
                yield name, refused


class Tables:
    """The tables of the kinds of pods asked for lately."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._tables: OrderedDict[Hashable, Table] = OrderedDict()
        self._concerns: dict[Hashable, list[object]] = {}
        self._version = (-1, -1)

    def of(self, wants: Ask, weights: Weights) -> Table:
        """The current table for pods like `wants`."""
        names = fit.named_nodes(wants)
        if names is not None:  # as of a DaemonSet's pods: each has a node of its own, nothing to remember
            return Table(wants, self._snapshot, weights, names)
        key = (constraints.identity(wants, self._concerning(wants), self._snapshot), weights)
        table = self._tables.get(key)
        if table is None or not table.refresh():
            self._tables.pop(key, None)
            table = self._tables[key] = Table(wants, self._snapshot, weights)
            self._trim()
        self._tables.move_to_end(key)
        return table

    def _concerning(self, wants: Ask) -> list[object]:
        """The terms of running pods that concern this one: remembered, for pods of one workload ask the same."""
        snapshot = self._snapshot
        if not snapshot.own:
            return []
        if self._version != (snapshot.own_version, snapshot.epoch) or len(self._concerns) > CONCERNS_LIMIT:
            self._concerns.clear()
            self._version = (snapshot.own_version, snapshot.epoch)
        key = (wants.namespace, tuple(sorted(wants.labels.items())))
        found = self._concerns.get(key)
        if found is None:
            found = self._concerns[key] = list(constraints.foreign(wants, snapshot))
        return found

    def _trim(self) -> None:
        total = sum(len(table) for table in self._tables.values())
        while total > ENTRIES_LIMIT and len(self._tables) > 1:
            _, oldest = self._tables.popitem(last=False)
            total -= len(oldest)
