"""What a PodDisruptionBudget says: how many of its pods there should be, are healthy, and may be disrupted now.

Pure. Owns the arithmetic of `minAvailable` and `maxUnavailable`, the memory of evictions that were granted and not seen
yet, and the age at which a pod's `DisruptionTarget` condition is stale. Called by `controller`.

Upstream: pkg/controller/disruption/disruption.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery import objects, podfacts, selectors
from controlplane.machinery.clock import parse_rfc3339, rfc3339
from controlplane.machinery.selectors import LabelSelector

DELETION_SECONDS = 120.0  # an evicted pod that is not being deleted by then was not evicted after all: upstream's
STALE_SECONDS = 120.0  # and a pod marked as a target that long ago, but not deleted, is none any more
BY_KUBELET = "TerminationByKubelet"  # conditions of this reason are never stale: the node takes its time

Obj = dict[str, Any]


@dataclass(slots=True)
class Verdict:
    """`status` to write; `overdue` are pods whose eviction never came; `wake` is when to look again, in seconds."""

    status: Obj
    overdue: list[Obj] = field(default_factory=list)
    wake: float | None = None


def selector(budget: Obj) -> LabelSelector:
    """Whom it covers: an empty selector takes every pod of the namespace, a missing one none."""
    return selectors.from_label_selector(objects.get(budget, "spec.selector", None))


def needs_scale(budget: Obj) -> bool:
    """Whether the budget counts by what the pods' controllers want, not by the pods there are."""
    spec = budget.get("spec") or {}
    return spec.get("maxUnavailable") is not None or isinstance(spec.get("minAvailable"), str)


def expectation(budget: Obj, pods: list[Obj], scale: int) -> tuple[int, int]:
    """(pods there should be, pods that must stay healthy); `scale` is what the pods' controllers want in sum."""
    spec = budget.get("spec") or {}
    most, least = spec.get("maxUnavailable"), spec.get("minAvailable")
    if most is not None:
        return scale, max(0, scale - objects.int_or_percent(most, scale, True))
    if isinstance(least, str):
        return scale, objects.int_or_percent(least, scale, True)
    return (0, 0) if least is None else (len(pods), least)


def verdict(budget: Obj, pods: list[Obj], scale: int, now: float) -> Verdict:
    """The budget's new status, from the pods it covers."""
    expected, desired = expectation(budget, pods, scale)
    disrupted, overdue, wake = _disrupted(budget, pods, now)
    healthy = sum(not objects.deleting(pod) and objects.name(pod) not in disrupted
                  and podfacts.ready_since(pod) is not None for pod in pods)
    allowed = max(0, healthy - desired) if expected > 0 else 0
    counts = {"currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected,
              "disruptionsAllowed": allowed}
    reason = "SufficientPods" if allowed else "InsufficientPods"
    status = _status(budget, counts, budget["metadata"].get("generation", 0), reason, "", now)
    status.pop("disruptedPods", None)
    if disrupted:
        status["disruptedPods"] = disrupted
    return Verdict(status, overdue, wake)


def failed(budget: Obj, message: str, now: float) -> Obj:
    """The status while the budget cannot be counted: nothing may be disrupted, and it says why."""
    observed = objects.get(budget, "status.observedGeneration", 0)
    counts = {name: objects.get(budget, f"status.{name}", 0) for name in ("currentHealthy", "desiredHealthy",
                                                                         "expectedPods")}
    return _status(budget, {**counts, "disruptionsAllowed": 0}, observed, "SyncFailed", message, now)


def _status(budget: Obj, counts: dict[str, int], generation: int, reason: str, message: str, now: float) -> Obj:
    status = {**objects.deep_copy(budget.get("status") or {}), **counts}
    if generation:
        status["observedGeneration"] = generation
    conditions = status.setdefault("conditions", [])
    objects.set_condition(conditions, "DisruptionAllowed", "True" if counts["disruptionsAllowed"] else "False", reason,
                          message, rfc3339(now))
    mine = next(one for one in conditions if one["type"] == "DisruptionAllowed")
    mine["message"] = message  # which metav1.Condition must have, empty or not
    if generation:
        mine["observedGeneration"] = generation
    return status


def _disrupted(budget: Obj, pods: list[Obj], now: float) -> tuple[dict[str, str], list[Obj], float | None]:
    """(granted evictions still awaited, pods whose time for it is over, seconds until the next is)."""
    granted = objects.get(budget, "status.disruptedPods") or {}
    waiting: dict[str, str] = {}
    overdue: list[Obj] = []
    wake: float | None = None
    for pod in pods:
        since = granted.get(objects.name(pod))
        if since is None or objects.deleting(pod):
            continue
        left = parse_rfc3339(since) + DELETION_SECONDS - now
        if left <= 0:
            overdue.append(pod)
            continue
        waiting[objects.name(pod)] = since
        wake = left if wake is None else min(wake, left)
    return waiting, overdue, wake


def matters(old: Obj, new: Obj) -> bool:
    """Whether the change of a pod can change any budget: most status writes cannot."""
    def seen(pod: Obj) -> tuple[Any, ...]:
        return (objects.labels(pod), podfacts.ready_since(pod) is not None, objects.deleting(pod),
                (objects.controller_of(pod) or {}).get("uid"))
    return seen(old) != seen(new)


def stale_in(pod: Obj, now: float) -> float | None:
    """Seconds until the pod's `DisruptionTarget` condition is stale (0: it is), None when it has none to go stale."""
    found = objects.condition(pod, "DisruptionTarget")
    if found is None or found.get("status") != "True" or found.get("reason") == BY_KUBELET or objects.deleting(pod) \
            or podfacts.finished(pod):
        return None
    since = found.get("lastTransitionTime")
    return max(0.0, parse_rfc3339(since) + STALE_SECONDS - now) if since else 0.0
