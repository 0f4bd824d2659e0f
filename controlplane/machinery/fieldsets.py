"""Sets of field paths, and what an object's schema says about its fields: the ground server-side apply stands on.

A set is a tree: path element → subtree, with the element `.` where the path itself is a member, as in `fieldsV1`
except that a leaf is `{".": {}}` there too (`read` and `written` convert). Elements are `f:<field>`,
`k:{"name":"c"}` (an item of a list by its keys) and `v:"x"` (a member of a list that is a set). Owns the algebra of
such sets, the set of a value, and the difference of two values. Pure; nothing is changed. Called by `apply`.

Upstream: sigs.k8s.io/structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from controlplane.machinery import protobuf

Node = dict[str, Any]
Tree = dict[str, Any]

LEAF: Tree = {".": {}}
# Of ports: the one key of built-in kinds that clients leave out; their schemas tell no defaults.
KEY_DEFAULTS = {"protocol": "TCP"}
_NONE: frozenset[str] = frozenset()


class Unmergeable(ValueError):  # noqa: N818
    """A configuration that does not fit the schema; the text is upstream's."""


# --- algebra -------------------------------------------------------------------------------------------------------

def read(fields: Any) -> Tree:
    """The set of a `fieldsV1`."""
    if not isinstance(fields, dict):
        return {}
    return {key: {} if key == "." else read(sub) if sub else LEAF for key, sub in fields.items()}


def written(tree: Tree) -> Tree:
    """The `fieldsV1` of a set: sorted, a leaf as {}."""
    return {key: {} if key == "." or sub == LEAF else written(sub) for key, sub in sorted(tree.items())}


def union(left: Tree, right: Tree) -> Tree:
    if not left or not right:
        return left or right
    out = dict(left)
    for key, sub in right.items():
        out[key] = union(out[key], sub) if key in out else sub
    return out


def intersection(left: Tree, right: Tree) -> Tree:
    out: Tree = {}
    for key, sub in left.items():
        if key in right:
            both = intersection(sub, right[key])
            if both or key == ".":
                out[key] = both
    return out


def difference(left: Tree, right: Tree) -> Tree:
    if not right:
        return left
    out: Tree = {}
    for key, sub in left.items():
        if key not in right:
            out[key] = sub
        elif key != "." and (rest := difference(sub, right[key])):
            out[key] = rest
    return out


def paths(tree: Tree, prefix: str = "") -> Iterator[str]:
    """The members as conflicts name them, `.spec.containers[name="c"].image`: at each level those that are members
    themselves come first, then what lies below."""
    below = sorted((key, sub) for key, sub in tree.items() if key != ".")
    yield from (prefix + shown(key) for key, sub in below if "." in sub)
    for key, sub in below:
        yield from paths(sub, prefix + shown(key))


def shown(element: str) -> str:
    """One path element in people's notation."""
    kind, _, rest = element.partition(":")
    if kind == "f":
        return "." + rest
    if kind == "k":
        keys = orjson.loads(rest)
        return "[" + ",".join(f"{k}={orjson.dumps(v).decode()}" for k, v in sorted(keys.items())) + "]"
    return f"[={rest}]"


# --- schema --------------------------------------------------------------------------------------------------------

def resolved(node: Node) -> Node:
    while isinstance(node.get("$ref"), str):
        from controlplane.machinery import schema
        node = schema.load().definition(node["$ref"])
    return node


def atomic(node: Node, value: Any) -> bool:
    """Whether the value is owned as a whole. `node` is the field's own, maybe a reference with more beside it."""
    if isinstance(value, dict):
        return "atomic" in (node.get("x-kubernetes-map-type"), resolved(node).get("x-kubernetes-map-type"))
    if isinstance(value, list):
        return list_type(node) not in ("map", "set")
    return True


def list_type(node: Node) -> str:
    return node.get("x-kubernetes-list-type") or resolved(node).get("x-kubernetes-list-type") or ""


def field(node: Node, name: str) -> tuple[Node, bool]:
    """The schema of a member, and whether it is a declared field (rather than a key of a map)."""
    node = resolved(node)
    declared = (node.get("properties") or {}).get(name)
    if declared is not None:
        return declared, True
    more = node.get("additionalProperties")
    return (more if isinstance(more, dict) else {}), False


def element(node: Node, item: Any, index: int = 0, path: str = "") -> str:
    """The path element of a list's item. Raises Unmergeable when it lacks a key."""
    if list_type(node) == "set":
        return "v:" + orjson.dumps(item).decode()
    keys = {}
    for key in sorted(node.get("x-kubernetes-list-map-keys") or resolved(node).get("x-kubernetes-list-map-keys") or ()):
        value = item.get(key) if isinstance(item, dict) else None
        if value is None and isinstance(item, dict):
            value = _key_default(node, key)
        if value is None:
            raise Unmergeable(f"{path}: element {index}: associative list with keys has an element that omits key "
                              f'field "{key}" (and doesn\'t have default value)')
        keys[key] = value
    return "k:" + orjson.dumps(keys).decode()


def _key_default(node: Node, key: str) -> Any:
    """What the server fills in for a key that a client left out."""
    inside = resolved(resolved(node).get("items") or {}).get("properties") or {}
    return (inside.get(key) or {}).get("default", KEY_DEFAULTS.get(key))


def elements(node: Node, items: list[Any], path: str = "") -> dict[str, Any]:
    """A list's items by path element, in order. Raises Unmergeable for items given twice."""
    found: dict[str, Any] = {}
    for index, item in enumerate(items):
        name = element(node, item, index, path)
        if name in found and path:
            raise Unmergeable(f"{path}: duplicate entries for key {shown(name)}")
        found[name] = item
    return found


def children(node: Node, value: Any) -> Iterator[tuple[str, Node, Any, bool]]:
    """(element, node, value, whether it is a declared field) of a granular value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            sub, declared = field(node, key)
            yield "f:" + key, sub, inner, declared
    else:
        inside = resolved(node).get("items") or {}
        for name, inner in elements(node, value).items():
            yield name, inside, inner, False


def of(value: Any, node: Node) -> Tree:
    """Every field of a value: leaves, keys of maps and items of lists are members, declared structures are not."""
    if atomic(node, value) or not value:
        return LEAF
    out: Tree = {}
    for name, sub, inner, declared in children(node, value):
        tree = of(inner, sub)
        out[name] = tree if declared or tree is LEAF else {".": {}, **tree}
    return out


def compare(old: Any, new: Any, node: Node) -> tuple[Tree, Tree]:
    """(what was changed or added, what was removed). Equal parts cost one comparison."""
    changed: Tree = {}
    removed: Tree = {}
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = old, new
        prefix = "f:"
    else:
        before, after = elements(node, old), elements(node, new)
        prefix = ""
    items = {} if prefix else resolved(node).get("items") or {}
    always = protobuf.always_there(node["$ref"]) if "$ref" in node else _NONE
    for key, value in after.items():
        was = before.get(key)
        if was is None and key in always and isinstance(value, dict | list):
            was = type(value)()
        if was == value and type(was) is type(value) and (key in before or was is not None):
            continue
        sub = field(node, key)[0] if prefix else items
        if was is not None and type(was) is type(value) and isinstance(value, dict | list) and not atomic(sub, value):
            inner, gone = compare(was, value, sub)
            if inner:
                changed[prefix + key] = inner
            if gone:
                removed[prefix + key] = gone
        else:
            changed[prefix + key] = {".": {}, **_everything(value, sub)}
    for key, value in before.items():
        if key not in after:
            sub = field(node, key)[0] if prefix else items
            gone = {".": {}, **_everything(value, sub)}
            removed[prefix + key] = difference(gone, LEAF) if key in always and gone != LEAF else gone
    return changed, removed


def _everything(value: Any, node: Node) -> Tree:
    """Every path of a value, structures included."""
    if atomic(node, value) or not value:
        return LEAF
    return {name: {".": {}, **_everything(inner, sub)} for name, sub, inner, _ in children(node, value)}
