"""Crash and pull back-off as pure arithmetic: 10 s, doubled to 5 min, forgotten after 10 quiet minutes.

Owns the numbers and how Go prints durations, since users grep `back-off 10s restarting`. A `BackOff` is a frozen value
kept per container by the worker; `plan` reads it, the worker replaces it when it acts. Never reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIAL = 10.0  # seconds; upstream's first delay
LIMIT = 300.0  # seconds; upstream's longest delay
FORGET = 2 * LIMIT  # a container that ran this long starts over


@dataclass(frozen=True, slots=True)
class BackOff:
    """`delay` seconds must pass after an exit; `since` is when the delay was last lengthened (seconds, epoch)."""

    delay: float = 0.0
    since: float = 0.0

    def until(self, failed_at: float) -> float:
        """When the next attempt may begin, after a failure at `failed_at`; 0.0 when at once."""
        if not self.delay or failed_at - self.since > FORGET:
            return 0.0
        return failed_at + self.delay

    def longer(self, failed_at: float, now: float) -> BackOff:
        """The back-off after one more attempt that follows a failure at `failed_at`."""
        if not self.delay or failed_at - self.since > FORGET:
            return BackOff(INITIAL, now)
        return BackOff(min(self.delay * 2, LIMIT), now)


def duration(seconds: float) -> str:
    """Whole seconds as Go prints a time.Duration: `10s`, `1m20s`, `5m0s`, `1h0m0s`."""
    total = int(seconds)
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if minutes or hours else ""
    return f"{text}{left}s"
