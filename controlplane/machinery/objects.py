"""Small, total helpers over Kubernetes objects, which stay plain dicts everywhere.

Owns reading the metadata every component reads (names, labels, owner, conditions), setting a condition the way
upstream's helpers do, and copying. The readers never raise on a missing part and never add one: an object without
labels answers `{}`. Nothing here knows a kind. Everybody calls it.
"""

from typing import Any

import orjson

Object = dict[str, Any]
_NOTHING: dict[str, str] = {}  # the shared answer for "no labels": readers never write into what they were given


def metadata(obj: Object) -> Object:
    return obj.get("metadata") or {}


def name(obj: Object) -> str:
    return (obj.get("metadata") or _NOTHING).get("name") or ""


def namespace(obj: Object) -> str:
    return (obj.get("metadata") or _NOTHING).get("namespace") or ""


def uid(obj: Object) -> str:
    return (obj.get("metadata") or _NOTHING).get("uid") or ""


def revision(obj: Object) -> str:
    """The resourceVersion, "" when the object was never stored."""
    return (obj.get("metadata") or _NOTHING).get("resourceVersion") or ""


def labels(obj: Object) -> dict[str, str]:
    """The labels, to read only."""
    return (obj.get("metadata") or {}).get("labels") or _NOTHING


def annotations(obj: Object) -> dict[str, str]:
    """The annotations, to read only."""
    return (obj.get("metadata") or {}).get("annotations") or _NOTHING


def key(obj: Object) -> tuple[str, str]:
    """(namespace, name)."""
    meta = obj.get("metadata") or _NOTHING
    return meta.get("namespace") or "", meta.get("name") or ""


def deleting(obj: Object) -> bool:
    return bool((obj.get("metadata") or _NOTHING).get("deletionTimestamp"))


def controller_of(obj: Object) -> Object | None:
    """The owner reference with `controller: true`, if any."""
    for reference in (obj.get("metadata") or {}).get("ownerReferences") or ():
        if reference.get("controller"):
            return reference
    return None


def owner_reference(obj: Object, controller: bool = True) -> Object:
    """What a dependent of `obj` carries in `metadata.ownerReferences`."""
    meta = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"], "uid": meta["uid"]}
    if controller:
        reference.update(controller=True, blockOwnerDeletion=True)
    return reference


def condition(obj: Object, type: str) -> Object | None:
    """The entry of `status.conditions` with this type, if any."""
    for entry in (obj.get("status") or {}).get("conditions") or ():
        if entry.get("type") == type:
            return entry
    return None


def holds(obj: Object, type: str) -> bool:
    """Whether the condition of this type is true."""
    return (condition(obj, type) or {}).get("status") == "True"


def set_condition(conditions: list[Object], type: str, status: str, reason: str, message: str, now: str) -> bool:
    """Bring the condition to this state in place; True when anything changed.

    `lastTransitionTime` moves to `now` only when `status` changes; an empty reason or message is left out."""
    found = next((c for c in conditions if c.get("type") == type), None)
    if found is None:
        found = {"type": type}
        conditions.append(found)
    elif (found.get("status"), found.get("reason", ""), found.get("message", "")) == (status, reason, message):
        return False
    if found.get("status") != status:
        found["status"] = status
        found["lastTransitionTime"] = now
    for field, value in (("reason", reason), ("message", message)):
        if value:
            found[field] = value
        else:
            found.pop(field, None)
    return True


def deep_copy(obj: Any) -> Any:
    """An independent copy of JSON-like data."""
    try:
        return orjson.loads(orjson.dumps(obj))  # three times as fast as walking it here, and it interns the keys
    except TypeError:  # an integer beyond 64 bits: legal in JSON, unknown to orjson
        return _walk(obj)


def _walk(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {k: _walk(v) for k, v in obj.items()}
    if isinstance(obj, list):
        return [_walk(v) for v in obj]
    return obj


def get(obj: Any, path: str, default: Any = None) -> Any:
    """The value at `spec.template.spec`, or `default` when any step is missing or null. Steps are map keys only."""
    for step in path.split("."):
        if not isinstance(obj, dict):
            return default
        obj = obj.get(step)
        if obj is None:
            return default
    return obj


def int_or_percent(value: int | str | None, total: int, round_up: bool) -> int:
    """An IntOrString as a number: `"25%"` of `total`, rounded as told. None is 0.

    Raises ValueError for a text that is no percentage."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    digits = value.removesuffix("%")
    if digits == value or not digits.removeprefix("-").isascii() or not digits.removeprefix("-").isdigit():
        raise ValueError(f'invalid value for IntOrString: invalid type: string is not a percentage: "{value}"')
    share = int(digits) * total
    return -(-share // 100) if round_up else share // 100
