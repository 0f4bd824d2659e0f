"""systemd's word on shutdowns: a delay lock, and the signal that the host is about to go down.

Owns what is asked of logind: `Inhibit`, how long it waits, and to hear `PrepareForShutdown`. Promises that the lock is
held until `release` or the end of the process, whatever ends it. A host without logind has no such socket, which
`present` tells. Called by `shutdown`.

Specification: systemd's org.freedesktop.login1.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from agent.kubelet.host.dbus import BUS, DRIVER, Bus, Refused

LOGIND = "org.freedesktop.login1"
MANAGER = (LOGIND, "/org/freedesktop/login1", f"{LOGIND}.Manager")
SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


class Logind:
    """Use as an async context manager: `async with Logind() as logind`. Raises OSError where there is none."""

    def __init__(self, bus: Path = BUS) -> None:
        self._bus = Bus(bus)
        self._lock = -1

    @staticmethod
    def present(bus: Path = BUS, seats: Path = Path("/run/systemd/seats")) -> bool:
        """Whether this host has a logind to ask."""
        return bus.exists() and seats.is_dir()

    async def __aenter__(self) -> Logind:
        await self._bus.__aenter__()
        try:
            await self._bus.call(*DRIVER, "AddMatch", "s",
                                 f"type='signal',interface='{MANAGER[2]}',member='PrepareForShutdown'")
        except BaseException:
            await self._bus.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
        await self._bus.__aexit__()

    async def inhibit(self, who: str, why: str) -> None:
        """Delay shutdowns until `release`. Raises Refused."""
        await self._bus.call(*MANAGER, "Inhibit", "ssss", "shutdown", who, why, "delay")
        if not self._bus.descriptors:
            raise Refused("logind gave no lock")
        self.release()
        self._lock = self._bus.descriptors.pop()

    async def patience(self) -> float:
        """How many seconds a shutdown waits for locks at most. Raises Refused."""
        body = await self._bus.call(*MANAGER[:2], "org.freedesktop.DBus.Properties", "Get", "ss", MANAGER[2],
                                    "InhibitDelayMaxUSec")
        return float(struct.unpack_from("<Q", body, 8)[0]) / 1e6  # behind the variant's own signature

    async def reload(self) -> None:
        """Have logind read its configuration again. Raises Refused."""
        await self._bus.call(*SYSTEMD, "KillUnit", "ssi", "systemd-logind.service", "all", int(signal.SIGHUP))

    def release(self) -> None:
        """Let the shutdown go on."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def shutdowns(self) -> AsyncIterator[bool]:
        """True when the host is about to go down, False when that was called off. Ends when the bus is gone."""
        while (told := await self._bus.signals.get()) is not None:
            if told[0] == "PrepareForShutdown":
                yield bool(struct.unpack_from("<I", told[1])[0])
