"""One pod on each eligible node: which to make, which to end, and how to get to a new template.

Pure. Owns the bounds of a DaemonSet's update: never more than `maxUnavailable` nodes without an available pod by our
own doing, or never more than `maxSurge` nodes with two. Called by `controller`.

Upstream: pkg/controller/daemon (daemon_controller.go, update.go).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.workloads.daemonsets import eligibility
from controlplane.controllers.workloads.daemonsets.eligibility import GENERATION, GENERATION_LABEL
from controlplane.controllers.workloads.history import HASH_LABEL
from controlplane.machinery import objects, podfacts

BURST = 250  # pods made or ended in one go: upstream's limit

Obj = dict[str, Any]
ByNode = dict[str, list[Obj]]


@dataclass(slots=True)
class Plan:
    """Make a pod for each node of `create`; end `delete`; `finished` are those of them that ended by themselves."""

    create: list[str] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)
    finished: list[Obj] = field(default_factory=list)


def by_node(pods: list[Obj]) -> ByNode:
    """The pods of each node, the oldest first."""
    result: ByNode = {}
    for pod in pods:
        if name := eligibility.node_of(pod):
            result.setdefault(name, []).append(pod)
    for group in result.values():
        group.sort(key=_by_age)
    return result


def _by_age(pod: Obj) -> tuple[bool, str, str]:
    return not objects.get(pod, "spec.nodeName"), pod["metadata"].get("creationTimestamp") or "", objects.name(pod)


def updated(owner: Obj, pod: Obj, revision: str) -> bool:
    """Whether the pod is of the owner's present template."""
    labels = objects.labels(pod)
    generation = objects.annotations(owner).get(GENERATION)
    return labels.get(HASH_LABEL) == revision or (bool(generation) and labels.get(GENERATION_LABEL) == generation)


def fence(owner: Obj, desired: int) -> tuple[int, int]:
    """(surge, unavailable) of `desired` nodes, never both 0: nothing could move."""
    options = objects.get(owner, "spec.updateStrategy.rollingUpdate") or {}
    surge = objects.int_or_percent(options.get("maxSurge", 0), desired, True)
    unavailable = objects.int_or_percent(options.get("maxUnavailable", 1), desired, True)
    return surge, unavailable if surge or unavailable else 1


def rolling(owner: Obj) -> bool:
    return objects.get(owner, "spec.updateStrategy.type", "RollingUpdate") == "RollingUpdate"


def _surging(owner: Obj) -> bool:
    return rolling(owner) and fence(owner, 100)[0] > 0


def plan(owner: Obj, nodes: list[Obj], pods: list[Obj], revision: str, now: float) -> Plan:
    """The next step: first one pod per eligible node, then the update, on a memory that shows all earlier steps."""
    groups = by_node(pods)
    result = Plan()
    desired = []
    for node in nodes:
        wanted, stays = eligibility.judge(owner, node)
        group = groups.get(objects.name(node), [])
        if wanted:
            desired.append(objects.name(node))
        if wanted and not group:
            result.create.append(objects.name(node))
        elif stays:
            _tidy(owner, group, revision, now, result)
        else:
            result.delete += [pod for pod in group if not objects.deleting(pod)]
    if not result.create and not result.delete and rolling(owner):
        candidates = {name: groups.get(name, []) for name in desired}
        surge, unavailable = fence(owner, len(desired))
        if surge:
            _surge(owner, candidates, revision, now, surge, result)
        else:
            _replace(owner, candidates, revision, now, unavailable, result)
    result.create, result.delete = result.create[:BURST], result.delete[:BURST]
    return result


def _tidy(owner: Obj, group: list[Obj], revision: str, now: float, result: Plan) -> None:
    """Of one node's pods: finished ones go, and all but the oldest; but a surging update may have an old and a new."""
    alive = [pod for pod in group if not objects.deleting(pod)]
    running: list[Obj] = []
    for pod in alive:
        (result.finished if podfacts.finished(pod) else running).append(pod)
    if len(running) <= 1:
        return
    if not _surging(owner):
        result.delete += running[1:]
        return
    new = [pod for pod in running if updated(owner, pod, revision)]
    old = [pod for pod in running if pod not in new]
    result.delete += [*new[1:], *old[1:]]
    if new and old and (podfacts.ready_since(old[0]) is None or _available(owner, new[0], now)):
        result.delete.append(old[0])


def _available(owner: Obj, pod: Obj, now: float) -> bool:
    return podfacts.available(pod, objects.get(owner, "spec.minReadySeconds", 0), now)


def _pair(owner: Obj, group: list[Obj], revision: str) -> tuple[Obj | None, Obj | None]:
    """(the node's new pod, its old one) of those not going."""
    alive = [pod for pod in group if not objects.deleting(pod)]
    new = next((pod for pod in alive if updated(owner, pod, revision)), None)
    return new, next((pod for pod in alive if pod is not new and not updated(owner, pod, revision)), None)


def _replace(owner: Obj, groups: ByNode, revision: str, now: float, limit: int, result: Plan) -> None:
    """End old pods: those nobody can use at once, the others while fewer than `limit` nodes are without."""
    useless: list[Obj] = []
    candidates: list[Obj] = []
    unavailable = 0
    for _, group in sorted(groups.items()):
        new, old = _pair(owner, group, revision)
        if old is not None and new is None:
            if _available(owner, old, now):
                candidates.append(old)
            else:
                useless.append(old)
                unavailable += 1
        elif new is None or old is not None or not _available(owner, new, now):
            unavailable += 1
    result.delete += [*useless, *candidates[:max(0, limit - unavailable)]]


def _surge(owner: Obj, groups: ByNode, revision: str, now: float, limit: int, result: Plan) -> None:
    """Put a new pod beside the old one on up to `limit` nodes; the old one goes when the new one is available."""
    useless: list[str] = []
    candidates: list[str] = []
    surging = 0
    for name, group in sorted(groups.items()):
        new, old = _pair(owner, group, revision)
        if old is None:
            surging += len(group) > 1 and new is not None  # its predecessor is still on its way out
        elif new is None:
            (candidates if _available(owner, old, now) else useless).append(name)
        elif _available(owner, new, now):
            result.delete.append(old)
        else:
            surging += 1
    result.create += [*useless, *candidates[:max(0, limit - surging)]]


def status(owner: Obj, nodes: list[Obj], pods: list[Obj], revision: str, now: float) -> Obj:
    """The owner's new status."""
    groups = by_node(pods)
    names = ("desiredNumberScheduled", "currentNumberScheduled", "numberMisscheduled", "numberReady",
             "updatedNumberScheduled", "numberAvailable")
    counts = dict.fromkeys(names, 0)
    for node in nodes:
        wanted, _ = eligibility.judge(owner, node)
        group = groups.get(objects.name(node), [])
        if not wanted:
            counts["numberMisscheduled"] += bool(group)
            continue
        counts["desiredNumberScheduled"] += 1
        if group:
            counts["currentNumberScheduled"] += 1
            counts["numberReady"] += podfacts.ready_since(group[0]) is not None
            counts["numberAvailable"] += _available(owner, group[0], now)
            counts["updatedNumberScheduled"] += updated(owner, group[0], revision)
    counts["numberUnavailable"] = counts["desiredNumberScheduled"] - counts["numberAvailable"]
    always = names[:4]  # the others are left out while 0, as upstream's encoding does
    result = {key: value for key, value in (owner.get("status") or {}).items()
              if key in ("collisionCount", "conditions")}
    result |= {key: value for key, value in counts.items() if value or key in always}
    if generation := owner["metadata"].get("generation"):
        result["observedGeneration"] = generation
    return result
