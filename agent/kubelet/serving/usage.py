"""What a control group or the host uses, read from kernel files: CPU, memory, network, and what it has to wait for.

Owns the formats of cgroup v2, of v1 and of /proc. Promises that what vanishes while it is read is None. Called by
`stats` and `exposition`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.pressure import signals


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU since the start in nanoseconds; memory in bytes, `working_set` without what the kernel could drop at once;
    `limit` 0 = none. Throttling counts periods, and nanoseconds lost in them."""

    cpu: int
    memory: int
    working_set: int
    rss: int
    cache: int = 0
    faults: int = 0
    major_faults: int = 0
    limit: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one network interface since it was made."""

    name: str
    received: int
    receive_errors: int
    sent: int
    send_errors: int
    received_packets: int = 0
    sent_packets: int = 0
    received_dropped: int = 0
    sent_dropped: int = 0


Stalls = dict[str, dict[str, float]]  # `some` and `full`: `total` in microseconds, `avg10` … in per cent
WAITS = ("cpu", "memory", "io")  # what the kernel tells such pressure of
_UNLIMITED = 1 << 62  # v1 writes a number near the largest for no limit


def keyed(text: str) -> dict[str, int]:
    """`name number` lines, as cpu.stat and memory.stat are written."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def usage_v2(cpu_stat: str, memory_current: str, memory_stat: str, memory_max: str = "max") -> Usage:
    memory, details, cpu = int(memory_current), keyed(memory_stat), keyed(cpu_stat)
    return Usage(cpu.get("usage_usec", 0) * 1000, memory, max(0, memory - details.get("inactive_file", 0)),
                 details.get("anon", 0), details.get("file", 0), details.get("pgfault", 0),
                 details.get("pgmajfault", 0), int(memory_max) if memory_max.strip().isdigit() else 0,
                 cpu.get("nr_periods", 0), cpu.get("nr_throttled", 0), cpu.get("throttled_usec", 0) * 1000)


def usage_v1(cpuacct_usage: str, memory_usage: str, memory_stat: str, cpu_stat: str = "",
             memory_limit: str = "0") -> Usage:
    memory, details, cpu, limit = int(memory_usage), keyed(memory_stat), keyed(cpu_stat), int(memory_limit)
    return Usage(int(cpuacct_usage), memory, max(0, memory - details.get("total_inactive_file", 0)),
                 details.get("total_rss", 0), details.get("total_cache", 0), details.get("total_pgfault", 0),
                 details.get("total_pgmajfault", 0), limit if limit < _UNLIMITED else 0, cpu.get("nr_periods", 0),
                 cpu.get("nr_throttled", 0), cpu.get("throttled_time", 0))


def usage_of_node(stat: str, meminfo: str, ticks: int) -> Usage:
    """From /proc/stat and /proc/meminfo; `ticks` per second are the unit of the first."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(n) for n in stat.splitlines()[0].split()[1:9])
    rows = (line.partition(":") for line in meminfo.splitlines())
    kib = {name: int(rest.split()[0]) << 10 for name, _, rest in rows if rest}
    used = kib["MemTotal"] - kib["MemFree"]
    return Usage((user + nice + system + irq + softirq + steal) * 10**9 // ticks, used,
                 kib["MemTotal"] - signals.idle(kib), kib.get("AnonPages", 0),
                 kib.get("Cached", 0), limit=kib["MemTotal"])


def traffic(text: str) -> list[Traffic]:
    """The interfaces of a /proc/<pid>/net/dev, but the one to oneself."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        n = [int(value) for value in rest.split()]
        if name.strip() != "lo" and len(n) >= 12:
            found.append(Traffic(name.strip(), n[0], n[2], n[8], n[10], n[1], n[9], n[3], n[11]))
    return found


def stalls(text: str) -> Stalls:
    """How long some, and how long all, had to wait, as the kernel writes a file of pressure."""
    return {kind: {name: int(value) if name == "total" else float(value)
                   for name, _, value in (pair.partition("=") for pair in pairs)}
            for kind, *pairs in (line.split() for line in text.splitlines())}


class Usages:
    """Readings of one host's groups."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups

    def of(self, folder: str) -> Usage | None:
        """Use of the cgroup at `folder`, relative to the mount; None when it is gone."""
        top = self._cgroups.mount
        try:
            if self._cgroups.v2:
                names = ("cpu.stat", "memory.current", "memory.stat", "memory.max")
                return usage_v2(*((top / folder / name).read_text() for name in names))
            memory = top / "memory" / folder
            return usage_v1((top / "cpuacct" / folder / "cpuacct.usage").read_text(),
                            (memory / "memory.usage_in_bytes").read_text(), (memory / "memory.stat").read_text(),
                            (top / "cpu" / folder / "cpu.stat").read_text(),
                            (memory / "memory.limit_in_bytes").read_text())
        except (OSError, ValueError):
            return None

    def host(self) -> Usage:
        return usage_of_node(Path("/proc/stat").read_text(), Path("/proc/meminfo").read_text(),
                             os.sysconf("SC_CLK_TCK"))

    def booted(self) -> float:
        """When the host came up, in seconds since the epoch."""
        return keyed(Path("/proc/stat").read_text()).get("btime", 0)

    def pressure(self, folder: str = "") -> dict[str, Stalls]:
        """What the processes of a group, or of the host with "", wait for; nothing where the kernel does not tell: it
        does of groups of version 2 alone."""
        found = {}
        for what in WAITS:
            path = self._cgroups.mount / folder / f"{what}.pressure" if folder else Path("/proc/pressure", what)
            with contextlib.suppress(OSError):
                found[what] = stalls(path.read_text())
        return found

    def network(self, folder: str = "") -> list[Traffic]:
        """Interfaces that the processes of a group see; of the host itself with ""."""
        try:
            pid = "self"
            if folder:
                top = self._cgroups.mount if self._cgroups.v2 else self._cgroups.mount / "memory"
                pid = (top / folder / "cgroup.procs").read_text().split(maxsplit=1)[0]
            return traffic(Path(f"/proc/{pid}/net/dev").read_text())
        except (OSError, IndexError, ValueError):
            return []
