"""How many pods of some description each topology domain holds, kept current pod by pod. Pure.

Owns `Tally`. One tally answers one question ("pods with app=web per zone", "pods that want nobody like me per host"),
is filled once and from then on moved by single steps, so that a decision never counts pods. Promises that `counts`,
`least` and `total` are exact after every step, and that `since` names each domain whose count changed. Owned by
`snapshot`, read by `constraints`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

JOURNAL_LIMIT = 8192  # remembered changes of nodes; a reader that is further behind starts afresh
DOMAIN_JOURNAL_LIMIT = 1024  # and of one tally's domains: there are many tallies


class Journal:
    """A bounded list of names of what changed; readers keep the position they have read to."""

    __slots__ = ("_base", "_limit", "_names")

    def __init__(self, limit: int = JOURNAL_LIMIT) -> None:
        self._names: list[str] = []
        self._base, self._limit = 0, limit

    @property
    def end(self) -> int:
        return self._base + len(self._names)

    def note(self, name: str) -> None:
        self._names.append(name)
        if len(self._names) > self._limit:
            half = self._limit // 2
            del self._names[:half]
            self._base += half

    def since(self, position: int) -> list[str] | None:
        """The names noted since `position`; None when they are no longer known."""
        return None if position < self._base else self._names[position - self._base:]


class Tally:
    """Pods per domain of `key`. `covers(group)` says which pods count, `eligible(node)` on which nodes."""

    __slots__ = ("_levels", "_nodes", "_sizes", "alive", "counts", "covers", "eligible", "journal", "key",
                 "total", "users")

    def __init__(self, key: str, covers: Callable[[Any], bool], eligible: Callable[[Any], bool] | None = None) -> None:
        self.key, self.covers, self.eligible = key, covers, eligible
        self.counts: dict[str, int] = {}  # domain -> pods; every domain with an eligible node is there
        self.total = 0
        self.alive = True  # False: the snapshot counts it no more
        self.users = 0  # whoever registered it, for terms that come and go with pods
        self.journal = Journal(DOMAIN_JOURNAL_LIMIT)
        self._nodes: dict[str, list[Any]] = {}  # node -> [domain, pods]
        self._sizes: dict[str, int] = {}  # domain -> eligible nodes
        self._levels: dict[int, int] = {}  # count -> domains that have it

    @property
    def domains(self) -> int:
        return len(self._sizes)

    @property
    def least(self) -> int:
        """The smallest count of any domain; 0 when there is none. There are as many levels as counts differ: few."""
        return min(self._levels, default=0)

    def enter(self, node: str, domain: str, pods: int) -> None:
        """The node counts from now on, with the pods it has."""
        self._nodes[node] = [domain, pods]
        self._sizes[domain] = self._sizes.get(domain, 0) + 1
        if self._sizes[domain] == 1:
            self._levels[0] = self._levels.get(0, 0) + 1
            self.counts[domain] = 0
        self._move(domain, pods)

    def leave(self, node: str) -> None:
        entry = self._nodes.pop(node, None)
        if entry is None:
            return
        domain, pods = entry
        self._move(domain, -pods)
        self._sizes[domain] -= 1
        if not self._sizes[domain]:
            del self._sizes[domain]
            self._lower(self.counts.pop(domain))
        self.journal.note(domain)

    def add(self, node: str, pods: int) -> None:
        """`pods` more (or less) on a node; nothing when the node does not count."""
        entry = self._nodes.get(node)
        if entry is not None:
            entry[1] += pods
            self._move(entry[0], pods)

    def domain_of(self, node: str) -> str | None:
        entry = self._nodes.get(node)
        return entry[0] if entry is not None else None

    def _move(self, domain: str, pods: int) -> None:
        if not pods:
            return
        before = self.counts[domain]
        self.counts[domain] = before + pods
        self.total += pods
        self._lower(before)
        self._levels[before + pods] = self._levels.get(before + pods, 0) + 1
        self.journal.note(domain)

    def _lower(self, level: int) -> None:
        left = self._levels[level] - 1
        if left:
            self._levels[level] = left
        else:
            del self._levels[level]
