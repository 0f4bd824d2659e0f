"""All time and all randomness, behind one object, so that tests and the simulation own both.

A component takes a `Clock` and never imports `time` or `random`. `SYSTEM` is the real one. A test hands in a
`FakeClock` and moves it with `advance`: sleepers wake in order, without any real waiting. Wall time is for what users
read (timestamps); monotonic time is for durations and deadlines, so a step of the wall clock never fires a timer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
import uuid
from datetime import UTC, datetime

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # upstream's: no vowels, so no words; no 0/1/3, so no look-alikes


def rfc3339(seconds: float) -> str:
    """Wall seconds since the epoch as Kubernetes writes metav1.Time: whole seconds, UTC, `Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().removesuffix("+00:00") + "Z"


def rfc3339_micro(seconds: float) -> str:
    """Wall seconds as metav1.MicroTime: six decimals."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch of a metav1.Time or MicroTime (nanoseconds are cut to microseconds).

    Raises ValueError when the text is no RFC 3339 time."""
    if "." in text:
        head, _, tail = text.partition(".")
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[:min(digits, 6)]:0<6}{tail[digits:]}"
    return datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00")).timestamp()


class Clock:
    """The real clock."""

    def __init__(self, seed: int | None = None) -> None:
        self.random = random.Random(seed)

    def now(self) -> float:
        """Wall time, seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go backwards."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timestamp(self) -> str:
        return rfc3339(self.now())

    def micro_timestamp(self) -> str:
        return rfc3339_micro(self.now())

    def uid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def suffix(self, length: int = 5) -> str:
        """The random tail of a generated name."""
        return "".join(self.random.choice(ALPHABET) for _ in range(length))

    def jitter(self, seconds: float, factor: float = 0.5) -> float:
        """`seconds` lengthened by up to `factor` of itself."""
        return seconds * (1 + self.random.random() * factor)


class FakeClock(Clock):
    """A clock that stands still until `advance` moves it; sleepers wake in the order of their deadlines."""

    def __init__(self, start: float = 1_700_000_000.0, seed: int = 1) -> None:
        super().__init__(seed)
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking every sleeper on the way and letting tasks run after each."""
        target = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            when, _, wake = heapq.heappop(self._sleepers)
            self._now = max(self._now, when)
            if not wake.done():
                wake.set_result(None)
            await settle()
        self._now = target
        await settle()


async def settle(rounds: int = 20) -> None:
    """Let every task that can run without time passing do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)


SYSTEM = Clock()
