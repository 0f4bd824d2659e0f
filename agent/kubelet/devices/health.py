"""How the devices of one driver are, as it told last: a health is true for a time and then unknown.

Pure. Owns the words of `allocatedResourcesStatus`. Called by `drivers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WORDS = ("Unknown", "Healthy", "Unhealthy")  # by the drivers' numbers
TRUE_SECONDS = 30.0  # upstream's, of a driver that does not say how long
LONGEST = 1024  # characters of a message; upstream's


class Health:
    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[str, str, float]] = {}  # (pool, device) -> word, message, until

    def of(self, pool: str, device: str) -> tuple[str, str]:
        """Its health and the driver's message."""
        return self._told.get((pool, device), (WORDS[0], "", 0.0))[:2]

    def hear(self, devices: Iterable[Any], now: float) -> bool:
        """Take over what a driver tells (DeviceHealth); whether anything is not as it was."""
        news = False
        for told in devices:
            key = told.device.pool_name, told.device.device_name
            word = WORDS[told.health] if 0 <= told.health < len(WORDS) else WORDS[0]
            text = told.message if len(told.message) <= LONGEST else f"{told.message[:LONGEST - 3]}..."
            news = news or self.of(*key) != (word, text)
            seconds = told.health_check_timeout_seconds
            self._told[key] = word, text, now + (seconds if seconds > 0 else TRUE_SECONDS)
        return news

    def due(self) -> float | None:
        """When the first of them is true no more."""
        return min((until for _, _, until in self._told.values()), default=None)

    def expire(self, now: float) -> bool:
        """Forget what is true no more; whether there was any."""
        gone = [key for key, (_, _, until) in self._told.items() if until <= now]
        for key in gone:
            del self._told[key]
        return bool(gone)

    def clear(self) -> bool:
        """Forget all; whether there was any."""
        return self.expire(float("inf"))
