"""How many replicas a metric asks for.

Pure. Owns upstream's formula: replicas times actual through target, rounded up, left alone within the tolerance; pods
that are not ready or have no figure are taken as idle when growing and as fully used when shrinking, and may dampen a
change but never turn it round. Values are in thousandths (milli-units). Called by `metrics`.

Upstream: pkg/controller/podautoscaler/replica_calculator.go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery import objects, quantity
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import ApiError

CPU_INITIALIZATION_SECONDS = 300.0  # after its start a pod's CPU figure counts only while the pod is ready: upstream's
FIRST_READINESS_SECONDS = 30.0  # a pod that was unready from so soon after its start has never been ready: upstream's
TOLERANCE = 0.1  # a ratio this close to 1 changes nothing: upstream's default

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One pod's figure: thousandths, when it was taken (wall seconds), over how many seconds."""

    value: int
    at: float = 0.0
    window: float = 60.0


@dataclass(frozen=True, slots=True)
class Tolerance:
    down: float = TOLERANCE
    up: float = TOLERANCE

    def covers(self, ratio: float) -> bool:
        return 1.0 - self.down <= ratio <= 1.0 + self.up


@dataclass(frozen=True, slots=True)
class Proposal:
    """`replicas` wanted; `utilization` in percent where the target is; `value` is the average in thousandths."""

    replicas: int
    value: int
    utilization: int | None = None


@dataclass(slots=True)
class Groups:
    """Pods by what their figure is worth; names."""

    ready: int = 0
    unready: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)


def group(pods: list[Obj], samples: dict[str, Sample], resource: str, now: float) -> Groups:
    found = Groups()
    for pod in pods:
        name, phase = objects.name(pod), objects.get(pod, "status.phase")
        if objects.deleting(pod) or phase == "Failed":
            found.ignored.add(name)
        elif phase == "Pending":
            found.unready.add(name)
        elif name not in samples:
            found.missing.add(name)
        elif resource == "cpu" and _unready(pod, samples[name], now):
            found.unready.add(name)
        else:
            found.ready += 1
    return found


def _unready(pod: Obj, sample: Sample, now: float) -> bool:
    condition, started = objects.condition(pod, "Ready"), objects.get(pod, "status.startTime")
    if condition is None or started is None:
        return True
    since = parse_rfc3339(condition.get("lastTransitionTime") or started)
    down, start = condition.get("status") == "False", parse_rfc3339(started)
    if start + CPU_INITIALIZATION_SECONDS > now:
        return down or sample.at < since + sample.window
    return down and start + FIRST_READINESS_SECONDS > since


def requests_of(pods: list[Obj], container: str, resource: str) -> dict[str, int]:
    """Thousandths each pod asks for, of one container or ("") of all. ApiError when one asks for nothing."""
    result: dict[str, int] = {}
    for pod in pods:
        total = 0
        sidecars = [one for one in objects.get(pod, "spec.initContainers", None) or ()
                    if one.get("restartPolicy") == "Always"]
        for one in (*objects.get(pod, "spec.containers", []), *sidecars):
            if container and one.get("name") != container:
                continue
            asked = objects.get(one, f"resources.requests.{resource}")
            if asked is None:
                raise ApiError(f"missing request for {resource} in container {one.get('name')} of Pod "
                               f"{objects.name(pod)}")
            total += quantity.parse(str(asked)).milli()
        result[objects.name(pod)] = total
    return result


# --- per pod -----------------------------------------------------------------------------------------------------

def _kept(pods: list[Obj], samples: dict[str, Sample], groups: Groups) -> dict[str, int]:
    if not pods:
        raise ApiError("no pods returned by selector while calculating replica count")
    kept = {name: one.value for name, one in samples.items() if name not in groups.ignored | groups.unready}
    if not kept:
        raise ApiError("did not receive metrics for targeted pods (pods might be unready)")
    return kept


def by_utilization(current: int, target: int, resource: str, container: str, pods: list[Obj],
                   samples: dict[str, Sample], tolerance: Tolerance, now: float) -> Proposal:
    """`target` percent of what the pods ask for."""
    groups = group(pods, samples, resource, now)
    values = _kept(pods, samples, groups)
    requests = requests_of(pods, container, resource)

    def ratio_of(values: dict[str, int]) -> tuple[float, int, int]:
        known = [name for name in values if name in requests]
        wanted = sum(requests[name] for name in known)
        if not wanted:
            raise ApiError("no metrics returned matched known pods")
        used = sum(values[name] for name in known)
        percent = used * 100 // wanted
        return percent / target, percent, used // len(known)
    ratio, percent, average = ratio_of(values)
    full = {name: requests[name] * max(100, target) // 100 for name in groups.missing if name in requests}
    count = _settle(current, ratio, values, groups, full, tolerance, lambda filled: ratio_of(filled)[0])
    return Proposal(count, average, percent)


def by_average(current: int, target: int, resource: str, pods: list[Obj], samples: dict[str, Sample],
               tolerance: Tolerance, now: float) -> Proposal:
    """`target` thousandths on the average of the pods; `resource` is "" for other metrics."""
    groups = group(pods, samples, resource, now)
    values = _kept(pods, samples, groups)

    def ratio_of(values: dict[str, int]) -> float:
        return (sum(values.values()) // len(values)) / target
    count = _settle(current, ratio_of(values), values, groups, dict.fromkeys(groups.missing, target), tolerance,
                    ratio_of)
    return Proposal(count, sum(values.values()) // len(values))


def _settle(current: int, ratio: float, values: dict[str, int], groups: Groups, full: dict[str, int],
            tolerance: Tolerance, ratio_of: Any) -> int:
    """The replicas `ratio` asks for, with missing pods filled in (`full` when shrinking) and unready ones idle."""
    growing_with_unready = bool(groups.unready) and ratio > 1.0
    if not growing_with_unready and not groups.missing:
        return current if tolerance.covers(ratio) else math.ceil(ratio * groups.ready)
    filled = dict(values)
    if groups.missing and ratio != 1.0:
        filled |= full if ratio < 1.0 else dict.fromkeys(groups.missing, 0)
    if growing_with_unready:
        filled |= dict.fromkeys(groups.unready, 0)
    again = ratio_of(filled)
    if tolerance.covers(again) or (ratio < 1.0 < again) or (again < 1.0 < ratio):
        return current
    count = math.ceil(again * len(filled))
    turned = (again < 1.0 and count > current) or (again > 1.0 and count < current)
    return current if turned else count


# --- of one thing ------------------------------------------------------------------------------------------------

def ready_count(pods: list[Obj]) -> int:
    if not pods:
        raise ApiError("no pods returned by selector while calculating replica count")
    return sum(objects.get(pod, "status.phase") == "Running"
               and objects.holds(pod, "Ready") for pod in pods)


def by_value(current: int, target: int, usage: int, pods: list[Obj], tolerance: Tolerance) -> Proposal:
    """`target` and `usage` are of the whole; a target of no replicas grows by the ratio alone."""
    ratio = usage / target
    if current == 0:
        return Proposal(math.ceil(ratio), usage)
    return Proposal(current if tolerance.covers(ratio) else math.ceil(ratio * ready_count(pods)), usage)


def by_share(replicas: int, target: int, usage: int, tolerance: Tolerance) -> Proposal:
    """`target` per replica of `usage` of the whole; `replicas` as the scale's status says."""
    count = replicas
    if not replicas or not tolerance.covers(usage / (target * replicas)):
        count = math.ceil(usage / target)
    return Proposal(count, math.ceil(usage / replicas) if replicas else usage)
