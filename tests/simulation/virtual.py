"""Time that passes only when nothing else is left to do.

Owns an event loop whose clock jumps to the next timer whenever every task waits, so that idle hours cost nothing, and a
`Clock` that reads it. Promises the same order of things for the same seed: nothing here asks the real clock, and work
meant for threads is done on the spot. Called by `run`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

from controlplane.machinery.clock import Clock

START = 1_700_000_000.0  # wall seconds at which every simulation begins


class Stuck(Exception):  # noqa: N818 - says what it is
    """Nothing is left that could ever happen."""


class _Selector(selectors.SelectSelector):
    """Never waits: what would have been waited is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Stuck("every task waits, and no timer is set")
        if not ready and timeout:
            self.passed += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._clock_resolution = 1e-6  # timers this near are due: rounding must not make the loop spin

    def time(self) -> float:
        return self._clock.passed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """On the spot: a thread would take real time, in which the clock must not jump."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class VirtualClock(Clock):
    """Reads the loop's time; `skew` seconds is what its wall clock is wrong by."""

    def __init__(self, loop: Loop, seed: int, skew: float = 0.0) -> None:
        super().__init__(seed)
        self._loop, self.skew = loop, skew

    def now(self) -> float:
        return START + self._loop.time() + self.skew

    def monotonic(self) -> float:
        return self._loop.time()
