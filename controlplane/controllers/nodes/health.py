"""Is a node alive, which taints should it carry, and which of its pods must leave.

Pure. Owns the grace of a silent node, the taints that follow from conditions, and tolerations of NoExecute taints. All
times are seconds; `silent` is measured on our own clock, never on the node's. Called by `lifecycle`.

Upstream: pkg/controller/nodelifecycle and pkg/controller/tainteviction.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import objects, placement
from controlplane.machinery.clock import parse_rfc3339

GRACE_SECONDS = 50.0  # without a lease renewal until a node counts as unreachable: upstream's default
NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_PRESSURE = {"MemoryPressure": "node.kubernetes.io/memory-pressure", "DiskPressure": "node.kubernetes.io/disk-pressure",
             "PIDPressure": "node.kubernetes.io/pid-pressure",
             "NetworkUnavailable": "node.kubernetes.io/network-unavailable"}
_OURS = {*_PRESSURE.values(), NOT_READY, UNREACHABLE, UNSCHEDULABLE}
_REPORTED = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")  # what a node says of itself

Obj = dict[str, Any]


def ready(node: Obj) -> str:
    """`True`, `False` or `Unknown`."""
    return (objects.condition(node, "Ready") or {}).get("status", "Unknown")


def silenced(node: Obj, stamp: str) -> list[Obj] | None:
    """The conditions of a node that fell silent; None when they say so already."""
    conditions = objects.deep_copy(objects.get(node, "status.conditions", []))
    changed = False
    for kind in _REPORTED:
        before = objects.condition(node, kind)
        if before is None:
            conditions.append({"type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                               "message": "Kubelet never posted node status.", "lastTransitionTime": stamp,
                               "lastHeartbeatTime": node["metadata"].get("creationTimestamp") or stamp})
            changed = True
        elif before.get("status") != "Unknown":
            changed |= objects.set_condition(conditions, kind, "Unknown", "NodeStatusUnknown",
                                             "Kubelet stopped posting node status.", stamp)
    return conditions if changed else None


def moved(node: Obj) -> bool:
    """Whether a taint of ours drives the node's pods away already."""
    return any(one.get("effect") == "NoExecute" and one.get("key") in (NOT_READY, UNREACHABLE)
               for one in objects.get(node, "spec.taints", []))


def taints(node: Obj, stamp: str, execute: bool = True) -> list[Obj] | None:
    """All taints the node should carry, others' included; None when it carries them already. Without `execute` none of
    them drives pods away."""
    current = objects.get(node, "spec.taints", [])
    wanted: list[tuple[str, str]] = []
    state = ready(node)
    if state != "True":
        key = UNREACHABLE if state == "Unknown" else NOT_READY
        wanted += [(key, "NoSchedule"), (key, "NoExecute")] if execute else [(key, "NoSchedule")]
    for kind, key in _PRESSURE.items():
        if objects.holds(node, kind):
            wanted.append((key, "NoSchedule"))
    if objects.get(node, "spec.unschedulable"):
        wanted.append((UNSCHEDULABLE, "NoSchedule"))
    result = [t for t in current if t.get("key") not in _OURS or (t["key"], t.get("effect")) in wanted]
    present = {(t.get("key"), t.get("effect")) for t in result}
    result += [{"key": key, "effect": effect} | ({"timeAdded": stamp} if effect == "NoExecute" else {})
               for key, effect in wanted if (key, effect) not in present]
    return None if result == current else result


def unready(pod: Obj, stamp: str) -> Obj | None:
    """The status patch that marks a pod of a silent node as not ready; None when it is not ready anyway."""
    if not objects.holds(pod, "Ready"):
        return None
    condition = {"type": "Ready", "status": "False", "lastTransitionTime": stamp}
    return {"metadata": {"uid": objects.uid(pod)}, "status": {"conditions": [condition]}}


def evict_at(pod: Obj, node: Obj, seen: float) -> float | None:
    """When (wall seconds) the node's NoExecute taints drive the pod away, None never.

    `seen`, since when they are known to, stands for what a taint does not say, and is the answer when one is not
    tolerated at all."""
    executing = [t for t in objects.get(node, "spec.taints", []) if t.get("effect") == "NoExecute"]
    tolerations = objects.get(pod, "spec.tolerations", [])
    leave: float | None = None
    for taint in executing:
        matching = [t for t in tolerations if placement.tolerates(t, taint)]
        if not matching:
            return seen
        limits = [max(0, t["tolerationSeconds"]) for t in matching if t.get("tolerationSeconds") is not None]
        if limits:
            since = parse_rfc3339(taint["timeAdded"]) if taint.get("timeAdded") else seen
            when = since + min(limits)
            leave = when if leave is None else min(leave, when)
    return leave
