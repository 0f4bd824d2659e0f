"""Eviction thresholds: how they are written, when they are met, and what of the node they say.

Pure. Owns the grammar of `memory.available<100Mi,nodefs.available<10%`, the grace of soft thresholds, the minimum that
is reclaimed beyond one, and how long a condition outlives its cause. Called by `eviction`, and by `keeping` for flags.

Upstream: pkg/kubelet/eviction/{helpers,api}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from controlplane.machinery import quantity

ALLOCATABLE = "allocatableMemory.available"  # of what all pods together may have
# Signal -> (resource it is about, condition of the node while it is short).
SIGNALS = {"memory.available": ("memory", "MemoryPressure"), ALLOCATABLE: ("memory", "MemoryPressure"),
           "nodefs.available": ("ephemeral-storage", "DiskPressure"),
           "nodefs.inodesFree": ("inodes", "DiskPressure"), "imagefs.available": ("ephemeral-storage", "DiskPressure"),
           "imagefs.inodesFree": ("inodes", "DiskPressure"), "pid.available": ("pids", "PIDPressure")}
HARD = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%"
TRANSITION_SECONDS = 300.0  # a condition stays that long after it was last true: upstream's
_SECONDS = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True, slots=True)
class Amount:
    """So many units, or a share of the capacity when `percent` is set."""

    units: int = 0
    percent: Fraction | None = None
    text: str = "0"

    def of(self, capacity: int) -> int:
        return self.units if self.percent is None else int(capacity * self.percent)


@dataclass(frozen=True, slots=True)
class Threshold:
    signal: str
    value: Amount
    grace: float = 0.0  # seconds it must hold before anything is done; 0.0 = hard
    reclaim: Amount = field(default_factory=Amount)  # beyond the value, before it counts as over

    @property
    def resource(self) -> str:
        return SIGNALS[self.signal][0]

    @property
    def condition(self) -> str:
        return SIGNALS[self.signal][1]


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is of a signal now."""

    available: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What the judgement carries from one look to the next. Times are monotonic seconds."""

    met: tuple[Threshold, ...] = ()
    since: Mapping[Threshold, float] = field(default_factory=dict)
    seen: Mapping[str, float] = field(default_factory=dict)  # condition -> when it last held


@dataclass(frozen=True, slots=True)
class Judgement:
    """`due` are the thresholds to act on, memory first; `conditions` what the node says of itself."""

    due: tuple[Threshold, ...]
    conditions: frozenset[str]
    memory: Memory


def amount(text: str) -> Amount:
    """`10%` or `100Mi`. Raises ValueError."""
    if text.endswith("%"):
        share = Fraction(text[:-1]) / 100
        if not 0 <= share <= 1:
            raise ValueError(f"{text} is no share of a whole")
        return Amount(percent=share, text=text)
    found = quantity.parse(text)
    if found.milli() < 0:
        raise ValueError(f"{text} is less than nothing")
    return Amount(found.value(), text=text)


def duration(text: str) -> float:
    """`1m30s` in seconds. Raises ValueError."""
    total, number = 0.0, ""
    for letter in text:
        if letter in _SECONDS and number:
            total, number = total + float(number) * _SECONDS[letter], ""
        else:
            number += letter
    if number or not text:
        raise ValueError(f"{text!r} is no duration such as 1m30s")
    return total


def pairs(text: str, separator: str = "=") -> dict[str, str]:
    """`a=1,b=2`. Raises ValueError."""
    found = {}
    for part in filter(None, text.split(",")):
        name, mark, value = part.partition(separator)
        if not mark or not value:
            raise ValueError(f"{part!r} is not written as name{separator}value")
        found[name.strip()] = value.strip()
    return found


def parse(hard: str = HARD, soft: str = "", graces: str = "", reclaims: str = "") -> tuple[Threshold, ...]:
    """The thresholds of the kubelet's flags. Raises ValueError."""
    reclaim, grace = pairs(reclaims), pairs(graces)
    made = []
    for text, is_soft in ((hard, False), (soft, True)):
        for signal, value in pairs(text, "<").items():
            if signal not in SIGNALS:
                raise ValueError(f"unsupported eviction signal {signal}")
            if is_soft and signal not in grace:
                raise ValueError(f"grace period must be specified for the soft eviction threshold {signal}")
            made.append(Threshold(signal, amount(value), duration(grace[signal]) if is_soft else 0.0,
                                  amount(reclaim.get(signal, "0"))))
    return tuple(t for t in made if t.value.units or t.value.percent)


def with_pods(thresholds: tuple[Threshold, ...]) -> tuple[Threshold, ...]:
    """The same, and for the memory of all pods what must be free of the node's at once: pods that are held to less than
    the node has run short before it does."""
    return (*thresholds, *(replace(t, signal=ALLOCATABLE) for t in thresholds
                           if t.signal == "memory.available" and not t.grace))


def met(threshold: Threshold, readings: Mapping[str, Reading], *, reclaim: bool = False) -> bool:
    """Whether there is less than the threshold wants; with `reclaim` than it and its minimum want together."""
    reading = readings.get(threshold.signal)
    if reading is None:
        return False
    wanted = threshold.value.of(reading.capacity) + (threshold.reclaim.of(reading.capacity) if reclaim else 0)
    return reading.available < wanted


def judge(thresholds: Iterable[Threshold], readings: Mapping[str, Reading], before: Memory, now: float,
          transition: float = TRANSITION_SECONDS) -> Judgement:
    """What the readings mean. A threshold once met stays so until its minimum is reclaimed."""
    crossed = tuple(t for t in thresholds if met(t, readings, reclaim=t in before.met))
    since = {t: before.since.get(t, now) for t in crossed}
    seen = {**before.seen, **{t.condition: now for t in crossed}}
    conditions = frozenset(name for name, at in seen.items() if now - at < transition or at == now)
    due = [t for t in crossed if now - since[t] >= t.grace]
    due.sort(key=lambda t: (t.resource != "memory", bool(t.grace)))
    return Judgement(tuple(due), conditions, Memory(crossed, since, {n: seen[n] for n in conditions}))
