"""How this node keeps house: what it reserves, when it evicts, when it collects, as flags and as a kubelet's settings.

Owns the flags of upstream's kubelet about it, their defaults, and the settings' form at /configz. Pure. Called by
`config`; the values go to `eviction`, `collection`, `shutdown` and `nodestatus`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.compute import cpumanager
from agent.kubelet.pressure import thresholds
from agent.kubelet.pressure.thresholds import Threshold
from controlplane.machinery import quantity
from controlplane.machinery.errors import Finding

MAX_PODS = 110
IMAGE_HIGH, IMAGE_LOW = 85, 80  # per cent of the images' file system
IMAGE_AGE = 120.0  # seconds an image is kept after it came
READ_ONLY_PORT = 10255  # what scrapers of old expect, where it is switched on


@dataclass(frozen=True, slots=True)
class Keeping:
    """Seconds, per cent, and quantities as text by resource name."""

    evictions: tuple[Threshold, ...] = field(default_factory=thresholds.parse)
    hard: str = thresholds.HARD
    transition: float = thresholds.TRANSITION_SECONDS
    max_grace: float = 0.0  # of soft evictions; 0.0 = the pod's own
    image_high: int = IMAGE_HIGH
    image_low: int = IMAGE_LOW
    image_age: float = IMAGE_AGE
    kube_reserved: dict[str, str] = field(default_factory=dict)
    system_reserved: dict[str, str] = field(default_factory=dict)
    enforce: bool = True
    max_pods: int = MAX_PODS
    shutdown: float = 0.0  # seconds all pods have when the node shuts down; 0.0 = not looked after
    shutdown_critical: float = 0.0  # of them for critical pods
    shutdown_on_sigterm: bool = False  # SIGTERM means that the host goes down
    read_only_port: int = 0
    read_only_address: str = "127.0.0.1"
    pod_pids: int = 0  # processes and threads of each pod; 0 = no bound
    shutdown_by_priority: tuple[tuple[int, float], ...] = ()  # instead: from which priority on, how many seconds
    static_cpus: bool = False  # whole CPUs are given to Guaranteed pods that ask for them
    reserved_cpus: frozenset[int] = frozenset()  # never given so

    @property
    def shutdown_seconds(self) -> float:
        """How long a shutdown of the host waits for all pods together."""
        return sum(seconds for _, seconds in self.shutdown_by_priority) or self.shutdown


    def reserved(self, name: str) -> int:
        """Milli-units of a resource kept from pods, without what evictions keep."""
        return sum(quantity.parse(part.get(name, "0")).milli() for part in (self.kube_reserved, self.system_reserved))

    def kept(self, signal: str, capacity: int) -> int:
        """What the hard threshold of a signal keeps from pods."""
        return max((t.value.of(capacity) for t in self.evictions if t.signal == signal and not t.grace), default=0)


def add_flags(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument
    add("--eviction-hard", default=thresholds.HARD, help="what must be free, or pods are evicted at once")
    add("--eviction-soft", default="", help="what should be free, or pods are evicted after a while")
    add("--eviction-soft-grace-period", default="", help="how long the soft thresholds may be crossed")
    add("--eviction-minimum-reclaim", default="", help="how much more than the threshold an eviction shall win")
    add("--eviction-max-pod-grace-period", type=float, default=0.0, help="bound of a soft eviction's grace, seconds")
    add("--eviction-pressure-transition-period", default="5m", help="how long a pressure is told after it has passed")
    add("--image-gc-high-threshold", type=int, default=IMAGE_HIGH, help="per cent of the disk from which unused "
        "images are removed")
    add("--image-gc-low-threshold", type=int, default=IMAGE_LOW, help="per cent of the disk down to which they are")
    add("--minimum-image-ttl-duration", default="2m", help="how long an image is kept in any case")
    add("--kube-reserved", default="", help="kept from pods for Kubernetes' own, such as cpu=100m,memory=200Mi")
    add("--system-reserved", default="", help="kept from pods for the system")
    add("--enforce-node-allocatable", default="pods", choices=("pods", "none"), help="whether all pods together are "
        "held to what is allocatable")
    add("--max-pods", type=int, default=MAX_PODS)
    add("--cpu-manager-policy", default=cpumanager.NONE, choices=(cpumanager.NONE, cpumanager.STATIC), help="whether "
        "containers of Guaranteed pods that ask for whole CPUs get them to themselves")
    add("--cpu-manager-policy-options", default="", help="none is known")
    add("--reserved-cpus", default="", help="CPUs kept for the system, such as 0-1: never given to a container alone")
    add("--memory-manager-policy", default="None", help="only None")
    add("--topology-manager-policy", default="none", help="only none")
    add("--pod-max-pids", type=int, default=0, help="bound of each pod's processes and threads (0 = none)")
    add("--shutdown-grace-period", default="0s", help="how long a shutdown of the host waits for pods")
    add("--shutdown-grace-period-critical-pods", default="0s", help="how much of that is for critical pods")
    add("--shutdown-grace-period-by-pod-priority", default="", help="how long pods from a priority on have, instead: "
        "0=60s,10000=30s")
    add("--shutdown-on-sigterm", action="store_true", help="take SIGTERM for the host's shutdown and end all pods, for "
        "hosts without systemd")
    add("--read-only-port", type=int, default=0, help=f"answer what may be read without asking who reads, on this port "
        f"(usual: {READ_ONLY_PORT}; 0 = not at all)")
    add("--read-only-address", default="127.0.0.1", help="where the read-only port listens")


def of(given: argparse.Namespace) -> Keeping:
    """The settings of parsed flags. Raises Finding for one that means nothing."""
    try:
        if not given.image_gc_low_threshold < given.image_gc_high_threshold <= 100:
            raise ValueError("the low image threshold must be below the high one")
        evictions = thresholds.parse(given.eviction_hard, given.eviction_soft, given.eviction_soft_grace_period,
                                     given.eviction_minimum_reclaim)
        enforce = given.enforce_node_allocatable == "pods"
        kube, system = _reserved(given.kube_reserved), _reserved(given.system_reserved)
        static, cpus = _cpus(given, kube, system)
        return Keeping(
            thresholds.with_pods(evictions) if enforce else evictions, given.eviction_hard,
            thresholds.duration(given.eviction_pressure_transition_period), given.eviction_max_pod_grace_period,
            given.image_gc_high_threshold, given.image_gc_low_threshold,
            thresholds.duration(given.minimum_image_ttl_duration), kube, system, enforce, given.max_pods,
            thresholds.duration(given.shutdown_grace_period),
            thresholds.duration(given.shutdown_grace_period_critical_pods), given.shutdown_on_sigterm,
            given.read_only_port, given.read_only_address, max(0, given.pod_max_pids),
            _by_priority(given), static, cpus)
    except ValueError as error:
        raise Finding("the node agent's flags cannot be used", str(error), "see --help for how each is written") from \
            error


def _by_priority(given: argparse.Namespace) -> tuple[tuple[int, float], ...]:
    """Raises ValueError."""
    text = given.shutdown_grace_period_by_pod_priority
    if text and thresholds.duration(given.shutdown_grace_period):
        raise ValueError("--shutdown-grace-period and --shutdown-grace-period-by-pod-priority are two ways to say it")
    pairs = [part.partition("=") for part in text.split(",") if part]
    return tuple((int(priority), thresholds.duration(seconds)) for priority, _, seconds in pairs)


def _cpus(given: argparse.Namespace, kube: dict[str, str], system: dict[str, str]) -> tuple[bool, frozenset[int]]:
    """Whether CPUs are given to containers alone, and which never; named ones replace the amounts in `kube` and
    `system`. Raises ValueError for what this node does not do."""
    for flag, value, usual in (("memory", given.memory_manager_policy, "none"),
                               ("topology", given.topology_manager_policy, "none")):
        if value.lower() != usual:
            raise ValueError(f"--{flag}-manager-policy={value} is not supported by this node: only {usual} is")
    if given.cpu_manager_policy_options:
        raise ValueError(f"--cpu-manager-policy-options={given.cpu_manager_policy_options} is not supported by this "
                         "node: the static policy has no options here")
    named = cpumanager.parse(given.reserved_cpus)
    if named:
        kube.pop("cpu", None)
        system["cpu"] = str(len(named))
    static = given.cpu_manager_policy == cpumanager.STATIC
    amount = sum(quantity.parse(part.get("cpu", "0")).milli() for part in (kube, system))
    if static and not amount:
        raise ValueError("the static CPU manager policy requires systemreserved.cpu + kubereserved.cpu to be greater "
                         "than zero: give --reserved-cpus, --system-reserved or --kube-reserved")
    return static, named or (frozenset(range(-(-amount // 1000))) if static else frozenset())


def _reserved(text: str) -> dict[str, str]:
    found = thresholds.pairs(text)
    for value in found.values():
        quantity.parse(value)
    return found


def settings(keeping: Keeping, *, driver: str, domain: str, dns: tuple[str, ...], port: int,
             logs: str, manifests: str, endpoint: str) -> dict[str, Any]:
    """The KubeletConfiguration these come to, as /configz shows it."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "address": "0.0.0.0",
        "port": port, "readOnlyPort": keeping.read_only_port, "staticPodPath": manifests, "clusterDomain": domain,
        "clusterDNS": list(dns), "cgroupDriver": driver, "containerRuntimeEndpoint": endpoint, "podLogsDir": logs,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True, "cacheTTL": "2m0s"}},
        "authorization": {"mode": "Webhook"}, "maxPods": keeping.max_pods, "podPidsLimit": keeping.pod_pids or -1,
        "cpuManagerPolicy": cpumanager.STATIC if keeping.static_cpus else cpumanager.NONE,
        "cpuManagerReconcilePeriod": f"{cpumanager.RECONCILE_SECONDS:g}s", "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none", "reservedSystemCPUs": cpumanager.listed(keeping.reserved_cpus),
        "evictionHard": thresholds.pairs(keeping.hard, "<"),
        "evictionPressureTransitionPeriod": f"{keeping.transition:g}s",
        "imageGCHighThresholdPercent": keeping.image_high, "imageGCLowThresholdPercent": keeping.image_low,
        "imageMinimumGCAge": f"{keeping.image_age:g}s", "kubeReserved": keeping.kube_reserved,
        "systemReserved": keeping.system_reserved, "enforceNodeAllocatable": ["pods"] if keeping.enforce else [],
        "shutdownGracePeriod": f"{keeping.shutdown:g}s",
        "shutdownGracePeriodCriticalPods": f"{keeping.shutdown_critical:g}s",
        "shutdownGracePeriodByPodPriority": [
            {"priority": p, "shutdownGracePeriodSeconds": int(s)} for p, s in keeping.shutdown_by_priority],
        "cgroupsPerQOS": True,
        "nodeStatusUpdateFrequency": "30s", "nodeLeaseDurationSeconds": 40, "volumeStatsAggPeriod": "1m0s",
        "serializeImagePulls": False, "containerLogMaxSize": "10Mi", "containerLogMaxFiles": 5, "failSwapOn": False,
        "memorySwap": {}, "logging": {"format": "text"}}
