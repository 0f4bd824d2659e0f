"""What becomes of an object whose owners are gone or going.

Pure. Owns the verdict of garbage collection on one object, given what is known of each owner. Called by `garbage`.

Upstream: pkg/controller/garbagecollector (attemptToDeleteItem).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from controlplane.machinery import objects

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
Obj = dict[str, Any]


class Owner(Enum):
    SOLID = "exists, or cannot be told"
    WAITING = "deletes its dependents before itself"
    ABSENT = "does not exist"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`delete` with this propagation policy, or `drop` these owner uids; neither means: leave it."""

    delete: str = ""
    drop: tuple[str, ...] = ()


def owners(obj: Obj) -> list[Obj]:
    return obj["metadata"].get("ownerReferences") or []


def finalizers(obj: Obj) -> list[str]:
    return obj["metadata"].get("finalizers") or []


def waiting(obj: Obj) -> bool:
    """Whether the object is being deleted in the foreground: its dependents first."""
    return objects.deleting(obj) and FOREGROUND in finalizers(obj)


def orphaning(obj: Obj) -> bool:
    """Whether the object is being deleted without its dependents."""
    return objects.deleting(obj) and ORPHAN in finalizers(obj)


def decide(obj: Obj, states: dict[str, Owner], has_dependents: bool) -> Verdict:
    """`states` by owner uid. An object with one solid owner stays and forgets the others."""
    if not states or objects.deleting(obj):
        return Verdict()
    gone = tuple(uid for uid, state in states.items() if state is not Owner.SOLID)
    if len(gone) < len(states):
        return Verdict(drop=gone)
    if has_dependents and any(state is Owner.WAITING for state in states.values()):
        return Verdict(delete="Foreground")
    if ORPHAN in finalizers(obj):
        return Verdict(delete="Orphan")
    return Verdict(delete="Foreground" if FOREGROUND in finalizers(obj) else "Background")


def blocks(dependent: Obj, owner_uid: str) -> bool:
    return any(ref.get("uid") == owner_uid and ref.get("blockOwnerDeletion") for ref in owners(dependent))


def without(obj: Obj, uids: tuple[str, ...]) -> Obj:
    """The merge patch that drops these owners; fails with Conflict when the object changed."""
    meta = obj["metadata"]
    left = [ref for ref in owners(obj) if ref.get("uid") not in uids]
    return {"metadata": {"ownerReferences": left or None, "uid": meta["uid"],
                         "resourceVersion": meta["resourceVersion"]}}


def unblocked(obj: Obj) -> Obj:
    """The merge patch by which the object holds up none of its owners; fails with Conflict when it changed."""
    meta = obj["metadata"]
    return {"metadata": {"ownerReferences": [{**ref, "blockOwnerDeletion": False} for ref in owners(obj)],
                         "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}
