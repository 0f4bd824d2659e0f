"""Probes as arithmetic: when the next attempt is due and what a row of results means.

Pure. A `Verdict` changes only after successThreshold or failureThreshold equal results in a row. Before a container's
first success, startup and readiness are also tried at short, growing intervals, so that a quick program is Ready at
once and not a whole period later; those early misses count for nothing. Called by `prober`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

EAGER = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds between the uncounted first attempts; none outlasts the period
KINDS = {"startup": "startupProbe", "liveness": "livenessProbe", "readiness": "readinessProbe"}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and counts of one probe."""

    delay: float
    period: float
    timeout: float
    successes: int
    failures: int

    @classmethod
    def of(cls, probe: dict[str, Any]) -> Timing:
        return cls(float(probe.get("initialDelaySeconds") or 0), float(probe.get("periodSeconds") or 10),
                   float(probe.get("timeoutSeconds") or 1), int(probe.get("successThreshold") or 1),
                   int(probe.get("failureThreshold") or 3))


@dataclass(frozen=True, slots=True)
class Verdict:
    """`good` is None until a threshold is first reached."""

    good: bool | None = None
    last: bool | None = None
    row: int = 0  # equal results up to now
    early: int = 0  # uncounted attempts made


def judge(verdict: Verdict, timing: Timing, success: bool, kind: str) -> tuple[Verdict, float, bool]:
    """(new verdict, seconds until the next attempt, whether a failure is to be counted and told)."""
    if not success and verdict.last is None and kind != "liveness" and verdict.early < len(EAGER):
        pause = EAGER[verdict.early]
        if pause < timing.period:
            return replace(verdict, early=verdict.early + 1), pause, False
    row = verdict.row + 1 if verdict.last == success else 1
    good = verdict.good
    if row >= (timing.successes if success else timing.failures):
        good = success
    return Verdict(good, success, row, verdict.early), timing.period, not success
