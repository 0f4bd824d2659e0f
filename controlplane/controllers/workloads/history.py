"""The revisions of a template: what a ControllerRevision holds, which is the current one, which may be forgotten.

Pure. Owns the data `kubectl rollout history` and `undo` read: a strategic patch that replaces the template. Promises
that equal templates share one revision, and that a revision in use is never proposed for deletion.
Called by `revisions`.

Upstream: pkg/controller/history, daemon/update.go and statefulset/stateful_set_utils.go.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from controlplane.controllers.workloads import templates
from controlplane.machinery import objects

HASH_LABEL = "controller-revision-hash"  # of pods; of a DaemonSet's revisions too
REVISION_HASH_LABEL = "controller.kubernetes.io/hash"  # of a StatefulSet's revisions
LIMIT = 10  # revisions kept where the object does not say: upstream's default

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """`current` stands for today's template; `create` it first if true, or else move it to `renumber` (0: leave it)."""

    current: Obj
    create: bool
    renumber: int


def data(owner: Obj) -> Obj:
    return {"spec": {"template": {**objects.deep_copy(owner["spec"]["template"]), "$patch": "replace"}}}


def template(revision: Obj) -> Obj:
    """The pod template the revision holds."""
    held = objects.get(revision, "data.spec.template") or {}
    return {field: value for field, value in held.items() if field != "$patch"}


def number(revision: Obj) -> int:
    return int(revision.get("revision") or 0)


def plan(owner: Obj, revisions: list[Obj]) -> Plan:
    """What `revisions`, those of the owner, lack."""
    wanted = data(owner)
    top = max(map(number, revisions), default=0)
    same = [one for one in revisions if one.get("data") == wanted]
    if not same:
        return Plan(made(owner, top + 1), True, 0)
    current = max(same, key=number)
    older = max((number(one) for one in revisions if one is not current), default=0)
    return Plan(current, False, older + 1 if number(current) <= older else 0)


def made(owner: Obj, revision: int) -> Obj:
    """The ControllerRevision of the owner's template; `status.collisionCount` makes another name of the same."""
    collisions = objects.get(owner, "status.collisionCount", 0)
    tail = templates.hash_of(owner["spec"]["template"], collisions)
    label = HASH_LABEL if owner["kind"] == "DaemonSet" else REVISION_HASH_LABEL
    labels = {**(objects.get(owner, "spec.template.metadata.labels") or {}), label: tail}
    meta: Obj = {"name": f"{objects.name(owner)}-{tail}", "namespace": objects.namespace(owner), "labels": labels,
                 "ownerReferences": [objects.owner_reference(owner)]}
    if notes := objects.annotations(owner):
        meta["annotations"] = dict(notes)
    return {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": meta, "data": data(owner),
            "revision": revision}


def surplus(owner: Obj, revisions: list[Obj], live: Set[str]) -> list[Obj]:
    """The oldest revisions beyond the owner's limit; `live` are names that are in use and do not count."""
    limit = objects.get(owner, "spec.revisionHistoryLimit", LIMIT)
    idle = sorted((one for one in revisions if objects.name(one) not in live), key=number)
    return idle[:max(0, len(idle) - limit)]
