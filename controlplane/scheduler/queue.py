"""The pods that wait for a node: ready to try, backing off, or waiting for the cluster to change.

A pod that did not fit waits until something happens that could make it fit (a node changed, a pod left), but at least
until its back-off is over; after five minutes it is tried anyway. Order: priority, then age in the queue. Pure: the
caller gives the time (monotonic seconds), and asks `deadline()` when to look again.

Upstream: pkg/scheduler/backend/queue.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any

BACKOFF_FIRST, BACKOFF_MOST = 1.0, 10.0  # seconds, upstream's podInitialBackoffSeconds and podMaxBackoffSeconds
UNSCHEDULABLE_MOST = 300.0  # seconds after which a waiting pod is tried even if nothing happened


# The states of a waiting pod.
ACTIVE, TAKEN, BACKING_OFF, PARKED = "active", "taken", "backing off", "parked"


@dataclass(slots=True)
class Waiting:
    pod: dict[str, Any]
    uid: str
    priority: int
    since: float
    state: str = ACTIVE
    attempts: int = 0
    not_before: float = 0.0  # end of its back-off
    try_by: float = 0.0  # a parked pod is tried by then, whatever happened
    ticket: int = 0  # its live entry in the heap

    @property
    def due(self) -> float:
        return self.try_by if self.state == PARKED else self.not_before


class Queue:
    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._active: list[tuple[int, float, int, str]] = []
        self._order = itertools.count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, pod: dict[str, Any], now: float) -> None:
        """A pod without a node appeared or changed: try it (a change may be what it was waiting for)."""
        uid = pod["metadata"]["uid"]
        priority = (pod.get("spec") or {}).get("priority") or 0
        entry = self._waiting.get(uid)
        if entry is None:
            entry = self._waiting[uid] = Waiting(pod, uid, priority, now)
            self._push(entry)
            return
        changed = entry.pod.get("spec") != pod.get("spec") or (
            entry.pod["metadata"].get("labels") != pod["metadata"].get("labels"))
        entry.pod, entry.priority = pod, priority
        if changed:
            self._unpark(entry, now)

    def drop(self, uid: str) -> None:
        self._waiting.pop(uid, None)

    def pop(self, now: float) -> Waiting | None:
        """The next pod to try. It stays taken until `drop` (it has a node) or `refused` (it found none)."""
        for entry in self._waiting.values():
            if entry.state in (PARKED, BACKING_OFF) and now >= entry.due:
                self._push(entry)
        while self._active:
            _, _, ticket, uid = heapq.heappop(self._active)
            first = self._waiting.get(uid)
            if first is not None and first.state == ACTIVE and first.ticket == ticket:
                first.state = TAKEN
                return first
        return None

    def refused(self, uid: str, now: float, *, park: bool = True) -> None:
        """It found no node (`park`: wait for a change), or binding failed (not parked: only the back-off)."""
        entry = self._waiting.get(uid)
        if entry is None:
            return
        entry.attempts += 1
        entry.not_before = now + min(BACKOFF_FIRST * 2 ** (entry.attempts - 1), BACKOFF_MOST)
        entry.try_by = now + UNSCHEDULABLE_MOST
        entry.state = PARKED if park else BACKING_OFF

    def cluster_changed(self, now: float) -> None:
        """Something happened that may make room: every parked pod is tried again when its back-off is over."""
        for entry in self._waiting.values():
            self._unpark(entry, now)

    def deadline(self) -> float | None:
        """When the next pod ripens by time alone; None = only an event can change anything."""
        return min((e.due for e in self._waiting.values() if e.state in (PARKED, BACKING_OFF)), default=None)

    def _unpark(self, entry: Waiting, now: float) -> None:
        if entry.state == PARKED:
            entry.state = BACKING_OFF
            if entry.not_before <= now:
                self._push(entry)

    def _push(self, entry: Waiting) -> None:
        entry.state, entry.ticket = ACTIVE, next(self._order)
        heapq.heappush(self._active, (-entry.priority, entry.since, entry.ticket, entry.uid))
