"""The kubelet's metrics as Prometheus scrapes them: /metrics and what lies below it.

Owns the names, upstream's and cAdvisor's, and the text's form. Everything is read when it is asked for; nothing is
counted that nobody needs otherwise. Called by `serve`.

Upstream: pkg/kubelet/metrics, its collectors, and cAdvisor's metrics/prometheus.go.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.host.nodestatus import KUBELET_VERSION
from agent.kubelet.model import ObservedPod
from agent.kubelet.serving.usage import WAITS, Usage, Usages
from controlplane.machinery.clock import SYSTEM, Clock
from cri_proto.tally import BOUNDS, Tally

Seen = tuple[dict[str, Any], ObservedPod]
Probes = Callable[[], Iterable[tuple[dict[str, Any], Mapping[tuple[str, str, str], int]]]]
Samples = dict[str, list[str]]


def exposition(metrics: Iterable[tuple[str, str, str]], samples: Samples) -> str:
    """Prometheus' text of the metrics that have samples; a metric is its name, type and help."""
    return "".join(f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(f"{name}{s}\n" for s in samples[name])
                   for name, kind, text in metrics if samples.get(name))


def place(pod: dict[str, Any]) -> str:
    meta = pod["metadata"]
    return f'namespace="{meta.get("namespace", "")}",pod="{meta["name"]}"'


class Metrics:
    """`pods` gives each pod with what the runtime has of it, `evictions()` counts by signal, `probes()` results by
    container, kind and outcome of each pod, `ends` containers that have ended; `calls` are those of the runtime."""

    def __init__(self, node: str, pods: Callable[[], Iterable[Seen]], cgroups: Cgroups, clock: Clock = SYSTEM,
                 evictions: Callable[[], Mapping[str, int]] = dict, probes: Probes = tuple,
                 calls: Tally | None = None, ends: Mapping[tuple[str, str, str], int] = MappingProxyType({})) -> None:
        self._node, self._pods, self._cgroups, self._clock = node, pods, cgroups, clock
        self._evictions, self._probes, self._calls, self._ends = evictions, probes, calls or Tally(), ends
        self._usages = Usages(cgroups)

    def resource(self) -> str:
        """The text at /metrics/resource."""
        samples: Samples = {name: [] for name, _, _ in _RESOURCE}
        stamp = int(self._clock.now() * 1000)

        def add(kind: str, labels: str, used: Usage | None) -> None:
            if used is not None:
                samples[f"{kind}_cpu_usage_seconds_total"].append(f"{labels} {used.cpu / 1e9:.9g} {stamp}")
                samples[f"{kind}_memory_working_set_bytes"].append(f"{labels} {used.working_set} {stamp}")

        add("node", "", self._usages.host())
        for pod, observed in self._pods():
            add("pod", f"{{{place(pod)}}}", self._usages.of(self._cgroups.folder(pod)))
            for container in observed.running:
                labels = f'{{container="{container.name}",{place(pod)}}}'
                add("container", labels, self._usages.of(self._cgroups.folder(pod, container.id)))
                samples["container_start_time_seconds"].append(f"{labels} {container.started_at:.3f} {stamp}")
        samples["resource_scrape_error"].append(" 0")
        return exposition(_RESOURCE, samples)

    def cadvisor(self) -> str:
        """The text at /metrics/cadvisor: pods (with an empty container) and their containers, by cAdvisor's names."""
        samples: Samples = {name: [] for name, _, _ in _CADVISOR}
        stamp = self._clock.now()
        for pod, observed in self._pods():
            folder, where = self._cgroups.folder(pod), place(pod)
            self._group(samples, f'container="",id="/{folder}",image="",name="",{where}', folder, stamp)
            for c in observed.running:
                inner = self._cgroups.folder(pod, c.id)
                labels = f'container="{c.name}",id="/{inner}",image="{c.image}",name="{c.id}",{where}'
                self._group(samples, labels, inner, stamp)
                samples["container_start_time_seconds"].append(f"{{{labels}}} {c.started_at:.0f}")
            if observed.running and not pod["spec"].get("hostNetwork"):
                self._network(samples, pod, observed.running[0].id, f'id="/{folder}",image="",{where}')
        samples["cadvisor_version_info"].append(f'{{kernelVersion="{os.uname().release}",osVersion="linux"}} 1')
        samples["machine_cpu_cores"].append(f" {os.cpu_count() or 1}")
        samples["machine_memory_bytes"].append(f" {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')}")
        return exposition(_CADVISOR, samples)

    def _group(self, samples: Samples, labels: str, folder: str, stamp: float) -> None:
        used = self._usages.of(folder)
        if used is None:
            return
        samples["container_cpu_usage_seconds_total"].append(f'{{cpu="total",{labels}}} {used.cpu / 1e9:.9g}')
        for name, value in (
                ("memory_usage_bytes", used.memory), ("memory_working_set_bytes", used.working_set),
                ("memory_rss", used.rss), ("memory_cache", used.cache), ("spec_memory_limit_bytes", used.limit),
                ("cpu_cfs_periods_total", used.periods), ("cpu_cfs_throttled_periods_total", used.throttled_periods),
                ("last_seen", int(stamp))):
            samples[f"container_{name}"].append(f"{{{labels}}} {value}")
        samples["container_cpu_cfs_throttled_seconds_total"].append(f"{{{labels}}} {used.throttled / 1e9:.9g}")
        for kind, count in (("pgfault", used.faults), ("pgmajfault", used.major_faults)):
            samples["container_memory_failures_total"].append(
                f'{{failure_type="{kind}",scope="hierarchy",{labels}}} {count}')
        for what, stalls in self._usages.pressure(folder).items():
            for how, who in _STALLS.items():
                if who in stalls:
                    samples[f"container_pressure_{what}_{how}_seconds_total"].append(
                        f"{{{labels}}} {stalls[who]['total'] / 1e6:.9g}")

    def _network(self, samples: Samples, pod: dict[str, Any], container: str, labels: str) -> None:
        for t in self._usages.network(self._cgroups.folder(pod, container)):
            for name, value in (
                    ("receive_bytes", t.received), ("receive_errors", t.receive_errors),
                    ("receive_packets", t.received_packets), ("receive_packets_dropped", t.received_dropped),
                    ("transmit_bytes", t.sent), ("transmit_errors", t.send_errors),
                    ("transmit_packets", t.sent_packets), ("transmit_packets_dropped", t.sent_dropped)):
                samples[f"container_network_{name}_total"].append(f'{{interface="{t.name}",{labels}}} {value}')

    def kubelet(self, claims: Iterable[dict[str, Any]] = ()) -> str:
        """The text at /metrics: what runs here, how the runtime does, how full the volumes of `claims` are (as `stats`
        tells them), and what this process uses."""
        seen = list(self._pods())
        states = Counter(c.state for _, observed in seen for c in observed.containers)
        running = sum(bool(o.running) for _, o in seen)
        samples: Samples = {
            "kubernetes_build_info": [f'{{git_version="{KUBELET_VERSION}",platform="linux"}} 1'],
            "kubelet_node_name": [f'{{node="{self._node}"}} 1'],
            "kubelet_desired_pods": [f'{{static=""}} {len(seen)}'],
            "kubelet_active_pods": [f'{{static=""}} {running}'], "kubelet_running_pods": [f" {running}"],
            "kubelet_running_containers": [f'{{container_state="{s}"}} {n}' for s, n in sorted(states.items())],
            "kubelet_evictions": [f'{{eviction_signal="{s}"}} {n}' for s, n in sorted(self._evictions().items())],
            "kubelet_terminated_containers_total": [
                f'{{container_type="{kind}",exit_code="{code}",reason="{reason}"}} {n}'
                for (kind, code, reason), n in sorted(self._ends.items())],
            **_runtime(self._calls), **_volumes(claims), **_process()}
        return exposition(_KUBELET, samples)

    def probes(self) -> str:
        """The text at /metrics/probes."""
        lines = [f'{{container="{container}",{place(pod)},pod_uid="{pod["metadata"]["uid"]}",'
                 f'probe_type="{kind.capitalize()}",result="{result}"}} {count}'
                 for pod, results in self._probes() for (container, kind, result), count in sorted(results.items())]
        return exposition(_PROBES, {"prober_probe_total": lines})


def _runtime(tally: Tally) -> Samples:
    samples: Samples = {f"{_OPERATIONS}_{name}": [] for name in ("total", "errors_total", "duration_seconds")}
    for kind, calls in sorted(tally.kinds.items()):
        label = f'operation_type="{kind}"'
        samples[f"{_OPERATIONS}_total"].append(f"{{{label}}} {calls.count}")
        if calls.errors:
            samples[f"{_OPERATIONS}_errors_total"].append(f"{{{label}}} {calls.errors}")
        counts = zip((*(f"{bound:.9g}" for bound in BOUNDS), "+Inf"), accumulate(calls.buckets))
        samples[f"{_OPERATIONS}_duration_seconds"] += [
            *(f'_bucket{{{label},le="{bound}"}} {count}' for bound, count in counts),
            f"_sum{{{label}}} {calls.seconds:.9g}", f"_count{{{label}}} {calls.count}"]
    return samples


def _volumes(claims: Iterable[dict[str, Any]]) -> Samples:
    """A claim that several pods use is told once."""
    found = {(entry["pvcRef"]["namespace"], entry["pvcRef"]["name"]): entry for entry in claims}
    return {f"kubelet_volume_stats_{name}": [
        f'{{namespace="{namespace}",persistentvolumeclaim="{claim}"}} {entry[key]}'
        for (namespace, claim), entry in sorted(found.items()) if key in entry] for name, key in _VOLUMES.items()}


def alive() -> str:
    """The text at /metrics/slis: that it is asked and answers is the kubelet's one check."""
    return exposition(_ALIVE, {"kubernetes_healthcheck": ['{name="ping",type="healthz"} 1']})


def _process() -> Samples:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    booted = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines()
                  if line.startswith("btime"))
    return {"process_cpu_seconds_total": [f" {(int(fields[11]) + int(fields[12])) / ticks}"],
            "process_start_time_seconds": [f" {booted + int(fields[19]) / ticks:.2f}"],
            "process_virtual_memory_bytes": [f" {int(fields[20])}"],
            "process_resident_memory_bytes": [f" {int(fields[21]) * os.sysconf('SC_PAGE_SIZE')}"],
            "process_open_fds": [f" {len(os.listdir('/proc/self/fd'))}"]}


_STALLS = {"stalled": "full", "waiting": "some"}
_RESOURCE = (
    *((f"{who}_{what}", kind, f"{text} of the {who}") for who in ("container", "node", "pod")
      for what, kind, text in (("cpu_usage_seconds_total", "counter", "CPU time in core-seconds"),
                               ("memory_working_set_bytes", "gauge", "Working set in bytes"))),
    ("container_start_time_seconds", "gauge", "Start of the container in seconds since the epoch"),
    ("resource_scrape_error", "gauge", "1 if something could not be read"))
_ALIVE = (("kubernetes_healthcheck", "gauge", "[STABLE] This metric records the result of a single healthcheck."),)
_CADVISOR = (
    ("cadvisor_version_info", "gauge", "The kernel and the system that are measured."),
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds."),
    ("container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals."),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals."),
    ("container_cpu_cfs_throttled_seconds_total", "counter", "Total time duration the container has been throttled."),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory."),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes."),
    ("container_memory_rss", "gauge", "Size of RSS in bytes."),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory."),
    ("container_memory_failures_total", "counter", "Cumulative count of memory allocation failures."),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container; 0 = none."),
    *((f"container_network_{way}_{what}_total", "counter", f"Cumulative count of {what.replace('_', ' ')}, {way}d.")
      for way in ("receive", "transmit") for what in ("bytes", "errors", "packets", "packets_dropped")),
    *((f"container_pressure_{what}_{how}_seconds_total", "counter",
       f"Total time duration {who} tasks in the container have waited for {what}.") for what in WAITS
      for how, who in (("stalled", "all"), ("waiting", "some"))),
    ("container_last_seen", "gauge", "When the container was last looked at, seconds since the epoch."),
    ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds."),
    ("machine_cpu_cores", "gauge", "Number of logical CPU cores."),
    ("machine_memory_bytes", "gauge", "Amount of memory installed on the machine."))
_OPERATIONS = "kubelet_runtime_operations"
_VOLUMES = {"capacity_bytes": "capacityBytes", "available_bytes": "availableBytes", "used_bytes": "usedBytes",
            "inodes": "inodes", "inodes_free": "inodesFree", "inodes_used": "inodesUsed"}
_KUBELET = (
    ("kubernetes_build_info", "gauge", "A metric with a constant '1' value labeled by version."),
    ("kubelet_node_name", "gauge", "The node's name. The count is always 1."),
    ("kubelet_desired_pods", "gauge", "The number of pods the kubelet is being instructed to run."),
    ("kubelet_active_pods", "gauge", "The number of pods the kubelet considers active."),
    ("kubelet_running_pods", "gauge", "Number of pods that have a running container"),
    ("kubelet_running_containers", "gauge", "Number of containers by state"),
    ("kubelet_terminated_containers_total", "counter", "Cumulative number of terminated containers by exit code."),
    (f"{_OPERATIONS}_total", "counter", "Cumulative number of runtime operations by operation type."),
    (f"{_OPERATIONS}_errors_total", "counter", "Cumulative number of runtime operation errors by operation type."),
    (f"{_OPERATIONS}_duration_seconds", "histogram", "Duration in seconds of runtime operations."),
    *((f"kubelet_volume_stats_{name}", "gauge", f"{name.replace('_', ' ').capitalize()} of the volume")
      for name in _VOLUMES),
    ("kubelet_evictions", "counter", "Cumulative number of pod evictions by eviction signal"),
    ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ("process_open_fds", "gauge", "Number of open file descriptors."))
_PROBES = (("prober_probe_total", "counter",
            "Cumulative number of a liveness, readiness or startup probe for a container by result."),)
