"""What the service proxy tells of itself: health on port 10256, metrics and mode on 10249 of loopback, as upstream.

Owns the figures. Healthy means: what changed has been written to the kernel, or has not been waiting for long. `render`
is pure.

Called by `proxy`. Upstream: pkg/proxy/metrics, pkg/proxy/healthcheck.
"""

from __future__ import annotations

import asyncio
import json
import logging
from bisect import bisect_left

from agent import pages
from agent.pages import Page
from controlplane.machinery.clock import Clock, rfc3339

log = logging.getLogger(__name__)
HEALTH_PORT, METRICS_PORT = 10256, 10249
PATIENCE = 60.0  # seconds a change may wait for the kernel before we call ourselves unhealthy
BUCKETS = tuple(0.001 * 2 ** power for power in range(15))  # upstream's: 1 ms to 16 s


class Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> list[str]:
        found, running = [], 0
        for bound, count in zip((*(f"{b:g}" for b in BUCKETS), "+Inf"), self.counts):
            running += count
            found.append(f'{name}_bucket{{{labels},le="{bound}"}} {running}')
        return [*found, f"{name}_sum{{{labels}}} {self.total:g}", f"{name}_count{{{labels}}} {running}"]


class Report:
    """`mode` is the proxy's; `families` the address families it works for."""

    def __init__(self, mode: str, clock: Clock) -> None:
        self.mode, self._clock = mode, clock
        self.full, self.partial = Histogram(), Histogram()
        self.service_changes = self.endpoint_changes = self.failures = 0
        self.queued = self.written = 0.0  # wall clock
        self.eligible = True  # for balancers' connections: the node is not about to go

    def changed(self, service: bool) -> None:
        if service:
            self.service_changes += 1
        else:
            self.endpoint_changes += 1
        if self.queued <= self.written:
            self.queued = self._clock.now()

    def wrote(self, seconds: float, whole: bool) -> None:
        """A round succeeded; `seconds` 0 when nothing had to be written."""
        if seconds:
            (self.full if whole else self.partial).observe(seconds)
        self.written = self._clock.now()

    @property
    def healthy(self) -> bool:
        return self.written > 0 and (self.queued <= self.written or self._clock.now() - self.queued < PATIENCE)

    def health(self) -> Page:
        """For balancers: a node that is about to go gets no new connections, while those it has go on."""
        return self._page(self.healthy and self.eligible, {"nodeEligible": self.eligible})

    def life(self) -> Page:
        """For whoever asks whether the proxy works."""
        return self._page(self.healthy, {})

    def _page(self, fine: bool, more: dict[str, bool]) -> Page:
        now = rfc3339(self._clock.now())
        told = {"lastUpdated": rfc3339(self.written) if self.queued > self.written else now, "currentTime": now}
        return Page(json.dumps(told | more), 200 if fine else 503, "application/json")

    def render(self) -> str:
        lines: list[str] = []

        def metric(name: str, kind: str, about: str, samples: list[str]) -> None:
            lines.extend([f"# HELP {name} {about}", f"# TYPE {name} {kind}", *samples])

        label = 'ip_family="IPv4"'
        for part, histogram in (("full_proxy_rules", self.full), ("partial_proxy_rules", self.partial)):
            name = f"kubeproxy_sync_{part}_duration_seconds"
            metric(name, "histogram", "SyncProxyRules latency in seconds", histogram.lines(name, label))
        prefix = "kubeproxy_sync_proxy_rules"
        both = Histogram()
        both.counts = [a + b for a, b in zip(self.full.counts, self.partial.counts)]
        both.total = self.full.total + self.partial.total
        name = f"{prefix}_duration_seconds"
        metric(name, "histogram", "SyncProxyRules latency in seconds", both.lines(name, label))
        for name, kind, about, value in (
                ("last_timestamp_seconds", "gauge", "The last time proxy rules were successfully synced", self.written),
                ("last_queued_timestamp_seconds", "gauge", "The last time a sync was queued", self.queued),
                ("service_changes_total", "counter", "Cumulative proxy rules Service changes", self.service_changes),
                ("endpoint_changes_total", "counter", "Cumulative proxy rules Endpoint changes", self.endpoint_changes),
                (f"{'nftables_sync' if self.mode == 'nftables' else 'iptables_restore'}_failures_total", "counter",
                 "Cumulative proxy write failures", self.failures)):
            metric(f"{prefix}_{name}", kind, about, [f"{prefix}_{name} {value:.17g}"])
        return "\n".join([*lines, ""])

    async def run(self) -> None:
        """Serve until cancelled. A port that is taken is told, and left to who has it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve({"/healthz": self.health, "/livez": self.life}, "", HEALTH_PORT))
            group.create_task(self._serve({
                "/metrics": lambda: Page(self.render(), kind=pages.METRICS), "/proxyMode": lambda: Page(self.mode),
                "/healthz": lambda: Page("ok")}, "127.0.0.1", METRICS_PORT))

    async def _serve(self, known: dict[str, pages.Maker], address: str, port: int) -> None:
        try:
            await pages.serve(known, address, port)
        except OSError as error:
            log.warning("port %d, on which the service proxy tells of itself: %s", port, error)
