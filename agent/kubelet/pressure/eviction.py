"""Keeps the node alive when it runs short: says so in the node's conditions, clears up, and evicts one pod at a time.

Owns the conditions MemoryPressure, DiskPressure and PIDPressure and the look at the node's signals every ten seconds: a
few system calls; pods are measured only when a threshold is crossed or a limit of local storage is theirs. Promises
that what can be cleared without a pod is cleared first, that no second pod goes before the first has, and that a pod
beyond its own limits goes whatever the node has. Decides nothing itself: `thresholds` and `victims` do. Run by the
agent.

Upstream: pkg/kubelet/eviction/eviction_manager.go.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from agent.kubelet.cri.runtime import CallError
from agent.kubelet.model import ObservedPod
from agent.kubelet.plan import grace_of
from agent.kubelet.pressure import thresholds, victims
from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.thresholds import Reading, Threshold
from controlplane.machinery.clock import Clock

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0  # upstream's housekeeping
HARD_GRACE = 1.0  # seconds a pod has when the node cannot wait
GONE_SECONDS = 30.0  # a victim that has not stopped by then no longer holds up the next
Object = dict[str, Any]


class Victim(Protocol):
    """A pod's worker, as far as evictions go."""

    pod: Object
    seen: ObservedPod

    @property
    def active(self) -> bool: ...

    def doom(self, reason: str, message: str, grace: float | None = None, *marks: tuple[str, str, str, str]) -> None:
        ...


class Evictions:
    """`reclaim(resource)` clears what no pod needs, `tell(pod or None, reason, message)` is an event of the pod or of
    the node (of an evicted pod with its annotations), `changed()` is called when the conditions are others."""

    def __init__(self, keeping: Keeping, signals: Callable[[], dict[str, Reading]],
                 pods: Callable[[], Iterable[Victim]], accounting: Accounting,
                 reclaim: Callable[[str], Awaitable[None]], tell: Callable[..., None],
                 changed: Callable[[], None], clock: Clock) -> None:
        self._keeping, self._signals, self._pods, self._accounting = keeping, signals, pods, accounting
        self._reclaim, self._tell, self._changed, self._clock = reclaim, tell, changed, clock
        self._memory = thresholds.Memory()
        self._leaving: list[tuple[Victim, float]] = []  # victims and when they were told
        self.conditions: frozenset[str] = frozenset()
        self.count: Counter[str] = Counter()  # evictions by signal

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except (OSError, CallError) as error:
                log.warning("cannot see whether the node runs short: %s", error)
            await self._clock.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """One look, and at most one pod evicted for the node's sake."""
        readings = self._signals()
        found = self._judge(readings)
        if await self._limits() or not found.due or self._waiting():
            return
        threshold = found.due[0]
        self._tell(None, "EvictionThresholdMet", f"Attempting to reclaim {threshold.resource}")
        if threshold.condition == "DiskPressure":
            await self._reclaim(threshold.resource)
            readings = self._signals()
            if not thresholds.met(threshold, readings, reclaim=True):
                self._judge(readings)
                return
        await self._evict(threshold, readings[threshold.signal])

    def _judge(self, readings: dict[str, Reading]) -> thresholds.Judgement:
        found = thresholds.judge(self._keeping.evictions, readings, self._memory, self._clock.monotonic(),
                                 self._keeping.transition)
        self._memory = found.memory
        if found.conditions != self.conditions:
            log.warning("the node's pressures are now: %s", ", ".join(sorted(found.conditions)) or "none")
            self.conditions = found.conditions
            self._changed()
        return found

    def _waiting(self) -> bool:
        """Whether an earlier victim is still stopping, or holds what it had."""
        now = self._clock.monotonic()
        self._leaving = [(v, at) for v, at in self._leaving if now - at < GONE_SECONDS
                         and (v.seen.running or self._accounting.holds(v.pod))]
        return bool(self._leaving)

    async def _limits(self) -> bool:
        """Evict the pods beyond their own limits of local storage, which no disruption of the node's is to blame for;
        whether there were any."""
        limited = [v for v in self._pods() if v.active and victims.limited(v.pod)]
        uses = await self._accounting.disk([(v.pod, v.seen) for v in limited])
        gone = [(v, why) for v, use in zip(limited, uses) if (why := victims.overstepped(v.pod, use))]
        for victim, why in gone:
            self._end(victim, "ephemeral-storage limit", why, HARD_GRACE, {})
        return bool(gone)

    async def _evict(self, threshold: Threshold, reading: Reading) -> None:
        present = [v for v in self._pods() if v.active]
        by_uid = {v.pod["metadata"]["uid"]: v for v in present}
        uses = [self._accounting.memory(v.pod, v.seen) for v in present]
        if threshold.condition == "DiskPressure":
            disks = await self._accounting.disk([(v.pod, v.seen) for v in present])
            uses = [replace(d, memory=m.memory, memories=m.memories, pids=m.pids) for d, m in zip(disks, uses)]
        ranked = victims.rank(zip((v.pod for v in present), uses), threshold.resource)
        if not ranked:
            log.error("the node is short of %s, and no pod may be evicted", threshold.resource)
            return
        pod, use = ranked[0]
        why = victims.message(pod, use, threshold, reading)
        self._end(by_uid[pod["metadata"]["uid"]], threshold.signal, why, self._grace(pod, threshold),
                  victims.offence(pod, use, threshold.resource), (*victims.MARK, why))

    def _grace(self, pod: Object, threshold: Threshold) -> float:
        if not threshold.grace:
            return HARD_GRACE
        own = grace_of(pod)
        return min(own, self._keeping.max_grace) if self._keeping.max_grace else own

    def _end(self, victim: Victim, signal: str, why: str, grace: float, notes: dict[str, str],
             *marks: tuple[str, str, str, str]) -> None:
        meta = victim.pod["metadata"]
        log.warning("evicting pod %s/%s: %s", meta.get("namespace", ""), meta["name"], why)
        self.count[signal] += 1
        self._tell(victim.pod, victims.REASON, why, notes)
        victim.doom(victims.REASON, why, grace, *marks)
        self._leaving.append((victim, self._clock.monotonic()))
