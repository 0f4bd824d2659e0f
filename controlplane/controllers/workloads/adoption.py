"""Whose is it: which dependents a controller owns, should adopt, or should let go.

Pure. Owns the rule that a selector decides and the controller reference records. Promises that an object controlled by
another is never touched, and that a controller being deleted adopts nothing. Called by `family`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """`mine` already, `adopt` orphans that match, `release` what no longer matches."""

    mine: list[Obj]
    adopt: list[Obj]
    release: list[Obj]


def claim(owner: Obj, selector: Any, candidates: Iterable[Obj]) -> Claim:
    """Sort `candidates` (dependents of the owner and orphans of its namespace) by `selector.matches(labels)`."""
    result = Claim([], [], [])
    leaving = objects.deleting(owner)
    for candidate in candidates:
        controller = objects.controller_of(candidate)
        matches = selector.matches(objects.labels(candidate))
        if controller is not None:
            if controller.get("uid") == objects.uid(owner):
                (result.mine if matches or leaving else result.release).append(candidate)
        elif matches and not leaving and not objects.deleting(candidate):
            result.adopt.append(candidate)
    return result


def adopt(owner: Obj, dependent: Obj) -> Obj:
    """The strategic patch that makes `owner` the controller of `dependent`; its uid is a precondition."""
    return {"metadata": {"ownerReferences": [objects.owner_reference(owner)], "uid": objects.uid(dependent)}}


def release(owner: Obj, dependent: Obj) -> Obj:
    """The strategic patch that removes `owner` from `dependent`'s owners."""
    return {"metadata": {"ownerReferences": [{"$patch": "delete", "uid": objects.uid(owner)}],
                         "uid": objects.uid(dependent)}}
