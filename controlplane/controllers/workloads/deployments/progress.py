"""What a Deployment says of itself: counts, and the conditions Available, Progressing and ReplicaFailure.

Pure. Owns upstream's reasons and messages, which `kubectl rollout status` and people read. Called by `controller`.

Upstream: pkg/controller/deployment/progress.go and sync.go (calculateStatus).
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.workloads.deployments import rollout
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339

NO_DEADLINE = 2**31 - 1  # progressDeadlineSeconds that means: never
Obj = dict[str, Any]


def set_condition(conditions: list[Obj], kind: str, status: str, reason: str, message: str, stamp: str,
                  refresh: bool = False) -> None:
    """In place; a condition of the same status and reason stays as it is unless `refresh` moves its update time."""
    before = next((c for c in conditions if c["type"] == kind), None)
    if before and (before["status"], before.get("reason")) == (status, reason) and not refresh:
        return
    since = before["lastTransitionTime"] if before and before["status"] == status else stamp
    conditions[:] = [c for c in conditions if c["type"] != kind]
    conditions.append({"type": kind, "status": status, "lastUpdateTime": stamp, "lastTransitionTime": since,
                       "reason": reason, "message": message})


def has_deadline(deployment: Obj) -> bool:
    return objects.get(deployment, "spec.progressDeadlineSeconds", NO_DEADLINE) != NO_DEADLINE


def base(deployment: Obj, new: Obj | None, old: list[Obj], stamp: str) -> Obj:
    """The counts and the Available condition; other conditions as they were."""
    sets = [*old, new] if new is not None else old
    total, available = rollout.status_of(sets, "replicas"), rollout.status_of(sets, "availableReplicas")
    conditions = objects.deep_copy(objects.get(deployment, "status.conditions", []))
    if available >= rollout.replicas(deployment) - rollout.max_unavailable(deployment):
        set_condition(conditions, "Available", "True", "MinimumReplicasAvailable",
                      "Deployment has minimum availability.", stamp)
    else:
        set_condition(conditions, "Available", "False", "MinimumReplicasUnavailable",
                      "Deployment does not have minimum availability.", stamp)
    counts = {"replicas": total, "updatedReplicas": rollout.status_of([new], "replicas") if new is not None else 0,
              "readyReplicas": rollout.status_of(sets, "readyReplicas"), "availableReplicas": available,
              "unavailableReplicas": max(0, sum(map(rollout.replicas, sets)) - available)}
    result = {key: value for key, value in counts.items() if value}
    leaving = [objects.get(one, "status.terminatingReplicas", None) for one in sets]
    if None not in leaving:  # a set that has not told yet leaves it unknown
        result["terminatingReplicas"] = sum(leaving)
    if collisions := objects.get(deployment, "status.collisionCount"):
        result["collisionCount"] = collisions
    return {"observedGeneration": deployment["metadata"].get("generation", 0), **result, "conditions": conditions}


def complete(deployment: Obj, status: Obj) -> bool:
    """Whether every replica is new and available, and no old one is left."""
    wanted = rollout.replicas(deployment)
    return (all(status.get(field, 0) == wanted for field in ("updatedReplicas", "replicas", "availableReplicas"))
            and status["observedGeneration"] >= deployment["metadata"].get("generation", 0))


def _progressing(deployment: Obj, status: Obj) -> bool:
    before = deployment.get("status") or {}

    def old_replicas(one: Obj) -> int:
        return one.get("replicas", 0) - one.get("updatedReplicas", 0)
    return (any(status.get(field, 0) > before.get(field, 0)
                for field in ("updatedReplicas", "readyReplicas", "availableReplicas"))
            or old_replicas(status) < old_replicas(before))


def deadline(deployment: Obj, status: Obj) -> float | None:
    """When (wall seconds) the rollout counts as stuck; None when it is complete, stuck already or has no deadline."""
    current = next((c for c in status["conditions"] if c["type"] == "Progressing"), None)
    if not has_deadline(deployment) or current is None or complete(deployment, status):
        return None
    if current.get("reason") in ("NewReplicaSetAvailable", "ProgressDeadlineExceeded", "DeploymentPaused"):
        return None
    return parse_rfc3339(current["lastUpdateTime"]) + deployment["spec"]["progressDeadlineSeconds"]


def rolling_out(deployment: Obj, new: Obj | None, old: list[Obj], now: float, stamp: str,
                made: bool = False) -> Obj:
    """The status in a rollout that is not paused; `made` when the newest set was created just now."""
    status = base(deployment, new, old, stamp)
    conditions = status["conditions"]
    what = f'ReplicaSet "{objects.name(new)}"' if new is not None else f'Deployment "{objects.name(deployment)}"'
    current = next((c for c in conditions if c["type"] == "Progressing"), None)
    if current is not None and current.get("reason") == "DeploymentPaused":  # the deadline runs anew from here
        set_condition(conditions, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", stamp)
    if not has_deadline(deployment):
        conditions[:] = [c for c in conditions if c["type"] != "Progressing"]
    else:
        if new is not None and made:
            set_condition(conditions, "Progressing", "True", "NewReplicaSetCreated",
                          f'Created new replica set "{objects.name(new)}"', stamp)
        elif new is not None and current is None:
            set_condition(conditions, "Progressing", "True", "FoundNewReplicaSet",
                          f'Found new replica set "{objects.name(new)}"', stamp)
        done = current is not None and current.get("reason") == "NewReplicaSetAvailable" \
            and status.get("replicas", 0) == status.get("updatedReplicas", 0) and not made
        if not done:
            _advance(deployment, status, what, now, stamp)
    failure = next((f for one in [new, *old] if one is not None
                    and (f := objects.condition(one, "ReplicaFailure"))), None)
    conditions[:] = [c for c in conditions if c["type"] != "ReplicaFailure"] if failure is None else conditions
    if failure is not None:
        set_condition(conditions, "ReplicaFailure", failure["status"], failure.get("reason", ""),
                      failure.get("message", ""), stamp)
    return status


def _advance(deployment: Obj, status: Obj, what: str, now: float, stamp: str) -> None:
    conditions = status["conditions"]
    if complete(deployment, status):
        set_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable",
                      f"{what} has successfully progressed.", stamp)
    elif _progressing(deployment, status):
        set_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", f"{what} is progressing.", stamp,
                      refresh=True)
    elif (limit := deadline(deployment, status)) is not None and limit <= now:
        set_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded",
                      f"{what} has timed out progressing.", stamp)


def paused(deployment: Obj, new: Obj | None, old: list[Obj], stamp: str) -> Obj:
    """The status while paused or right after: Progressing is neither true nor false."""
    status = base(deployment, new, old, stamp)
    current = next((c for c in status["conditions"] if c["type"] == "Progressing"), None)
    if not has_deadline(deployment) or (current and current.get("reason") == "ProgressDeadlineExceeded"):
        return status
    was_paused = current is not None and current.get("reason") == "DeploymentPaused"
    if objects.get(deployment, "spec.paused") and not was_paused:
        set_condition(status["conditions"], "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", stamp)
    elif not objects.get(deployment, "spec.paused") and was_paused:
        set_condition(status["conditions"], "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed",
                      stamp)
    return status
