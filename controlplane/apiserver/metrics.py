"""The server's own numbers, in Prometheus' text format under upstream's metric names.

Owns the request counter and the latency histogram, which the server feeds with one `observe` per answered request,
and what is read when scraped: memory, processor time, open files and the lag of the event loop. Promises: the number
of series is bounded, no label ever carries what a client chose freely, nothing runs between scrapes. Rendered by
`health` at `/metrics`.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import Callable

from controlplane.apiserver.flow.fairness import Level
from controlplane.machinery.clock import SYSTEM, Clock

# Upstream's buckets of apiserver_request_duration_seconds, thinned: dashboards compute quantiles from any set.
BUCKETS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0)
MAX_SERIES = 2000  # verbs x resources x codes stay far below; beyond it requests are counted under "other"
OTHER = ("other", "", "", "", "")
_STREAMED = ("exec", "attach", "portforward", "log", "proxy")  # how long they last says nothing about the server
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
MAX_LEVELS = 32  # priority levels told; a cluster has eight
Labels = tuple[str, str, str, str, str]  # verb, group, version, resource, subresource


class Metrics:
    """Counters of one server process."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._started = clock.now()
        self._counts: dict[tuple[Labels, int], int] = {}
        self._latency: dict[Labels, list[float]] = {}  # one count per bucket, then +Inf, then the sum of seconds
        self.in_flight: Callable[[], int] = int  # set by whoever counts them
        self.levels: Callable[[], list[Level]] = list  # the priority levels, set by whoever seats requests

    def observe(self, labels: Labels, code: int, seconds: float) -> None:
        """Count one answered request."""
        key = (labels, code)
        if key not in self._counts and (len(self._counts) >= MAX_SERIES or not all(map(_plain, labels))):
            key, labels = (OTHER, code), OTHER
        self._counts[key] = self._counts.get(key, 0) + 1
        if labels[0] == "watch" or labels[4] in _STREAMED:
            return
        buckets = self._latency.get(labels)
        if buckets is None:
            buckets = self._latency[labels] = [0.0] * (len(BUCKETS) + 2)
        buckets[bisect_left(BUCKETS, seconds)] += 1
        buckets[-1] += seconds

    async def render(self) -> str:
        """The exposition. Measures the event loop's lag by passing through it once."""
        loop = asyncio.get_running_loop()
        before = self._clock.monotonic()
        passed: asyncio.Future[None] = loop.create_future()
        loop.call_soon(passed.set_result, None)
        await passed
        lag = self._clock.monotonic() - before
        lines = [*self._requests(), *self._durations(), *_process(self._started)]
        lines += _gauge("apiserver_current_inflight_requests", "Requests being served.", self.in_flight())
        lines += self._flow_control()
        lines += _gauge("apiserver_event_loop_lag_seconds", "Time one pass of the event loop took.", lag)
        return "\n".join(lines) + "\n"

    def _flow_control(self) -> list[str]:
        """What each priority level does now, and has done."""
        lines: list[str] = []
        for name, kind, text, field in (
                ("current_executing_requests", "gauge", "Requests with a seat.", "executing"),
                ("current_inqueue_requests", "gauge", "Requests waiting for a seat.", "waiting"),
                ("dispatched_requests_total", "counter", "Requests that got a seat.", "dispatched"),
                ("rejected_requests_total", "counter", "Requests refused for want of a seat.", "rejected"),
                ("nominal_limit_seats", "gauge", "Seats by right.", "seats")):
            lines += _head(f"apiserver_flowcontrol_{name}", kind, text)
            lines += [f'apiserver_flowcontrol_{name}{{priority_level="{level.name}"}} {getattr(level, field)}'
                      for level in self.levels()[:MAX_LEVELS] if not level.exempt]
        return lines

    def _requests(self) -> list[str]:
        lines = _head("apiserver_request_total", "counter", "Counter of apiserver requests.")
        for (labels, code), count in sorted(self._counts.items()):
            lines.append(f'apiserver_request_total{{{_text(labels)},code="{code}"}} {count}')
        return lines

    def _durations(self) -> list[str]:
        name = "apiserver_request_duration_seconds"
        lines = _head(name, "histogram", "Response latency distribution in seconds.")
        for labels, buckets in sorted(self._latency.items()):
            text, total = _text(labels), 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=False):
                total += int(count)
                lines.append(f'{name}_bucket{{{text},le="{bound}"}} {total}')
            lines.append(f"{name}_sum{{{text}}} {buckets[-1]:.6f}")
            lines.append(f"{name}_count{{{text}}} {total}")
        return lines


def _text(labels: Labels) -> str:
    names = ("verb", "group", "version", "resource", "subresource")
    return ",".join(f'{name}="{value}"' for name, value in zip(names, (labels[0].upper(), *labels[1:]), strict=True))


def _plain(label: str) -> bool:
    """Whether a label is a word of the API; a path may hold anything."""
    return len(label) < 80 and all(c.isalnum() or c in ".-" for c in label)


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _gauge(name: str, text: str, value: float, kind: str = "gauge") -> list[str]:
    return [*_head(name, kind, text), f"{name} {value}"]


def _process(started: float) -> list[str]:
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()  # the command's name may hold spaces
    seconds = (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
    return [
        *_gauge("process_cpu_seconds_total", "User and system CPU time in seconds.", seconds, "counter"),
        *_gauge("process_resident_memory_bytes", "Resident memory in bytes.", int(fields[21]) * _PAGE),
        *_gauge("process_virtual_memory_bytes", "Virtual memory in bytes.", int(fields[20])),
        *_gauge("process_open_fds", "Open file descriptors.", len(os.listdir("/proc/self/fd"))),
        *_gauge("process_start_time_seconds", "Start time since the epoch in seconds.", started),
    ]
