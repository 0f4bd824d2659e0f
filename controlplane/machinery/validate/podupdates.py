"""What an update may change of a pod: images, its deadline, added tolerations, cleared gates; nothing else.

Upstream: ValidatePodUpdate in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

import json
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, forbidden, invalid

Object = dict[str, Any]
ONLY = ("pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
        "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
        "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)")
_MAX_DIFFERENCE = 50  # lines; what is longer helps nobody and fills the answer


def changes(new: Object, old: Object) -> list[Cause]:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    if after == before:
        return []
    found: list[Cause] = []
    for field in ("containers", "initContainers"):
        if len(after.get(field) or ()) != len(before.get(field) or ()):
            found.append(forbidden(f"spec.{field}", "pod updates may not add or remove containers"))
    if found:
        return found
    found += _deadline(after, before) + _tolerations(after, before) + _gates(after, before)
    allowed = _with_allowed(after, before)
    if allowed != before:
        lines = differences(before, allowed)
        shown = lines[:_MAX_DIFFERENCE] + (["  ..."] if len(lines) > _MAX_DIFFERENCE else [])
        found.append(forbidden("spec", ONLY + "\n" + "\n".join(shown) + "\n"))
    return found


def _deadline(after: Object, before: Object) -> list[Cause]:
    """It may be set and shortened."""
    new, old = after.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if new is not None:
        if not 0 <= new <= names.MAX_INT32:
            return [invalid("spec.activeDeadlineSeconds", new, names.in_range(0, names.MAX_INT32))]
        if old is not None and new > old:
            return [invalid("spec.activeDeadlineSeconds", new, "must be less than or equal to previous value")]
    elif old is not None:
        return [invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")]
    return []


def _same_but_seconds(one: Object, other: Object) -> bool:
    return {**one, "tolerationSeconds": 0} == {**other, "tolerationSeconds": 0}


def _tolerations(after: Object, before: Object) -> list[Cause]:
    """They may be added, and their seconds changed."""
    new, old = after.get("tolerations") or [], before.get("tolerations") or []
    if all(any(_same_but_seconds(t, u) for u in new) for t in old):
        return []
    return [forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")]


def _gates(after: Object, before: Object) -> list[Cause]:
    """They may only go."""
    held = {g.get("name") for g in before.get("schedulingGates") or ()}
    return [forbidden(f"spec.schedulingGates[{index}].name", "only deletion is allowed, but found new scheduling gate "
                      f"'{gate.get('name')}'")
            for index, gate in enumerate(after.get("schedulingGates") or ()) if gate.get("name") not in held]


def _with_allowed(after: Object, before: Object) -> Object:
    """`after` with everything an update may change set back to `before`: what then differs was not allowed."""
    result = dict(after)
    for field in ("containers", "initContainers"):
        if field in after:
            result[field] = [{**c, "image": o["image"]} if c.get("image") and "image" in o else c
                             for c, o in zip(after[field], before.get(field) or ())]
    for field in ("activeDeadlineSeconds", "tolerations", "schedulingGates"):
        _reset(result, before, field)
    grace = before.get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0 and after.get("terminationGracePeriodSeconds") == 1:
        result["terminationGracePeriodSeconds"] = grace
    if before.get("schedulingGates"):  # while it is held back, where it may go can still be narrowed
        held = before.get("nodeSelector") or {}
        if held.items() <= (after.get("nodeSelector") or {}).items():
            _reset(result, before, "nodeSelector")
        if not (before.get("affinity") or {}).get("nodeAffinity"):
            affinity = {k: v for k, v in (after.get("affinity") or {}).items() if k != "nodeAffinity"}
            if affinity or before.get("affinity"):
                result["affinity"] = affinity
            else:
                result.pop("affinity", None)
    return result


def _reset(result: Object, before: Object, field: str) -> None:
    if field in before:
        result[field] = before[field]
    else:
        result.pop(field, None)


def differences(before: Any, after: Any, path: str = "spec") -> list[str]:
    """Lines `- path: value` and `+ path: value` of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines: list[str] = []
        for key in sorted({*before, *after}):
            lines += differences(before.get(key), after.get(key), f"{path}.{key}")
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for i, (b, a) in enumerate(zip(before, after)) for line in differences(b, a, f"{path}[{i}]")]
    if before == after:
        return []
    out = []
    for mark, value in (("-", before), ("+", after)):
        if value is not None:
            out.append(f"{mark} {path}: {json.dumps(value, separators=(',', ':'))}")
    return out

