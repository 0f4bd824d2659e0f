"""The pods that wait for a node: ready to try, backing off, or waiting for the cluster to change.

A pod that did not fit waits until something happens that could make it fit, told by `cluster_changed` with the test
that says whom it helps, but at least until its back-off is over; after five minutes it is tried anyway. When nothing
else is to do, a pod whom a change helps need not wait for its back-off. Order: priority, then age in the queue. Pure:
the caller gives the time (monotonic seconds), and asks `deadline()` when to look again.

Upstream: pkg/scheduler/backend/queue.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BACKOFF_FIRST, BACKOFF_MOST = 1.0, 10.0  # seconds, upstream's podInitialBackoffSeconds and podMaxBackoffSeconds
UNSCHEDULABLE_MOST = 300.0  # seconds after which a waiting pod is tried even if nothing happened
OUTDATED_LIMIT = 64  # dead entries a heap may hold beyond the living before it is made anew

# The states of a waiting pod.
ACTIVE, TAKEN, BACKING_OFF, PARKED = "active", "taken", "backing off", "parked"


@dataclass(slots=True)
class Waiting:
    """`verdict` is what the last attempt found, for those who ask whether a change helps."""

    pod: dict[str, Any]
    uid: str
    priority: int
    since: float
    state: str = ACTIVE
    attempts: int = 0
    not_before: float = 0.0  # end of its back-off
    try_by: float = 0.0  # a parked pod is tried by then, whatever happened
    ticket: int = 0  # its live entry in a heap
    moved: int = 0  # the change counter when it was taken: a change meanwhile may have been for it
    eager: bool = False  # a change helps it: its back-off may be cut short
    verdict: Any = None

    @property
    def due(self) -> float:
        return self.try_by if self.state == PARKED else self.not_before


def _asked(pod: dict[str, Any]) -> tuple[Any, ...]:
    """What of a pod a decision depends on; of its status the names of the claims that were made for it."""
    return pod.get("spec"), pod["metadata"].get("labels"), (pod.get("status") or {}).get("resourceClaimStatuses")


Helps = Callable[[Waiting], bool]


class Queue:
    def __init__(self, first: float = BACKOFF_FIRST, most: float = BACKOFF_MOST) -> None:
        self._first, self._most = first, most
        self._waiting: dict[str, Waiting] = {}
        self._parked: dict[str, Waiting] = {}  # those of them that a change may help
        self._active: list[tuple[int, float, int, str]] = []
        self._timers: list[tuple[float, int, str]] = []
        self._order = itertools.count(1)
        self._changes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, uid: str) -> bool:
        return uid in self._waiting

    def get(self, uid: str) -> Waiting | None:
        return self._waiting.get(uid)

    def put(self, pod: dict[str, Any], now: float) -> None:
        """A pod without a node appeared or changed: try it (a change may be what it was waiting for)."""
        uid = pod["metadata"]["uid"]
        priority = (pod.get("spec") or {}).get("priority") or 0
        entry = self._waiting.get(uid)
        if entry is None:
            entry = self._waiting[uid] = Waiting(pod, uid, priority, now)
            self._push(entry)
            return
        changed = _asked(entry.pod) != _asked(pod)
        entry.pod, entry.priority = pod, priority
        if changed:
            self._unpark(entry, now)

    def drop(self, uid: str) -> None:
        self._waiting.pop(uid, None)
        self._parked.pop(uid, None)

    def pop(self, now: float) -> Waiting | None:
        """The next pod to try. It stays taken until `drop` (it has a node) or `refused` (it found none)."""
        while self._timers and self._timers[0][0] <= now:
            _, ticket, uid = heapq.heappop(self._timers)
            entry = self._waiting.get(uid)
            if entry is not None and entry.ticket == ticket and entry.state in (PARKED, BACKING_OFF):
                self._push(entry)
        while self._active:
            _, _, ticket, uid = heapq.heappop(self._active)
            first = self._waiting.get(uid)
            if first is not None and first.state == ACTIVE and first.ticket == ticket:
                return self.take(first)
        for _, ticket, uid in self._timers[:OUTDATED_LIMIT]:
            early = self._waiting.get(uid)
            if early is not None and early.ticket == ticket and early.state == BACKING_OFF and early.eager:
                return self.take(early)
        return None

    def take(self, entry: Waiting) -> Waiting:
        """Take a certain pod, whatever it waits for."""
        self._become(entry, TAKEN)
        entry.moved, entry.eager = self._changes, False
        return entry

    def refused(self, uid: str, now: float, *, park: bool = True, verdict: Any = None) -> None:
        """It found no node (`park`: wait for a change), or binding failed (not parked: only the back-off)."""
        entry = self._waiting.get(uid)
        if entry is None:
            return
        entry.attempts += 1
        entry.verdict = verdict
        entry.not_before = now + min(self._first * 2 ** min(entry.attempts - 1, 16), self._most)
        entry.try_by = now + UNSCHEDULABLE_MOST
        self._become(entry, PARKED if park and entry.moved == self._changes else BACKING_OFF)
        self._arm(entry)

    def cluster_changed(self, now: float, helps: Helps | None = None) -> None:
        """Something happened: every parked pod whom it `helps` is tried again when its back-off is over."""
        self._changes += 1
        if self._parked:
            for entry in [one for one in self._parked.values() if helps is None or helps(one)]:
                self._unpark(entry, now)

    def deadline(self) -> float | None:
        """When the next pod ripens by time alone; None = only an event can change anything."""
        while self._timers:
            due, ticket, uid = self._timers[0]
            entry = self._waiting.get(uid)
            if entry is not None and entry.ticket == ticket and entry.state in (PARKED, BACKING_OFF):
                return due
            heapq.heappop(self._timers)
        return None

    def _unpark(self, entry: Waiting, now: float) -> None:
        if entry.state == PARKED:
            self._become(entry, BACKING_OFF)
            entry.eager = True
            if entry.not_before <= now:
                self._push(entry)
            else:
                self._arm(entry)

    def _become(self, entry: Waiting, state: str) -> None:
        entry.state = state
        if state == PARKED:
            self._parked[entry.uid] = entry
        else:
            self._parked.pop(entry.uid, None)

    def _arm(self, entry: Waiting) -> None:
        entry.ticket = next(self._order)
        heapq.heappush(self._timers, (entry.due, entry.ticket, entry.uid))
        if len(self._timers) > 2 * len(self._waiting) + OUTDATED_LIMIT:
            self._timers = [t for t in self._timers
                            if (e := self._waiting.get(t[2])) is not None and e.ticket == t[1]]
            heapq.heapify(self._timers)

    def _push(self, entry: Waiting) -> None:
        self._become(entry, ACTIVE)
        entry.ticket = next(self._order)
        heapq.heappush(self._active, (-entry.priority, entry.since, entry.ticket, entry.uid))
