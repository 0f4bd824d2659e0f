"""How many pods a ReplicaSet or ReplicationController needs, which ones must go, and what its status says.

Pure. Owns the arithmetic and the deletion order of both kinds. Promises to delete the pods whose loss costs least:
unscheduled, pending, unready, crowded, young. Called by `controller`.

Upstream: pkg/controller/replicaset and controller_utils.ActivePodsWithRanks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects, podfacts
from controlplane.machinery.clock import parse_rfc3339

BURST = 500  # pods created or deleted for one key in one go: upstream's limit
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Create `create` pods or delete these; never both."""

    create: int
    delete: list[Obj]


def plan(wanted: int, pods: list[Obj], related: Iterable[Obj], now: float) -> Plan:
    """What brings `pods` (active ones of this set) to `wanted`; `related` are the active pods of sibling sets."""
    surplus = len(pods) - wanted
    if surplus < 0:
        return Plan(min(-surplus, BURST), [])
    if surplus == 0:
        return Plan(0, [])
    crowd = Counter(objects.get(pod, "spec.nodeName", "") for pod in related)
    return Plan(0, sorted(pods, key=lambda pod: deletion_rank(pod, crowd, now))[:min(surplus, BURST)])


def deletion_rank(pod: Obj, crowd: Counter[str], now: float) -> tuple[Any, ...]:
    """Sort key: the smallest is deleted first."""
    node = objects.get(pod, "spec.nodeName", "")
    since = podfacts.ready_since(pod)
    restarts = max((s.get("restartCount", 0) for s in objects.get(pod, "status.containerStatuses", [])), default=0)
    return (bool(node), _PHASES.get(objects.get(pod, "status.phase", ""), 0), since is not None, deletion_cost(pod),
            -crowd[node], _age(since, now), -restarts, _age(_created(pod), now), objects.uid(pod))


def deletion_cost(pod: Obj) -> int:
    text = objects.annotations(pod).get(DELETION_COST, "0")
    try:
        return int(text)
    except ValueError:
        return 0


def _created(pod: Obj) -> float | None:
    stamp = pod["metadata"].get("creationTimestamp")
    return parse_rfc3339(stamp) if stamp else None


def _age(since: float | None, now: float) -> int:
    """Age in doublings of a second: pods of about one age are equals, so that chance spreads the deletions."""
    return int(math.log2(now - since)) if since is not None and now - since >= 1 else 0


def status(owner: Obj, pods: list[Obj], failure: tuple[str, str] | None, now: float, stamp: str,
           leaving: int | None = None) -> Obj:
    """The owner's new status: `pods` are its active ones, `failure` is (reason, message) of this round's error,
    `leaving` how many are terminating, None for kinds that do not tell."""
    old = owner.get("status") or {}
    min_ready = objects.get(owner, "spec.minReadySeconds", 0)
    wanted_labels = (objects.get(owner, "spec.template.metadata.labels") or {}).items()
    counts = {"replicas": len(pods),
              "fullyLabeledReplicas": sum(wanted_labels <= objects.labels(pod).items() for pod in pods),
              "readyReplicas": sum(podfacts.ready_since(pod) is not None for pod in pods),
              "availableReplicas": sum(podfacts.available(pod, min_ready, now) for pod in pods)}
    conditions = [c for c in objects.deep_copy(old.get("conditions") or []) if c.get("type") != "ReplicaFailure"]
    if failure:
        before = objects.condition(owner, "ReplicaFailure")
        if before is not None and before.get("reason") == failure[0]:
            conditions.append(before)
        else:
            objects.set_condition(conditions, "ReplicaFailure", "True", failure[0], failure[1], stamp)
    result = {key: value for key, value in old.items() if key not in (*counts, "conditions", "observedGeneration")}
    result["replicas"] = counts.pop("replicas")
    result |= {key: value for key, value in counts.items() if value}
    if leaving is not None:
        result["terminatingReplicas"] = leaving
    if generation := owner["metadata"].get("generation"):
        result["observedGeneration"] = generation
    if conditions:
        result["conditions"] = conditions
    return result
