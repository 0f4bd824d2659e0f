"""The pods' end when the host goes down: in the order of their importance, within the time the host gives.

Owns the phases – critical pods last, or by the priorities that were given – and the delay lock that buys the time. A
logind that would not wait as long is told to by a file of its configuration, written by way of the ledger. Promises
that the node is called not ready and takes no pod as soon as the shutdown is known, that a pod is told why it ended,
and that the lock is let go when all have ended or their time is up. Does nothing unless a grace period is set. Run by
the agent, which also calls `end` on SIGTERM where that is asked for.

Upstream: pkg/kubelet/nodeshutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from agent.kubelet.admit import CRITICAL, critical
from agent.kubelet.host.logind import Logind
from agent.kubelet.plan import grace_of
from agent.kubelet.pressure.eviction import Victim
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.victims import MARK
from controlplane.machinery.clock import Clock
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
REASON, MESSAGE = "Terminated", "Pod was terminated in response to imminent node shutdown."
RETRY_SECONDS = 60.0  # between attempts to reach logind
RELOAD_SECONDS = 5.0  # logind reads its configuration within moments
DROPIN = Path("/etc/systemd/logind.conf.d/99-kubelet.conf")  # upstream's name
LOOK_SECONDS = 0.1  # between looks whether it has
Object = dict[str, Any]


def phases(pods: Iterable[Object], keeping: Keeping) -> list[tuple[float, list[str]]]:
    """Seconds, and the uids of the pods that end in them, one after the other: each pod goes with the highest priority
    that is not above its own, or else with the lowest."""
    last = min(keeping.shutdown_critical, keeping.shutdown)
    groups = sorted(keeping.shutdown_by_priority) or [(0, keeping.shutdown - last), (CRITICAL, last)]
    found: list[list[str]] = [[] for _ in groups]
    for pod in pods:
        own = CRITICAL if critical(pod) else pod["spec"].get("priority") or 0
        found[max(sum(priority <= own for priority, _ in groups) - 1, 0)].append(pod["metadata"]["uid"])
    return [(seconds, uids) for (_, seconds), uids in zip(groups, found) if uids]


class Leaving(Victim, Protocol):
    """A pod's worker that tells when it has nothing left."""

    async def emptied(self) -> None: ...


class Shutdown:
    """`pods()` are the workers, `changed()` is called when `going` has changed; `dropin` is the file of logind's
    configuration that is ours."""

    def __init__(self, keeping: Keeping, pods: Callable[[], Iterable[Leaving]], changed: Callable[[], None],
                 clock: Clock, ledger: Ledger, dropin: Path = DROPIN) -> None:
        self._keeping, self._pods, self._changed, self._clock = keeping, pods, changed, clock
        self._ledger, self._dropin = ledger, dropin
        self.going = False  # the host is about to go down

    async def run(self) -> None:
        """Hear of shutdowns until cancelled."""
        if not self._keeping.shutdown_seconds or not Logind.present():
            return
        while True:
            try:
                async with Logind() as logind:
                    await self._follow(logind)
            except (OSError, TimeoutError) as error:
                log.warning("cannot delay shutdowns of this host: %s", error)
            await self._clock.sleep(RETRY_SECONDS)

    async def _lengthen(self, logind: Logind) -> None:
        """Have logind wait as long as the pods may take. Raises OSError."""
        wanted = self._keeping.shutdown_seconds
        if await logind.patience() >= wanted:
            return
        self._ledger.make_directory(self._dropin.parent)
        self._ledger.write_file(self._dropin, (
            "# Kubelet logind override: made by the node agent, removed with it\n"
            f"[Login]\nInhibitDelayMaxSec={math.ceil(wanted)}\n").encode())
        await logind.reload()
        until = self._clock.monotonic() + RELOAD_SECONDS
        while (waits := await logind.patience()) < wanted:
            if self._clock.monotonic() > until:
                log.warning("node shutdown manager was unable to update logind InhibitDelayMaxSec to %gs "
                            "(ShutdownGracePeriod), current value of InhibitDelayMaxSec (%gs) is less than requested "
                            "ShutdownGracePeriod", wanted, waits)
                return
            await self._clock.sleep(LOOK_SECONDS)

    async def _follow(self, logind: Logind) -> None:
        try:
            await self._lengthen(logind)
        except OSError as error:  # a shorter while is better than none
            log.warning("cannot tell logind to wait %gs for pods: %s", self._keeping.shutdown_seconds, error)
        await logind.inhibit("kubelet", "Kubelet needs time to handle node shutdown")
        async for going in logind.shutdowns():
            if going:
                await self.end()
                logind.release()
            elif self.going:  # called off
                self.going = False
                self._changed()
                await logind.inhibit("kubelet", "Kubelet needs time to handle node shutdown")

    async def end(self) -> None:
        """End every pod, critical ones last; returns when they have, or their time is up."""
        self.going = True
        self._changed()
        workers = {w.pod["metadata"]["uid"]: w for w in self._pods() if w.active}
        for seconds, uids in phases((w.pod for w in workers.values()), self._keeping):
            log.warning("the host goes down: %d pods have %g seconds to end", len(uids), seconds)
            for uid in uids:
                pod = workers[uid].pod
                workers[uid].doom(REASON, MESSAGE, min(seconds, grace_of(pod)), (*MARK, MESSAGE))
            # Those that come later may be what gives back the volumes of those that end now.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    for uid in uids:
                        await workers[uid].emptied()
