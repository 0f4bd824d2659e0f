"""Strategic merge patch: Kubernetes' own patch format, driven by the schema of the kind.

Owns every directive: `$patch` (replace, delete) in maps and in list items, `$setElementOrder/<list>`,
`$deleteFromPrimitiveList/<list>`, `$retainKeys`; lists that merge by a key or as sets; and the order of the merged
list. Promises upstream's results and error texts, and that neither argument is changed or shared with the result. Pure.
Called by the apiserver's patch handler for built-in kinds.

Upstream: k8s.io/apimachinery/pkg/util/strategicpatch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.machinery.errors import BadRequest
from controlplane.machinery.objects import deep_copy
from controlplane.machinery.patch import equal

Node = dict[str, Any]

PATCH = "$patch"
RETAIN = "$retainKeys"
ORDER = "$setElementOrder/"
REMOVE = "$deleteFromPrimitiveList/"


def merge(doc: Node, patch: Any, definition: Node) -> Node:
    """`doc` with `patch` applied. `definition` is the kind's schema node. Raises BadRequest with upstream's text."""
    if not isinstance(patch, dict):
        raise BadRequest("error decoding patch: json: cannot unmarshal value into Go value of type "
                         "map[string]interface {}")
    return _map(deep_copy(doc), deep_copy(patch), definition)


# --- the schema ----------------------------------------------------------------------------------------------------

def _resolved(node: Node) -> Node:
    while isinstance(node.get("$ref"), str):
        from controlplane.machinery import schema
        node = schema.load().definition(node["$ref"])
    return node


def _field(node: Node, key: str) -> Node:
    """The schema of a map's member: a declared field, or what any key of the map holds. {} = anything."""
    node = _resolved(node)
    found = (node.get("properties") or {}).get(key)
    if found is None:
        found = node.get("additionalProperties")
    return found if isinstance(found, dict) else {}


def _strategies(field: Node) -> set[str]:
    return set((field.get("x-kubernetes-patch-strategy") or "").split(","))


def _merge_key(field: Node) -> str:
    return field.get("x-kubernetes-patch-merge-key") or ""


# --- errors --------------------------------------------------------------------------------------------------------

def _failed(message: str) -> BadRequest:
    """Upstream answers a patch it cannot merge with a bare 500; but the fault is the client's, who must not retry."""
    return BadRequest(message)


def _shown(value: Any) -> str:
    """As Go's %v prints it."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_shown(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    if value is None:
        return "<nil>"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _keyless(item: Any, key: str) -> BadRequest:
    return _failed(f"map: {_shown(item)} does not contain declared merge key: {key}")


# --- maps ----------------------------------------------------------------------------------------------------------

def _map(original: Node, patch: Node, node: Node) -> Node:
    """Merge `patch` into `original`; both are ours to change."""
    if PATCH in patch:
        directive = patch.pop(PATCH)
        if directive == "replace":
            return patch
        if directive == "delete":
            return {}
        raise _failed(f"unknown patch type: {_shown(directive)} in map: {_shown({**patch, PATCH: directive})}")
    _retain(original, patch)
    for key in [key for key in patch if key.startswith(ORDER)]:
        _ordered(original, patch, node, key)
    for key, value in patch.items():
        if key.startswith(REMOVE):
            _remove(original, key[len(REMOVE):], value)
        elif value is None or (_instructs(value) and not isinstance(original.get(key), dict)):
            original.pop(key, None)
        else:
            original[key] = _value(original.get(key), value, _field(node, key))
    return original


def _value(old: Any, new: Any, field: Node) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return new if "replace" in _strategies(field) else _map(old, new, field)
    if isinstance(old, list) and isinstance(new, list):
        return _list(old, new, field)
    return _cleaned(new)


def _cleaned(value: Any) -> Any:
    """What a patch adds where nothing was: without nulls in maps, without directives and what carries one."""
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()
                if item is not None and not _instructs(item) and key != RETAIN and not key.startswith((ORDER, REMOVE))}
    if isinstance(value, list):
        return [_cleaned(item) for item in value if not _instructs(item)]
    return value


def _instructs(value: Any) -> bool:
    """Whether a value says what to do with something that is there."""
    return isinstance(value, dict) and PATCH in value


def _retain(original: Node, patch: Node) -> None:
    if RETAIN not in patch:
        return
    kept = patch.pop(RETAIN)
    if not isinstance(kept, list) or any(
            key not in kept for key, value in patch.items()
            if value is not None and not key.startswith((ORDER, REMOVE))):
        raise BadRequest("invalid patch format of retainKeys")
    for key in [key for key in original if key not in kept]:
        del original[key]


def _remove(original: Node, key: str, values: Any) -> None:
    if not isinstance(values, list):
        raise BadRequest("invalid patch format of primitive list")
    if isinstance(original.get(key), list):
        original[key] = [item for item in original[key] if not any(equal(item, value) for value in values)]


# --- lists ---------------------------------------------------------------------------------------------------------

def _list(original: list[Any], patch: list[Any], field: Node) -> list[Any]:
    if "merge" not in _strategies(field):
        return patch  # nulls within are the client's own
    if not original and not patch:
        return original
    maps = _of_maps(original, patch)
    if not maps:
        return _arranged(_unique(original + patch), patch, original, "")
    key = _merge_key(field)
    if not key:
        raise _failed("cannot merge lists without merge key for list")
    original, patch = _directed(original, patch, key)
    merged = list(original)
    for item in patch:
        if key not in item:
            raise _keyless(item, key)
        at = next((i for i, other in enumerate(merged) if equal(other.get(key), item[key])), None)
        if at is None:
            merged.append(_cleaned(item))
        else:
            merged[at] = _map(merged[at], item, field.get("items") or {})
    return _arranged(merged, patch, original, key)


def _of_maps(*lists: list[Any]) -> bool:
    kinds = {dict if isinstance(item, dict) else list if isinstance(item, list) else object
             for items in lists for item in items}
    if list in kinds:
        raise _failed("lists of lists are not supported")
    if len(kinds) > 1:
        raise _failed("list element types are not identical")
    return dict in kinds


def _directed(original: list[Node], patch: list[Node], key: str) -> tuple[list[Node], list[Node]]:
    """Carry out the items that instruct: (what stays of the original, the plain items of the patch)."""
    plain: list[Node] = []
    replace = False
    for item in patch:
        directive = item.get(PATCH)
        if PATCH not in item:
            plain.append(item)
        elif directive == "delete":
            if key not in item:
                raise _keyless(item, key)
            original = [other for other in original if not equal(other.get(key), item[key])]
        elif directive == "replace":
            replace = True
        elif directive == "merge":
            raise _failed("merging lists cannot yet be specified in the patch")
        else:
            raise _failed(f"unknown patch type: {_shown(directive)} in map: {_shown(item)}")
    return ([], plain) if replace else (original, plain)


def _unique(items: list[Any]) -> list[Any]:
    seen: list[Any] = []
    for item in items:
        if not any(equal(item, other) for other in seen):
            seen.append(item)
    return seen


def _identity(key: str) -> Callable[[Any], Any]:
    """What tells items of a list apart: the merge key's value, or the primitive itself; True is not 1."""
    def of(item: Any) -> Any:
        value = item.get(key) if key and isinstance(item, dict) else item
        return (isinstance(value, bool), str(value) if isinstance(value, dict | list) else value)
    return of


def _positions(items: list[Any], of: Callable[[Any], Any]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for at, item in enumerate(items):
        found.setdefault(of(item), at)
    return found


def _arranged(merged: list[Any], order: list[Any], server: list[Any], key: str) -> list[Any]:
    """The final order: items of `order` as it lists them, the others as the server had them, interleaved by the
    server's order; a new item comes before what it cannot be compared with."""
    of = _identity(key)
    wanted, present = _positions(order, of), _positions(server, of)
    named = sorted((item for item in merged if of(item) in wanted), key=lambda item: wanted[of(item)])
    others = sorted((item for item in merged if of(item) not in wanted), key=lambda item: present.get(of(item), -1))
    result: list[Any] = []
    at = 0
    for item in named:
        place = present.get(of(item))
        while place is not None and at < len(others) and present.get(of(others[at]), place) < place:
            result.append(others[at])
            at += 1
        result.append(item)
    return result + others[at:]


def _ordered(original: Node, patch: Node, node: Node, directive: str) -> None:
    """Carry out `$setElementOrder/<list>` together with the patch of that list, and take both out of the patch."""
    order, key = patch.pop(directive), directive[len(ORDER):]
    if not isinstance(order, list):
        raise BadRequest("invalid patch format of setElementOrder list")
    old, new = original.get(key), patch.get(key)
    if (old is not None and not isinstance(old, list)) or (new is not None and not isinstance(new, list)):
        raise _failed(f"expected a []interface {{}}, but received {_shown(new if isinstance(old, list) else old)}")
    field = _field(node, key)
    merge_key = _merge_key(field)
    _consistent(new or [], order, merge_key)
    if key in patch and new is None:
        return  # null: the list goes, its order with it
    if old is None and new is None:
        return
    before = list(old or [])
    merged: list[Any] = list(before)
    if new is not None:
        merged = _cleaned(new) if old is None else _list(old, new, field)
    if merge_key:
        for item in [*merged, *order]:
            if not isinstance(item, dict) or merge_key not in item:
                raise _keyless(item, merge_key)
    original[key] = _arranged(merged, order, before, merge_key)
    patch.pop(key, None)


def _consistent(patch: list[Any], order: list[Any], key: str) -> None:
    """The items of the patch must appear in the order list, in its order."""
    of = _identity(key)
    pending = [item for item in patch if not (isinstance(item, dict) and item.get(PATCH) in ("delete", "replace"))]
    if key and (bad := next((item for item in pending if not isinstance(item, dict) or key not in item), None)):
        raise _keyless(bad, key)
    at = 0
    for item in order:
        if at < len(pending) and of(pending[at]) == of(item):
            at += 1
    if at < len(pending):
        raise _failed(f"The order in patch list:\n{_shown(patch)}\n doesn't match $setElementOrder list:\n"
                      f"{_shown(order)}\n")
