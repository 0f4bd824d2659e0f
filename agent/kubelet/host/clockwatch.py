"""Whether somebody set this host's clock: by hand, or a time service that had not been asked for long.

Owns the comparison of the clock with the kernel's own count of seconds, made every ten seconds. Promises that a clock
that is only steered is left alone, and that every jump is told once. Run by the agent's housekeeping, which says so in
an event of the node and has nothing wait for a time of before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from controlplane.machinery.clock import Clock

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0
JUMP_SECONDS = 5.0  # time services steer a clock by less than a hundredth of that between two looks


class ClockWatch:
    """`jumped(text)` is called with what happened."""

    def __init__(self, jumped: Callable[[str], None], clock: Clock) -> None:
        self._jumped, self._clock = jumped, clock
        self._ahead = self._now()

    def _now(self) -> float:
        """Seconds that the clock is ahead of the kernel's count."""
        return self._clock.now() - self._clock.monotonic()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        before, self._ahead = self._ahead, self._now()
        by = self._ahead - before
        if abs(by) >= JUMP_SECONDS:
            text = f"the node's clock was set {'forward' if by > 0 else 'back'} by {abs(by):.0f} seconds"
            log.warning("%s", text)
            self._jumped(text)
