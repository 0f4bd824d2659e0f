"""The arithmetic of a rollout: which ReplicaSet of a Deployment gets how many replicas next.

Pure. Owns revisions, surge and unavailability, proportional scaling and the clean-up of old sets. Each function
proposes one step from the ReplicaSets' spec and status; the next step follows from the next state, so that a rollout
may stop and start anywhere. Called by `controller`.

Upstream: pkg/controller/deployment (rolling.go, recreate.go, sync.go, util).
"""

from __future__ import annotations

import math
from typing import Any

from controlplane.controllers.workloads import templates
from controlplane.machinery import objects

REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_OWN = {REVISION, HISTORY, DESIRED, MAXIMUM, "kubectl.kubernetes.io/last-applied-configuration",
        "deprecated.deployment.rollback.to"}

Obj = dict[str, Any]
Scale = tuple[Obj, int]  # a ReplicaSet and the replicas it shall have


# --- revisions ---------------------------------------------------------------------------------------------------

def newest(deployment: Obj, sets: list[Obj]) -> Obj | None:
    """The ReplicaSet with the Deployment's template; the oldest if there are several, so that all agree on it."""
    wanted = templates.plain(deployment["spec"]["template"])
    same = [one for one in sets if templates.plain(one["spec"]["template"]) == wanted]
    return min(same, key=_by_age, default=None)


def _by_age(one: Obj) -> tuple[str, str]:
    return one["metadata"].get("creationTimestamp") or "", objects.name(one)


def revision_of(one: Obj) -> int:
    text = objects.annotations(one).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def next_revision(old: list[Obj]) -> int:
    return max(map(revision_of, old), default=0) + 1


def set_annotations(deployment: Obj, one: Obj, revision: int) -> dict[str, str]:
    """The annotations the newest ReplicaSet shall have: the Deployment's, its revision, and the history of revisions
    it has had when a rollback made an old set the newest again."""
    result = dict(objects.annotations(one))
    result |= {k: v for k, v in objects.annotations(deployment).items() if k not in _OWN}
    before = revision_of(one)
    if before < revision:
        if before:
            history = result.get(HISTORY)
            result[HISTORY] = f"{history},{before}" if history else str(before)
        result[REVISION] = str(revision)
    return result


def sized(deployment: Obj) -> dict[str, str]:
    """The annotations by which a ReplicaSet remembers for which size of the Deployment it was scaled."""
    wanted = replicas(deployment)
    return {DESIRED: str(wanted), MAXIMUM: str(wanted + max_surge(deployment))}


def new_set(deployment: Obj, old: list[Obj]) -> Obj:
    """The ReplicaSet for the Deployment's template, with as many replicas as may start now."""
    collisions = objects.get(deployment, "status.collisionCount", 0)
    tail = templates.hash_of(deployment["spec"]["template"], collisions)
    template = objects.deep_copy(deployment["spec"]["template"])
    template.setdefault("metadata", {}).setdefault("labels", {})[templates.HASH_LABEL] = tail
    selector = objects.deep_copy(deployment["spec"]["selector"])
    selector.setdefault("matchLabels", {})[templates.HASH_LABEL] = tail
    made: Obj = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {
        "name": f"{objects.name(deployment)}-{tail}", "namespace": objects.namespace(deployment),
        "labels": dict(template["metadata"]["labels"]), "ownerReferences": [objects.owner_reference(deployment)]},
        "spec": {"replicas": 0, "selector": selector, "template": template}}
    if min_ready := objects.get(deployment, "spec.minReadySeconds", 0):
        made["spec"]["minReadySeconds"] = min_ready
    made["metadata"]["annotations"] = set_annotations(deployment, made, next_revision(old)) | sized(deployment)
    made["spec"]["replicas"] = new_replicas(deployment, [*old, made], made)
    return made


# --- bounds ------------------------------------------------------------------------------------------------------

def replicas(one: Obj) -> int:
    return objects.get(one, "spec.replicas", 1)


def rolling(deployment: Obj) -> bool:
    return objects.get(deployment, "spec.strategy.type", "RollingUpdate") == "RollingUpdate"


def _fence(deployment: Obj) -> tuple[int, int]:
    """(surge, unavailable), never both 0: nothing could move."""
    options = objects.get(deployment, "spec.strategy.rollingUpdate") or {}
    total = replicas(deployment)
    surge = objects.int_or_percent(options.get("maxSurge", "25%"), total, True)
    unavailable = objects.int_or_percent(options.get("maxUnavailable", "25%"), total, False)
    return surge, unavailable if surge or unavailable else 1


def max_surge(deployment: Obj) -> int:
    return _fence(deployment)[0] if rolling(deployment) else 0


def max_unavailable(deployment: Obj) -> int:
    if not rolling(deployment) or replicas(deployment) == 0:
        return 0
    return min(_fence(deployment)[1], replicas(deployment))


def status_of(sets: list[Obj], field: str) -> int:
    return sum(objects.get(one, f"status.{field}", 0) for one in sets)


# --- steps -------------------------------------------------------------------------------------------------------

def new_replicas(deployment: Obj, sets: list[Obj], new: Obj) -> int:
    """How many replicas the newest set may have now."""
    if not rolling(deployment):
        return replicas(deployment)
    # A set that was told to shrink counts in full until it has: upstream goes by the wish alone and may overshoot.
    running = sum(max(replicas(one), objects.get(one, "status.replicas", 0)) for one in sets)
    room = replicas(deployment) + max_surge(deployment) - running
    if room <= 0:
        return replicas(new)
    return replicas(new) + min(room, replicas(deployment) - replicas(new))


def roll(deployment: Obj, new: Obj, old: list[Obj]) -> list[Scale]:
    """The next step of a rolling update; empty when nothing may move now."""
    wanted = replicas(deployment)
    if replicas(new) > wanted:
        return [(new, wanted)]
    if replicas(new) < wanted:
        count = new_replicas(deployment, [*old, new], new)
        if count != replicas(new):
            return [(new, count)]
    return _shrink(deployment, new, old)


def _shrink(deployment: Obj, new: Obj, old: list[Obj]) -> list[Scale]:
    """Take replicas from old sets: the broken ones first, then as many as stay beyond the minimum available."""
    if not any(map(replicas, old)):
        return []
    minimum = replicas(deployment) - max_unavailable(deployment)
    everything = sum(map(replicas, [*old, new]))
    spare = everything - minimum - (replicas(new) - objects.get(new, "status.availableReplicas", 0))
    if spare <= 0:
        return []
    sizes = {objects.name(one): replicas(one) for one in old}
    taken = 0
    for one in sorted(old, key=_by_age):
        broken = sizes[objects.name(one)] - objects.get(one, "status.availableReplicas", 0)
        take = min(spare - taken, max(0, broken))
        sizes[objects.name(one)] -= take
        taken += take
    # Of a set that was told to shrink only what it may keep counts; its last report may show more.
    extra = sum(min(replicas(one), objects.get(one, "status.availableReplicas", 0)) for one in [*old, new]) - minimum
    for one in sorted(old, key=_by_age):
        take = min(max(0, extra), sizes[objects.name(one)])
        sizes[objects.name(one)] -= take
        extra -= take
    return [(one, sizes[objects.name(one)]) for one in old if sizes[objects.name(one)] != replicas(one)]


def resized(deployment: Obj, sets: list[Obj]) -> bool:
    """Whether the Deployment's size changed since its ReplicaSets were scaled."""
    wanted = str(replicas(deployment))
    return any(objects.annotations(one).get(DESIRED, wanted) != wanted for one in sets if replicas(one) > 0)


def rescale(deployment: Obj, new: Obj | None, old: list[Obj]) -> list[Scale]:
    """The sizes after a change of the Deployment's size, or while it is paused: in proportion, in mid-rollout."""
    sets = [*old, new] if new is not None else old
    wanted = replicas(deployment)
    running = [one for one in sets if replicas(one) > 0]
    if len(running) <= 1:
        only = running[0] if running else new or max(sets, key=revision_of, default=None)
        return [] if only is None or replicas(only) == wanted else [(only, wanted)]
    if new is not None and _saturated(deployment, new):
        return [(one, 0) for one in old if replicas(one)]
    return _proportional(deployment, running) if rolling(deployment) else []


def _saturated(deployment: Obj, new: Obj) -> bool:
    wanted = replicas(deployment)
    return (objects.annotations(new).get(DESIRED) == str(wanted) and replicas(new) == wanted
            and objects.get(new, "status.availableReplicas", 0) == wanted)


def _proportional(deployment: Obj, sets: list[Obj]) -> list[Scale]:
    allowed = replicas(deployment) + max_surge(deployment) if replicas(deployment) else 0
    change = allowed - sum(map(replicas, sets))
    # Grow the largest first and of equals the newest; shrink the largest first and of equals the oldest.
    ordered = sorted(sorted(sets, key=_by_age, reverse=change > 0), key=replicas, reverse=True)
    sizes, added = {}, 0
    for one in ordered:
        share = _share(deployment, one, change, added) if change else 0
        sizes[objects.name(one)] = replicas(one) + share
        added += share
    first = objects.name(ordered[0])
    sizes[first] = max(0, sizes[first] + change - added)  # what rounding left over
    return [(one, sizes[objects.name(one)]) for one in ordered]


def _share(deployment: Obj, one: Obj, change: int, added: int) -> int:
    if replicas(one) == 0 or change == added:
        return 0
    if replicas(deployment) == 0:
        fraction = -replicas(one)
    else:
        before = objects.annotations(one).get(MAXIMUM, "")
        total = int(before) if before.isdigit() and int(before) else objects.get(deployment, "status.replicas", 0)
        size = replicas(one) * (replicas(deployment) + max_surge(deployment)) / (total or 1)
        fraction = math.floor(size + 0.5) - replicas(one)
    left = change - added
    return min(fraction, left) if change > 0 else max(fraction, left)


def expired_sets(deployment: Obj, old: list[Obj]) -> list[Obj]:
    """Old sets beyond the history limit that run nothing any more."""
    limit = objects.get(deployment, "spec.revisionHistoryLimit", 10)
    alive = [one for one in old if not objects.deleting(one)]
    surplus = len(alive) - limit
    if surplus <= 0:
        return []
    return [one for one in sorted(alive, key=lambda one: (revision_of(one), _by_age(one)))[:surplus]
            if replicas(one) == 0 and not objects.get(one, "status.replicas", 0)
            and one["metadata"].get("generation", 0) <= objects.get(one, "status.observedGeneration", 0)]
