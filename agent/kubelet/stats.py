"""How much CPU and memory the node, its pods and their containers use: read from cgroup files when somebody asks.

Owns /stats/summary, /metrics/resource (what metrics-server scrapes for `kubectl top` and autoscalers),
/metrics/cadvisor (the names dashboards know containers by) and /metrics (the kubelet itself). Reads cgroup v2 first and
v1 else, never the runtime, whose own statistics cost a hundred times more. Promises no work between requests; what
vanishes while it is read is left out. Called by `serve`.

Upstream: pkg/kubelet/server/stats/summary.go and pkg/kubelet/metrics/collectors/{resource,cri}_metrics.go.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.kubelet.cgroups import Cgroups
from agent.kubelet.model import ObservedContainer, ObservedPod
from controlplane.machinery.clock import SYSTEM, Clock, rfc3339

Pods = Callable[[], Iterable[tuple[dict[str, Any], ObservedPod]]]


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU since the start in nanoseconds; memory in bytes, `working_set` without what the kernel could drop at once."""

    cpu: int
    memory: int
    working_set: int
    rss: int


def keyed(text: str) -> dict[str, int]:
    """`name number` lines, as cpu.stat and memory.stat are written."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def usage_v2(cpu_stat: str, memory_current: str, memory_stat: str) -> Usage:
    memory, details = int(memory_current), keyed(memory_stat)
    return Usage(keyed(cpu_stat).get("usage_usec", 0) * 1000, memory,
                 max(0, memory - details.get("inactive_file", 0)), details.get("anon", 0))


def usage_v1(cpuacct_usage: str, memory_usage: str, memory_stat: str) -> Usage:
    memory, details = int(memory_usage), keyed(memory_stat)
    return Usage(int(cpuacct_usage), memory, max(0, memory - details.get("total_inactive_file", 0)),
                 details.get("total_rss", 0))


def usage_of_node(stat: str, meminfo: str, ticks: int) -> Usage:
    """From /proc/stat and /proc/meminfo; `ticks` per second are the unit of the first."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(n) for n in stat.splitlines()[0].split()[1:9])
    rows = (line.partition(":") for line in meminfo.splitlines())
    kib = {name: int(rest.split()[0]) << 10 for name, _, rest in rows if rest}
    used = kib["MemTotal"] - kib["MemFree"]
    return Usage((user + nice + system + irq + softirq + steal) * 10**9 // ticks, used,
                 kib["MemTotal"] - kib.get("MemAvailable", kib["MemFree"]), kib.get("AnonPages", 0))


class Stats:
    """Answers for one node. `pods` gives each pod with what the runtime has of it."""

    def __init__(self, node: str, pods: Pods, cgroups: Cgroups, clock: Clock = SYSTEM) -> None:
        self._node, self._pods, self._cgroups, self._clock = node, pods, cgroups, clock
        self._before: dict[str, tuple[float, int]] = {}  # of the last summary: when, and CPU; for rates

    def _read(self, folder: str) -> Usage | None:
        """Use of the cgroup at `folder`, relative to the mount; None when it is gone."""
        top = self._cgroups.mount
        try:
            if self._cgroups.v2:
                names = ("cpu.stat", "memory.current", "memory.stat")
                return usage_v2(*((top / folder / name).read_text() for name in names))
            return usage_v1((top / "cpuacct" / folder / "cpuacct.usage").read_text(),
                            (top / "memory" / folder / "memory.usage_in_bytes").read_text(),
                            (top / "memory" / folder / "memory.stat").read_text())
        except (OSError, ValueError):
            return None

    def _pod(self, pod: dict[str, Any]) -> Usage | None:
        return self._read(self._cgroups.folder(pod))

    def _container(self, pod: dict[str, Any], container: ObservedContainer) -> Usage | None:
        return self._read(self._cgroups.folder(pod, container.id))

    def _host(self) -> Usage:
        return usage_of_node(Path("/proc/stat").read_text(), Path("/proc/meminfo").read_text(),
                             os.sysconf("SC_CLK_TCK"))

    async def summary(self) -> dict[str, Any]:
        """The object at /stats/summary."""
        now, seen = self._clock.now(), dict(self._before)
        self._before = {}
        pods = []
        for pod, observed in self._pods():
            meta = pod["metadata"]
            whole = self._pod(pod)
            containers = [{"name": c.name, "startTime": rfc3339(c.started_at), **self._shown(c.id, used, now, seen)}
                          for c in observed.containers if c.state == "running"
                          and (used := self._container(pod, c)) is not None]
            if whole is not None:
                pods.append({"podRef": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
                             "startTime": (pod.get("status") or {}).get("startTime"), "containers": containers,
                             **self._shown(meta["uid"], whole, now, seen)})
        return {"node": {"nodeName": self._node, **self._shown("", self._host(), now, seen)}, "pods": pods}

    def _shown(self, key: str, used: Usage, now: float, seen: dict[str, tuple[float, int]]) -> dict[str, Any]:
        time = rfc3339(now)
        cpu: dict[str, Any] = {"time": time, "usageCoreNanoSeconds": used.cpu}
        if key in seen and now > seen[key][0]:
            cpu["usageNanoCores"] = max(0, int((used.cpu - seen[key][1]) / (now - seen[key][0])))
        self._before[key] = (now, used.cpu)
        return {"cpu": cpu, "memory": {"time": time, "usageBytes": used.memory, "workingSetBytes": used.working_set,
                                       "rssBytes": used.rss}}

    async def metrics(self) -> str:
        """The text at /metrics/resource."""
        samples: dict[str, list[str]] = {name: [] for name, _, _ in _METRICS}
        stamp = int(self._clock.now() * 1000)

        def add(kind: str, labels: str, used: Usage | None) -> None:
            if used is not None:
                samples[f"{kind}_cpu_usage_seconds_total"].append(f"{labels} {used.cpu / 1e9:.9g} {stamp}")
                samples[f"{kind}_memory_working_set_bytes"].append(f"{labels} {used.working_set} {stamp}")

        add("node", "", self._host())
        for pod, observed in self._pods():
            meta = pod["metadata"]
            place = f'namespace="{meta["namespace"]}",pod="{meta["name"]}"'
            whole = self._pod(pod)
            add("pod", f"{{{place}}}", whole)
            for container in observed.containers:
                if container.state == "running":
                    labels = f'{{container="{container.name}",{place}}}'
                    add("container", labels, self._container(pod, container))
                    samples["container_start_time_seconds"].append(f"{labels} {container.started_at:.3f} {stamp}")
        samples["resource_scrape_error"].append(" 0")
        return exposition(_METRICS, samples)

    def cadvisor(self) -> str:
        """The text at /metrics/cadvisor: pods (with an empty container) and their containers, by cAdvisor's names."""
        samples: dict[str, list[str]] = {name: [] for name, _, _ in _CADVISOR}

        def add(labels: str, used: Usage | None) -> None:
            if used is not None:
                samples["container_cpu_usage_seconds_total"].append(f'{{cpu="total",{labels}}} {used.cpu / 1e9:.9g}')
                for name, value in (("usage_bytes", used.memory), ("working_set_bytes", used.working_set),
                                    ("rss", used.rss)):
                    samples[f"container_memory_{name}"].append(f"{{{labels}}} {value}")

        for pod, observed in self._pods():
            meta = pod["metadata"]
            place = f'namespace="{meta["namespace"]}",pod="{meta["name"]}"'
            add(f'container="",id="/{self._cgroups.folder(pod)}",image="",name="",{place}', self._pod(pod))
            for c in observed.containers:
                if c.state == "running":
                    labels = (f'container="{c.name}",id="/{self._cgroups.folder(pod, c.id)}",image="{c.image}",'
                              f'name="{c.id}",{place}')
                    add(labels, self._container(pod, c))
                    samples["container_start_time_seconds"].append(f"{{{labels}}} {c.started_at:.0f}")
        samples["machine_cpu_cores"].append(f" {os.cpu_count() or 1}")
        samples["machine_memory_bytes"].append(f" {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')}")
        return exposition(_CADVISOR, samples)

    def kubelet(self) -> str:
        """The text at /metrics: what runs here, and what this process uses."""
        seen = list(self._pods())
        states = Counter(c.state for _, observed in seen for c in observed.containers)
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        samples = {
            "kubelet_node_name": [f'{{node="{self._node}"}} 1'],
            "kubelet_running_pods": [f" {sum(any(c.state == 'running' for c in o.containers) for _, o in seen)}"],
            "kubelet_running_containers": [f'{{container_state="{s}"}} {n}' for s, n in sorted(states.items())],
            "process_cpu_seconds_total": [f" {(int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')}"],
            "process_resident_memory_bytes": [f" {int(fields[21]) * os.sysconf('SC_PAGE_SIZE')}"],
            "process_open_fds": [f" {len(os.listdir('/proc/self/fd'))}"]}
        return exposition(_KUBELET, samples)


def alive() -> str:
    """The text at /metrics/slis: that it is asked and answers is the kubelet's one check."""
    return exposition(_ALIVE, {"kubernetes_healthcheck": ['{name="ping",type="healthz"} 1']})


def exposition(metrics: Iterable[tuple[str, str, str]], samples: dict[str, list[str]]) -> str:
    """Prometheus' text of the metrics that have samples; a metric is its name, type and help."""
    return "".join(f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(f"{name}{s}\n" for s in samples[name])
                   for name, kind, text in metrics if samples[name])


_METRICS = (
    *((f"{who}_{what}", kind, f"{text} of the {who}") for who in ("container", "node", "pod")
      for what, kind, text in (("cpu_usage_seconds_total", "counter", "CPU time in core-seconds"),
                               ("memory_working_set_bytes", "gauge", "Working set in bytes"))),
    ("container_start_time_seconds", "gauge", "Start of the container in seconds since the epoch"),
    ("resource_scrape_error", "gauge", "1 if something could not be read"))

_CADVISOR = (
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds."),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory."),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes."),
    ("container_memory_rss", "gauge", "Size of RSS in bytes."),
    ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds."),
    ("machine_cpu_cores", "gauge", "Number of logical CPU cores."),
    ("machine_memory_bytes", "gauge", "Amount of memory installed on the machine."))
_ALIVE = (("kubernetes_healthcheck", "gauge", "This metric records the result of a single healthcheck."),)
_KUBELET = (
    ("kubelet_node_name", "gauge", "The node's name. The count is always 1."),
    ("kubelet_running_pods", "gauge", "Number of pods that have a running container"),
    ("kubelet_running_containers", "gauge", "Number of containers by state"),
    ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ("process_open_fds", "gauge", "Number of open file descriptors."))
