"""May this pod run here? The node's own check of a pod that was bound to it, by whoever bound it.

Pure. Owns upstream's reasons and messages: a refused pod is Failed with them and never started. Promises that a pod
that was admitted once is not judged again, which is the caller's to keep, and that what this node would run without
the protection asked for is refused. Called by `kubelet` for every new pod.

Upstream: pkg/kubelet/lifecycle/predicate.go, pkg/kubelet/sysctl.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.compute import resources
from agent.kubelet.restarts import lasting
from agent.kubelet.specs import dotted
from agent.kubelet.staticpods import SOURCE
from controlplane.machinery import placement, quantity
from controlplane.machinery.podresources import qos_class

CRITICAL = 2_000_000_000  # priorities from here on are the system's
MEMORY_TAINT = "node.kubernetes.io/memory-pressure"
# Sysctls whose effect stays inside the pod: upstream's safe set.
SAFE_SYSCTLS = ("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies",
                "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start",
                "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
                "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
                "net.ipv4.tcp_wmem")


@dataclass(frozen=True, slots=True)
class Place:
    """The node a pod asks to run on: its labels, its name and what it can give, in the units of `amounts`."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    allocatable: dict[str, str] = field(default_factory=dict)
    sysctls: tuple[str, ...] = ()  # allowed beyond the safe ones; `net.core.*` allows a family
    apparmor: bool = False  # whether the kernel enforces it
    strict_groups: bool = False  # whether the runtime can keep the image's own groups away
    pressures: frozenset[str] = frozenset()  # what the node runs short of, as its conditions say
    closing: bool = False  # the host is about to go down
    devices: frozenset[str] = frozenset()  # resources that the device plugins here have the last word on


def judge(pod: dict[str, Any], others: Iterable[dict[str, Any]], place: Place) -> tuple[str, str] | None:
    """None when `pod` may run beside `others`, else (reason, message) of its failure."""
    others = list(others)
    if place.closing:
        return "NodeShutdown", "Pod was rejected as the node is shutting down."
    return (_pressure(pod, place.pressures) or _system(pod) or _sysctls(pod, place) or _unsupported(pod, place)
            or _fit(pod, others, place) or _ports(pod, others) or _affinity(pod, place))


def critical(pod: dict[str, Any]) -> bool:
    """Whether the pod is never turned away or evicted: static, or of the system's own priority."""
    static = SOURCE in (pod["metadata"].get("annotations") or {})
    return static or (pod["spec"].get("priority") or 0) >= CRITICAL


def _pressure(pod: dict[str, Any], conditions: frozenset[str]) -> tuple[str, str] | None:
    if not conditions or critical(pod):
        return None
    if conditions == {"MemoryPressure"}:
        tolerates = any(t.get("effect") in (None, "", "NoSchedule") and (
            t.get("key") == MEMORY_TAINT or (not t.get("key") and t.get("operator") == "Exists"))
            for t in pod["spec"].get("tolerations") or ())
        if qos_class(pod["spec"]) != "BestEffort" or tolerates:
            return None
    return "Evicted", f"The node had condition: [{' '.join(sorted(conditions))}]. "


def _sysctls(pod: dict[str, Any], place: Place) -> tuple[str, str] | None:
    spec = pod["spec"]
    for entry in (spec.get("securityContext") or {}).get("sysctls") or ():
        name = dotted(entry["name"])
        if not any(re.fullmatch(re.escape(p).replace(r"\*", ".*"), name) for p in (*SAFE_SYSCTLS, *place.sysctls)):
            return "SysctlForbidden", f'forbidden sysctl: "{name}" not allowlisted'
        shared = (spec.get("hostNetwork") and name.startswith("net.") and "host network") or (
            spec.get("hostIPC") and name.startswith(("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."))
            and "host ipc")
        if shared:
            return "SysctlForbidden", f'forbidden sysctl: "{name}" not allowed with {shared} enabled'
    return None


def _system(pod: dict[str, Any]) -> tuple[str, str] | None:
    if (pod["spec"].get("os") or {}).get("name") not in (None, "", "linux"):
        return "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"
    label = (pod["spec"].get("nodeSelector") or {}).get("kubernetes.io/os")
    if label not in (None, "linux"):
        return "PodOSSelectorNodeLabelDoesNotMatch", \
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
    return None


def _unsupported(pod: dict[str, Any], place: Place) -> tuple[str, str] | None:
    context = pod["spec"].get("securityContext") or {}
    contexts = [context, *(c.get("securityContext") or {} for c in lasting(pod))]
    if not place.apparmor and any((c.get("appArmorProfile") or {}).get("type", "Unconfined") != "Unconfined"
                                  for c in contexts):
        return "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"
    if context.get("supplementalGroupsPolicy") == "Strict" and not place.strict_groups:
        return ("SupplementalGroupsPolicyNotSupported",
                "SupplementalGroupsPolicy=Strict is not supported in this node")
    return None


def amounts(pod: dict[str, Any]) -> dict[str, int]:
    """What the pod asks of the node: milli-cores of cpu, whole units of all else, one of `pods`."""
    spec = pod["spec"]
    names = {name for c in lasting(pod) for kind in ("requests", "limits")
             for name in (c.get("resources") or {}).get(kind) or ()}
    names |= set((spec.get("resources") or {}).get("requests") or ())
    totals = {"pods": 1}
    for name in sorted(names):
        total = _total(pod, name)
        over = (spec.get("overhead") or {}).get(name)
        total += quantity.parse(str(over)).milli() if over else 0
        totals[name] = total if name == "cpu" else -(-total // 1000)
    return totals


def _total(pod: dict[str, Any], name: str) -> int:
    """Milli-units: those that run together, or the largest step of initialization if that is more."""
    spec = pod["spec"]
    said = resources.milli(spec.get("resources"), "requests", name)
    if said is not None:
        return said

    def asked(container: dict[str, Any]) -> int:
        value = resources.milli(container.get("resources"), "requests", name)
        return (resources.milli(container.get("resources"), "limits", name) or 0) if value is None else value

    peak = beside = 0
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            beside += asked(container)
            peak = max(peak, beside)
        else:
            peak = max(peak, beside + asked(container))
    return max(peak, beside + sum(asked(c) for c in spec["containers"]))


def capacity(place: Place) -> dict[str, int]:
    """The node's allocatable in the units of `amounts`."""
    return {name: quantity.parse(str(text)).milli() if name == "cpu" else quantity.parse(str(text)).value()
            for name, text in place.allocatable.items()}


def shortages(pod: dict[str, Any], others: list[dict[str, Any]], place: Place) -> dict[str, tuple[int, int, int]]:
    """What the node has not enough of for `pod` beside `others`: how much is wanted, used, and there at all."""
    if not place.allocatable:
        return {}
    have, used = capacity(place), dict.fromkeys(place.allocatable, 0)
    for other in others:
        for name, value in amounts(other).items():
            used[name] = used.get(name, 0) + value
    return {name: (wanted, used.get(name, 0), have.get(name, 0)) for name, wanted in amounts(pod).items()
            # What no node knows of itself is the cluster's to count.
            if wanted and name not in place.devices and ("/" not in name or name in have)
            and used.get(name, 0) + wanted > have.get(name, 0)}


def _fit(pod: dict[str, Any], others: list[dict[str, Any]], place: Place) -> tuple[str, str] | None:
    for name, (wanted, used, has) in shortages(pod, others, place).items():
        return (f"OutOf{name}", f"Pod was rejected: Node didn't have enough resource: {name}, requested: {wanted}, "
                                f"used: {used}, capacity: {has}")
    return None


def host_ports(pod: dict[str, Any]) -> set[tuple[str, str, int]]:
    """(address, protocol, port) on the node."""
    return {(p.get("hostIP") or "0.0.0.0", p.get("protocol") or "TCP", p["hostPort"])
            for c in pod["spec"]["containers"] for p in c.get("ports") or () if p.get("hostPort")}


def _ports(pod: dict[str, Any], others: list[dict[str, Any]]) -> tuple[str, str] | None:
    mine = host_ports(pod)
    for other in others if mine else ():
        for ip, protocol, port in host_ports(other):
            if any(port == p and protocol == q and (ip == i or "0.0.0.0" in (ip, i)) for i, q, p in mine):
                return "NodePorts", "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports " \
                                    "for the requested pod ports"
    return None


def _affinity(pod: dict[str, Any], place: Place) -> tuple[str, str] | None:
    spec = pod["spec"]
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution")
    terms = None if required is None else required.get("nodeSelectorTerms") or ()
    if placement.selects(spec.get("nodeSelector") or {}, terms, place):
        return None
    return "NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node " \
                           "affinity/selector"
