"""The node's housekeeping, put together: evictions, images, shutdowns, and the weights of its cgroups.

Owns the wiring of these to the pods' workers, the runtime and the node's events, and the two groups below the pods'
own: BestEffort pods get what is left, Burstable ones what they asked for. Run by the agent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from agent.kubelet.admit import amounts
from agent.kubelet.context import Context
from agent.kubelet.host.addresswatch import AddressWatch
from agent.kubelet.host.clockwatch import ClockWatch
from agent.kubelet.host.node import NodeAgent
from agent.kubelet.host.shutdown import Shutdown
from agent.kubelet.kubelet import Kubelet
from agent.kubelet.pressure import signals
from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.collection import Collector
from agent.kubelet.pressure.eviction import Evictions
from agent.kubelet.pressure.thresholds import Reading
from controlplane.machinery.podresources import qos_class
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
WEIGH_SECONDS = 60.0  # upstream's


class Housekeeping:
    def __init__(self, context: Context, kubelet: Kubelet, node: NodeAgent, ledger: Ledger) -> None:
        self._context, self._kubelet, self._keeping = context, kubelet, node.host.keeping
        self._host = node.host
        root = context.node.root
        self.accounting = Accounting(root, context.node.log_folder, context.cgroups, context.runtime.layers)
        self.collector = Collector(self._keeping, context.images, kubelet.seen, context.runtime.remove_container,
                                   lambda reason, message: self._tell(None, reason, message), context.clock)
        self.evictions = Evictions(self._keeping,
                                   lambda: signals.read(root, lambda: self.collector.place, self._pods()),
                                   kubelet.workers, self.accounting, self.collector.reclaim, self._tell, node.check,
                                   context.clock)
        self.shutdown = Shutdown(self._keeping, kubelet.workers, node.check, context.clock, ledger)
        node.closing = lambda: self.shutdown.going
        self.addresses = AddressWatch(node.host.ips, node.check, context.clock)
        self.time = ClockWatch(self._clock_set, context.clock)
        node.problem = lambda: self.addresses.problem
        node.pressures = lambda: self.evictions.conditions
        if context.volumes.csi is not None:
            node.volumes = context.volumes.csi.in_use

    def _tell(self, pod: dict[str, Any] | None, reason: str, message: str,
              annotations: dict[str, str] | None = None) -> None:
        """A warning about a pod, or about the node."""
        if pod is not None:
            self._context.tell(pod, "Warning", reason, message, annotations=annotations)
            return
        name = self._context.node.name
        self._context.recorder.event({"kind": "Node", "apiVersion": "v1", "name": name, "uid": name}, "Warning",
                                     reason, message)

    async def run(self) -> None:
        """Until cancelled."""
        await self._kubelet.relisted.wait()
        await self._hold()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.collector.run(), name="image collection")
            group.create_task(self.evictions.run(), name="evictions")
            group.create_task(self.addresses.run(), name="own address")
            group.create_task(self.time.run(), name="clock")
            group.create_task(self.shutdown.run(), name="shutdown")
            group.create_task(self._weigh(), name="cgroup weights")
            if self._context.cpus is not None:
                group.create_task(self._context.cpus.run(self._kubelet.seen, self._kubelet.alive,
                                                         self._context.runtime.update_container), name="CPUs")

    def _clock_set(self, what: str) -> None:
        """Back-offs, deadlines and tokens are reckoned by the clock: none of them waits for a time of before."""
        self._tell(None, "ClockSet", f"{what[0].upper()}{what[1:]}: what waited for its time is tried again")
        self._kubelet.retry(crashes=True)

    def _memory(self) -> int:
        """Bytes all pods together may have; 0 = what there is."""
        return self._host.memory - self._keeping.reserved("memory") // 1000 if self._keeping.enforce else 0

    def _pods(self) -> Reading | None:
        """What is left of these."""
        groups, memory = self._context.cgroups, self._memory()
        return Reading(memory - groups.working_set(groups.top), memory) if memory else None

    async def _hold(self) -> None:
        """Hold all pods to what the node does not keep for itself."""
        cpu = self._host.cpus * 1000 - self._keeping.reserved("cpu")
        kept = self._keeping.reserved("pid") // 1000 if self._keeping.enforce else 0
        try:
            await self._context.cgroups.hold(cpu, self._memory(), signals.processes()[1] - kept if kept else 0)
        except OSError as error:
            log.warning("cannot hold pods to what is allocatable: %s", error)

    async def _weigh(self) -> None:
        """Weigh Burstable pods by what they ask for, as often as that changes."""
        before = -1
        while True:
            asked = sum(amounts(worker.resizer.view(worker.pod)).get("cpu", 0) for worker in self._kubelet.workers()
                        if worker.active and qos_class(worker.pod["spec"]) == "Burstable")
            if asked != before:
                try:
                    await self._context.cgroups.weigh(asked)
                    before = asked
                except OSError as error:
                    log.warning("cannot weigh the pods' groups: %s", error)
            await self._context.clock.sleep(WEIGH_SECONDS)
