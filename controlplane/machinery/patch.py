"""JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386).

Owns both algebras over decoded JSON. Promises that neither argument is changed or shared with the result, that a patch
applies whole or not at all, and that no patch can make a document explode (`MAX_OPERATIONS`, `MAX_COPIED`). A patch
that cannot be read is a BadRequest; one that does not apply is upstream's 422. Pure. Called by the apiserver's patch
handler.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.errors import ApiError, BadRequest, TooLarge
from controlplane.machinery.objects import deep_copy

MAX_OPERATIONS = 10_000  # upstream's limit: a patch of more would hold the server up
MAX_COPIED = 100_000  # values that `copy` may add in all: copies of copies double with every operation

_MISSING = object()


def equal(left: Any, right: Any) -> bool:
    """JSON equality: 1 and 1.0 are one number, true and 1 are not the same."""
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(equal, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def merge_patch(doc: Any, patch: Any) -> Any:
    """RFC 7386: maps merge, null removes, everything else replaces."""
    return deep_copy(_merged(doc, patch))


def _merged(doc: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(doc) if isinstance(doc, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, dict) else value
    return merged


class Inapplicable(ApiError):  # noqa: N818
    """An operation of a JSON patch that fails on this document. `why` is for logs: upstream does not tell clients."""

    code, reason = 422, "Invalid"

    def __init__(self, why: str) -> None:
        super().__init__("the server rejected our request due to an error in our request", {})
        self.why = why


def json_patch(doc: Any, ops: Any) -> Any:
    """RFC 6902: the document after every operation, in order. Raises BadRequest, TooLarge, Inapplicable."""
    if not isinstance(ops, list):
        kind = {dict: "object", str: "string", bool: "bool"}.get(type(ops), "value")
        raise BadRequest(f"error decoding patch: json: cannot unmarshal {kind} into Go value of type jsonpatch.Patch")
    if len(ops) > MAX_OPERATIONS:
        raise TooLarge(f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(ops)}")
    root = [deep_copy(doc)]  # one level above, so that the path "" has a parent too
    copied = 0
    for op in ops:
        if not isinstance(op, dict):
            raise BadRequest("error decoding patch: json: cannot unmarshal value into Go value of type "
                             "jsonpatch.Operation")
        copied += _operate(root, op)
        if copied > MAX_COPIED:
            raise TooLarge("Unable to complete the copy, the accumulated size increase of copy is too large")
    return root[0]


def _operate(root: list[Any], op: dict[str, Any]) -> int:
    """Apply one operation; how many values it copied within the document."""
    name = op.get("op")
    path = _pointer(op, "path")
    if name == "add":
        _add(root, path, deep_copy(_value(op)))
    elif name == "remove":
        _remove(root, path)
    elif name == "replace":
        _find(root, path)
        _set(root, path, deep_copy(_value(op)))
    elif name == "test":
        found = _find(root, path, None)
        if not equal(found, op.get("value")):
            raise Inapplicable(f"testing value {'/'.join(path)} failed")
    elif name == "move":
        source = _pointer(op, "from")
        if path[:len(source)] == source and path != source:
            raise Inapplicable("a value cannot be moved into itself")
        _add(root, path, _remove(root, source))
    elif name == "copy":
        value = _find(root, _pointer(op, "from"))
        size = _count(value)
        if size <= MAX_COPIED:
            _add(root, path, deep_copy(value))
        return size
    else:
        raise Inapplicable(f"Unexpected kind: {name}")
    return 0


def _value(op: dict[str, Any]) -> Any:
    if "value" not in op:
        raise Inapplicable(f"{op.get('op')} operation lacks a value")
    return op["value"]


def _pointer(op: dict[str, Any], member: str) -> list[str]:
    text = op.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise Inapplicable(f"bad JSON pointer in {member}: {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _index(container: list[Any], part: str, limit: int) -> int:
    if not part.isdecimal() or not part.isascii() or (len(part) > 1 and part[0] == "0"):
        raise Inapplicable(f"not an array index: {part}")
    at = int(part) if len(part) < 10 else limit + 1
    if at > limit:
        raise Inapplicable(f"array index {part} out of range")
    return at


def _step(container: Any, part: str, missing: Any = _MISSING) -> Any:
    if isinstance(container, dict):
        found = container.get(part, missing)
    elif isinstance(container, list):
        found = container[_index(container, part, len(container) - 1)]
    else:
        found = missing
    if found is _MISSING:
        raise Inapplicable(f"path does not exist: {part}")
    return found


def _parent(root: list[Any], path: list[str]) -> tuple[Any, str]:
    container: Any = root
    for part in ["0", *path[:-1]] if path else []:
        container = _step(container, part)
    return container, path[-1] if path else "0"


def _find(root: list[Any], path: list[str], missing: Any = _MISSING) -> Any:
    container, part = _parent(root, path)
    return _step(container, part, missing)


def _set(root: list[Any], path: list[str], value: Any) -> None:
    container, part = _parent(root, path)
    if isinstance(container, list):
        container[_index(container, part, len(container) - 1)] = value
    else:
        container[part] = value


def _add(root: list[Any], path: list[str], value: Any) -> None:
    container, part = _parent(root, path)
    if not path:
        root[0] = value
    elif isinstance(container, dict):
        container[part] = value
    elif isinstance(container, list):
        container.insert(len(container) if part == "-" else _index(container, part, len(container)), value)
    else:
        raise Inapplicable(f"{'/'.join(path[:-1])} holds no members")


def _remove(root: list[Any], path: list[str]) -> Any:
    container, part = _parent(root, path)
    if not path:
        raise Inapplicable("the whole document cannot be removed")
    value = _step(container, part)
    del container[_index(container, part, len(container) - 1) if isinstance(container, list) else part]
    return value
