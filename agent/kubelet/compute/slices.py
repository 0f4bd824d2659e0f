"""Control groups that systemd keeps: slices made, limited and ended by asking it, never behind its back.

Owns what is asked of systemd's manager and how limits are called there. Promises that a slice has its limits from the
moment it is there, that making and ending one are idempotent, and that what was changed while it ran leaves no file
behind. Called by `cgroups`.

Specification: systemd's org.freedesktop.systemd1; upstream asks the same by runc's libcontainer.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from agent.kubelet.host.dbus import BUS, CALL_SECONDS, DRIVER, PRIVATE, Bus, Refused, text
from agent.kubelet.model import LinuxResources

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = (SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager")
JOBS = f"type='signal',interface='{MANAGER[2]}',member='JobRemoved'"
THERE, ABSENT = f"{SYSTEMD}.UnitExists", f"{SYSTEMD}.NoSuchUnit"
CONTROL = Path("/run/systemd/system.control")  # where systemd keeps what was changed of a running unit
INFINITE = (1 << 64) - 1
PERCENT = 10_000  # microseconds of a second; systemd's files cut quotas to whole ones, and a reload reads those
Properties = list[tuple[str, tuple[str, Any]]]


def v2_weight(shares: int) -> int:
    """cpu.weight of v1 shares, by the runtimes' formula."""
    return 1 + ((shares - 2) * 9999) // 262142 if shares else 100


def properties(limits: LinuxResources, *, v2: bool) -> Properties:
    """The limits as systemd names them; 0 is none, and is said so that an earlier one goes. A quota is rounded
    up to whole percents, as the runtimes round their containers'."""
    weight = ("CPUWeight", v2_weight(limits.cpu_shares)) if v2 else ("CPUShares", limits.cpu_shares or 1024)
    quota = -(-limits.cpu_quota * 100 // limits.cpu_period) * PERCENT if limits.cpu_quota else INFINITE
    return [(name, ("t", value)) for name, value in (
        weight, ("MemoryMax" if v2 else "MemoryLimit", limits.memory_limit or INFINITE), ("CPUQuotaPerSecUSec", quota),
        ("TasksMax", limits.pids or INFINITE))]


class Slices:
    """`bus` is the system's; without one systemd itself is asked, which root may."""

    def __init__(self, *, v2: bool, bus: Path = BUS, control: Path = CONTROL) -> None:
        self._v2, self._bus, self._control = v2, bus, control

    def _manager(self) -> Bus:
        return Bus(self._bus if self._bus.exists() else PRIVATE)

    async def set(self, wanted: dict[str, LinuxResources]) -> None:
        """Have these slices (`a-b.slice`) with these limits. Raises OSError."""
        async with self._manager() as bus:
            if self._bus.exists():  # systemd's own socket has only its signals, and asks nobody who wants them
                await bus.call(*DRIVER, "AddMatch", "s", JOBS)
            await bus.call(*MANAGER, "Subscribe")
            jobs = {}
            for name, limits in wanted.items():
                told = properties(limits, v2=self._v2)
                made: Properties = [("Description", ("s", f"Kubernetes pods, {name}")),
                                    ("DefaultDependencies", ("b", False)),
                                    *((f"{kind}Accounting", ("b", True)) for kind in ("CPU", "Memory", "Tasks"))]
                try:
                    job = await bus.call(*MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace",
                                         [*made, *told], [])
                    jobs[text(job)] = name
                except Refused as error:
                    if error.name != THERE:
                        raise
                    await bus.call(*MANAGER, "SetUnitProperties", "sba(sv)", name, True, told)
            await self._done(bus, jobs)

    @staticmethod
    async def _done(bus: Bus, jobs: dict[str, str]) -> None:
        """Wait until these jobs have ended. Raises Refused."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                while jobs and (signal := await bus.signals.get()) is not None:
                    job = text(signal[1][4:])  # after the job's number
                    if signal[0] == "JobRemoved" and job in jobs:
                        del jobs[job]
        except TimeoutError as error:
            raise Refused(f"systemd does not make {', '.join(jobs.values())}") from error

    async def end(self, names: list[str]) -> None:
        """End these slices with all in them. Raises OSError."""
        if not names:
            return
        async with self._manager() as bus:
            for name in names:
                try:
                    await bus.call(*MANAGER, "StopUnit", "ss", name, "replace")
                except Refused as error:
                    if error.name != ABSENT:
                        raise
                shutil.rmtree(self._control / f"{name}.d", ignore_errors=True)
