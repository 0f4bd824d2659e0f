"""/stats/summary: what the node, its pods and their containers use of CPU, memory, network and disk.

Owns the object's form. CPU and memory are read from cgroup files, never from the runtime, whose own statistics cost a
hundred times more; disk is measured at most once a minute. Promises no work between requests; what vanishes while it is
read is left out. Called by `serve`; `metrics` tells the same as text.

Upstream: pkg/kubelet/server/stats/summary.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.model import ObservedPod
from agent.kubelet.pressure import signals
from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.victims import Use
from agent.kubelet.serving.usage import Traffic, Usage, Usages
from agent.kubelet.volumes.volumestats import VolumeStats, shown
from controlplane.machinery.clock import SYSTEM, Clock, rfc3339

log = logging.getLogger(__name__)
DISK_SECONDS = 60.0  # how old a measure of disk may be: upstream's volumeStatsAggPeriod
Seen = tuple[dict[str, Any], ObservedPod]
Pods = Callable[[], Iterable[Seen]]


class Stats:
    """Answers for one node. `pods` gives each pod with what the runtime has of it; without `accounting` nothing is said
    of the pods' disk, `root` is the kubelet's folder and `images()` where images lie."""

    def __init__(self, node: str, pods: Pods, cgroups: Cgroups, clock: Clock = SYSTEM,
                 accounting: Accounting | None = None, root: Path = Path("/"),
                 images: Callable[[], tuple[str, int]] = lambda: ("", 0), volumes: VolumeStats | None = None) -> None:
        self._node, self._pods, self._cgroups, self._clock = node, pods, cgroups, clock
        self._accounting, self._root, self._images = accounting, root, images
        self._usages = Usages(cgroups)
        self._before: dict[str, tuple[float, int]] = {}  # of the last summary: when, and CPU; for rates
        self._volumes = volumes
        self._disks: dict[str, Use] = {}  # by pod uid
        self._full: dict[str, list[dict[str, Any]]] = {}  # by pod uid: what lies behind claims and storage drivers
        self._measured = self._asked = -DISK_SECONDS

    async def summary(self) -> dict[str, Any]:
        """The object at /stats/summary."""
        now, seen = self._clock.now(), dict(self._before)
        self._before = {}
        present = list(self._pods())
        await self._ask(present)
        await self._measure(present)
        pods = [told for pod, observed in present if (told := self._pod(pod, observed, now, seen))]
        return {"node": self._of_node(now, seen), "pods": pods}

    async def claims(self) -> list[dict[str, Any]]:
        """How full the volumes behind claims are, by the names of /stats/summary, each with its `pvcRef`."""
        await self._ask(list(self._pods()))
        return [entry for entries in self._full.values() for entry in entries if "pvcRef" in entry]

    async def _ask(self, present: list[Seen]) -> None:
        moment = self._clock.monotonic()
        if self._volumes is None or moment - self._asked < DISK_SECONDS:
            return
        self._asked = moment
        full = await asyncio.gather(*(self._volumes.of(pod) for pod, _ in present))
        self._full = {pod["metadata"]["uid"]: found for (pod, _), found in zip(present, full) if found}

    async def _measure(self, present: list[Seen]) -> None:
        moment = self._clock.monotonic()
        if self._accounting is None or moment - self._measured < DISK_SECONDS:
            return
        self._measured = moment
        try:
            uses = await self._accounting.disk(present)
        except CallError as error:
            log.debug("cannot measure the pods' disk: %s", error)
            return
        self._disks = {pod["metadata"]["uid"]: use for (pod, _), use in zip(present, uses)}

    # --- the node

    def _of_node(self, now: float, seen: dict[str, tuple[float, int]]) -> dict[str, Any]:
        time = rfc3339(now)
        running, limit = signals.processes()
        top = self._cgroups.top
        groups = [{"name": "pods", **self._shown("/pods", used, top, now, seen)}
                  ] if (used := self._usages.of(top)) is not None else []
        place, size = self._images()
        space = self._filesystem(place or str(self._root), now)
        return {"nodeName": self._node, "startTime": rfc3339(self._usages.booted()), "systemContainers": groups,
                **self._shown("", self._usages.host(), "", now, seen),
                "network": _network(self._usages.network(), time), "fs": self._filesystem(str(self._root), now),
                "runtime": {"imageFs": {**space, "usedBytes": size} if space and size else space,
                            "containerFs": space},
                "rlimit": {"time": time, "maxpid": limit, "curproc": running}}

    def _filesystem(self, path: str, now: float) -> dict[str, Any]:
        try:
            space, inodes = signals.filesystem(path)
        except OSError:
            return {}
        return {"time": rfc3339(now), **shown(space, inodes)}

    # --- pods

    def _pod(self, pod: dict[str, Any], observed: ObservedPod, now: float,
             seen: dict[str, tuple[float, int]]) -> dict[str, Any]:
        meta, folder, time = pod["metadata"], self._cgroups.folder(pod), rfc3339(now)
        whole, disk = self._usages.of(folder), self._disks.get(pod["metadata"]["uid"])
        if whole is None:
            return {}
        containers = [{"name": c.name, "startTime": rfc3339(c.started_at), **self._shown(c.id, used, inner, now, seen),
                       **self._layer(disk, c.name, now)} for c in observed.running
                      if (used := self._usages.of(inner := self._cgroups.folder(pod, c.id))) is not None]
        told = {"podRef": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
                "startTime": (pod.get("status") or {}).get("startTime"), "containers": containers,
                **self._shown(meta["uid"], whole, folder, now, seen),
                "process_stats": {"process_count": self._cgroups.pids_of(pod)}}
        if observed.running and not pod["spec"].get("hostNetwork"):
            first = self._cgroups.folder(pod, observed.running[0].id)
            told["network"] = _network(self._usages.network(first), time)
        volumes = [{"time": time, **found} for found in self._full.get(meta["uid"], ())]
        if disk is not None:
            volumes += [{"name": name, **self._filesystem(str(self._root), now), "usedBytes": size}
                        for name, size in disk.volumes.items()]
            told["ephemeral-storage"] = {**self._filesystem(str(self._root), now), "usedBytes": disk.disk}
        if volumes:
            told["volume"] = volumes
        return told

    def _layer(self, disk: Use | None, name: str, now: float) -> dict[str, Any]:
        """A container's own files and its logs."""
        if disk is None or name not in disk.containers:
            return {}
        space = self._filesystem(str(self._root), now)
        logs = disk.logs.get(name, 0)
        return {"rootfs": {**space, "usedBytes": disk.containers[name] - logs}, "logs": {**space, "usedBytes": logs}}

    def _shown(self, key: str, used: Usage, folder: str, now: float,
               seen: dict[str, tuple[float, int]]) -> dict[str, Any]:
        time, waits = rfc3339(now), self._usages.pressure(folder)
        cpu: dict[str, Any] = {"time": time, "usageCoreNanoSeconds": used.cpu}
        if key in seen and now > seen[key][0]:
            cpu["usageNanoCores"] = max(0, int((used.cpu - seen[key][1]) / (now - seen[key][0])))
        self._before[key] = (now, used.cpu)
        memory = {"time": time, "usageBytes": used.memory, "workingSetBytes": used.working_set,
                  "rssBytes": used.rss, "pageFaults": used.faults, "majorPageFaults": used.major_faults}
        if used.limit:
            memory["availableBytes"] = max(0, used.limit - used.working_set)
        told = {"cpu": cpu, "memory": memory, **({"io": {"time": time}} if "io" in waits else {})}
        for what, psi in waits.items():
            told[what]["psi"] = psi
        return told


def _network(found: list[Traffic], time: str) -> dict[str, Any]:
    shown = [{"name": t.name, "rxBytes": t.received, "rxErrors": t.receive_errors, "txBytes": t.sent,
              "txErrors": t.send_errors} for t in found]
    return {"time": time, **(shown[0] if shown else {}), "interfaces": shown}
