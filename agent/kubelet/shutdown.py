"""The pods' end when the host goes down: in the order of their importance, within the time the host gives.

Owns the two phases – everybody else first, critical pods last – and the delay lock that buys the time. Promises that
the node is called not ready and takes no pod as soon as the shutdown is known, that a pod is told why it ended, and
that the lock is let go when all have ended or their time is up. Does nothing unless a grace period is set. Run by the
agent, which also calls `end` on SIGTERM where that is asked for.

Upstream: pkg/kubelet/nodeshutdown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from agent.kubelet.admit import critical
from agent.kubelet.eviction import Victim
from agent.kubelet.keeping import Keeping
from agent.kubelet.logind import Logind
from agent.kubelet.plan import grace_of
from agent.kubelet.victims import MARK
from controlplane.machinery.clock import Clock

log = logging.getLogger(__name__)
REASON, MESSAGE = "Terminated", "Pod was terminated in response to imminent node shutdown."
RETRY_SECONDS = 60.0  # between attempts to reach logind
LOOK_SECONDS = 0.1  # between looks whether all have ended, while a shutdown is under way
Object = dict[str, Any]


def phases(pods: Iterable[Object], keeping: Keeping) -> list[tuple[float, list[str]]]:
    """Seconds, and the uids of the pods that end in them, one after the other."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for pod in pods:
        found[critical(pod)].append(pod["metadata"]["uid"])
    last = min(keeping.shutdown_critical, keeping.shutdown)
    return [(seconds, uids) for seconds, uids in ((keeping.shutdown - last, found[False]), (last, found[True])) if uids]


class Shutdown:
    """`pods()` are the workers, `changed()` is called when `going` has changed."""

    def __init__(self, keeping: Keeping, pods: Callable[[], Iterable[Victim]], changed: Callable[[], None],
                 clock: Clock) -> None:
        self._keeping, self._pods, self._changed, self._clock = keeping, pods, changed, clock
        self.going = False  # the host is about to go down

    async def run(self) -> None:
        """Hear of shutdowns until cancelled."""
        if not self._keeping.shutdown or not Logind.present():
            return
        while True:
            try:
                async with Logind() as logind:
                    await self._follow(logind)
            except (OSError, TimeoutError) as error:
                log.warning("cannot delay shutdowns of this host: %s", error)
            await self._clock.sleep(RETRY_SECONDS)

    async def _follow(self, logind: Logind) -> None:
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
            until = self._clock.monotonic() + seconds
            while self._clock.monotonic() < until and any(
                    c.state == "running" for uid in uids for c in workers[uid].seen.containers):
                await self._clock.sleep(LOOK_SECONDS)
