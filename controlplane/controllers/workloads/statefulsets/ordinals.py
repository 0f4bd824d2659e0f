"""A StatefulSet's pods one by one: which is missing, broken, surplus or old, and which step comes next.

Pure. Owns the order: with OrderedReady one step at a time, lowest ordinal first when growing, highest first when
shrinking or updating, never past a pod that is not available; with Parallel all at once. As upstream, a broken pod
holds up also the rollback that would mend it until it is deleted by hand. Called by `controller`.

Upstream: pkg/controller/statefulset/stateful_set_control.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.workloads.history import HASH_LABEL
from controlplane.machinery import objects, podfacts

Obj = dict[str, Any]


@dataclass(slots=True)
class Plan:
    """Make the pods of `create`, (ordinal, whether of the update revision); end `delete`; mend identity and storage of
    `repair`, which may name pods that need nothing."""

    create: list[tuple[int, bool]] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)
    repair: list[Obj] = field(default_factory=list)


# --- facts -------------------------------------------------------------------------------------------------------

def start(owner: Obj) -> int:
    return objects.get(owner, "spec.ordinals.start", 0)


def size(owner: Obj) -> int:
    return objects.get(owner, "spec.replicas", 1)


def ordinal(owner: Obj, pod: Obj) -> int:
    """The pod's number, -1 when its name is none of the owner's."""
    parent, _, tail = objects.name(pod).rpartition("-")
    canonical = tail.isascii() and tail.isdigit() and str(int(tail)) == tail
    return int(tail) if parent == objects.name(owner) and canonical else -1


def wanted(owner: Obj, number: int) -> bool:
    return start(owner) <= number < start(owner) + size(owner)


def ordered(owner: Obj) -> bool:
    return objects.get(owner, "spec.podManagementPolicy", "OrderedReady") == "OrderedReady"


def rolling(owner: Obj) -> bool:
    return objects.get(owner, "spec.updateStrategy.type", "RollingUpdate") == "RollingUpdate"


def partition(owner: Obj) -> int:
    return objects.get(owner, "spec.updateStrategy.rollingUpdate.partition", 0)


def max_unavailable(owner: Obj) -> int:
    value = objects.get(owner, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1)
    return max(1, objects.int_or_percent(value, size(owner), True))


def ready(pod: Obj) -> bool:
    """Running and ready."""
    return objects.get(pod, "status.phase") == "Running" and podfacts.ready_since(pod) is not None


def available(owner: Obj, pod: Obj, now: float) -> bool:
    return ready(pod) and podfacts.available(pod, objects.get(owner, "spec.minReadySeconds", 0), now)


def revision(pod: Obj) -> str:
    return objects.labels(pod).get(HASH_LABEL, "")


# --- the plan ----------------------------------------------------------------------------------------------------

def plan(owner: Obj, pods: list[Obj], update: str, now: float) -> Plan:
    """The next step; `update` is the name of the template's revision."""
    result = Plan()
    by_number = {ordinal(owner, pod): pod for pod in pods}
    condemned = [pod for number, pod in sorted(by_number.items(), reverse=True)
                 if number >= 0 and not wanted(owner, number)]
    numbers = range(start(owner), start(owner) + size(owner))
    for number in numbers:
        if not _living(owner, number, by_number.get(number), now, result) and ordered(owner):
            return result
    sick = min((number for number, pod in by_number.items() if number >= 0 and not _healthy(pod)), default=-1)
    for pod in condemned:
        if ordered(owner) and not available(owner, pod, now) and ordinal(owner, pod) != sick:
            return result  # only the first sick pod may go before it is well again: users see scaling halt
        if not objects.deleting(pod):
            result.delete.append(pod)
        if ordered(owner):
            return result
    if rolling(owner) and not result.delete and not result.create:
        living = [by_number[number] for number in numbers if number - start(owner) >= partition(owner)]
        if max_unavailable(owner) == 1:
            _update_one(owner, living, update, now, result)
        else:
            room = max_unavailable(owner) - sum(_down(owner, by_number[number], now) for number in numbers)
            _update_some(owner, living, update, now, room, result)
    return result


def _living(owner: Obj, number: int, pod: Obj | None, now: float, result: Plan) -> bool:
    """What one ordinal needs; False when the next ones must wait for it."""
    if pod is None:
        result.create.append((number, not rolling(owner) or number >= start(owner) + partition(owner)))
        return False
    if podfacts.finished(pod):
        if not objects.deleting(pod):
            result.delete.append(pod)
        return False
    if objects.deleting(pod):
        return False
    result.repair.append(pod)
    return available(owner, pod, now)


def _healthy(pod: Obj) -> bool:
    return ready(pod) and not objects.deleting(pod)


def _down(owner: Obj, pod: Obj, now: float) -> bool:
    return objects.deleting(pod) or not available(owner, pod, now)


def _update_one(owner: Obj, living: list[Obj], update: str, now: float, result: Plan) -> None:
    """End the highest old pod unless one above it is down."""
    for pod in reversed(living):
        if revision(pod) != update and not objects.deleting(pod):
            result.delete.append(pod)
            return
        if _down(owner, pod, now):
            return


def _update_some(owner: Obj, living: list[Obj], update: str, now: float, room: int, result: Plan) -> None:
    """End old pods, the highest first: those that are down anyway, and as many others as there is room."""
    for pod in reversed(living):
        if revision(pod) == update or objects.deleting(pod):
            continue
        if not available(owner, pod, now):
            result.delete.append(pod)
        elif room > 0:
            result.delete.append(pod)
            room -= 1


# --- status ------------------------------------------------------------------------------------------------------

def status(owner: Obj, pods: list[Obj], current: str, update: str, now: float) -> Obj:
    """The owner's new status; when the update is complete the current revision follows it."""
    mine = [pod for pod in pods if ordinal(owner, pod) >= 0]
    staying = [pod for pod in mine if not objects.deleting(pod)]
    counts = {"replicas": len(mine), "readyReplicas": sum(map(ready, mine)),
              "availableReplicas": sum(available(owner, pod, now) for pod in mine),
              "currentReplicas": sum(revision(pod) == current for pod in staying),
              "updatedReplicas": sum(revision(pod) == update for pod in staying)}
    if rolling(owner) and counts["updatedReplicas"] == counts["replicas"] == counts["readyReplicas"]:
        counts["currentReplicas"], current = counts["updatedReplicas"], update
    old = owner.get("status") or {}
    result: Obj = {"observedGeneration": owner["metadata"].get("generation", 0), "replicas": counts.pop("replicas"),
                   "availableReplicas": counts.pop("availableReplicas"),
                   **{key: value for key, value in counts.items() if value},
                   "currentRevision": current, "updateRevision": update,
                   "collisionCount": old.get("collisionCount", 0)}
    if old.get("conditions"):
        result["conditions"] = old["conditions"]
    return result
