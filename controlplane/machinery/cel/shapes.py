"""What CEL sees of a schema: its kinds, how large a value of each may be, and what of it stays hidden.

Owns upstream's reading of structural schemas: what a bound leaves open is bounded by the size of a request, and fields
whose schema says nothing of their values do not exist for rules. Pure. Called by `costs` and `checks`.

Upstream: k8s.io/apiserver/pkg/cel/common/schemas.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery.cel import types

REQUEST = 3 * 1024 * 1024  # bytes of a request: nothing in it has more parts
INT_OR_STRING, EMBEDDED = "x-kubernetes-int-or-string", "x-kubernetes-embedded-resource"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
_SCALARS = {"boolean": ("bool", 4), "number": ("double", 1), "integer": ("int", 1)}  # kind, fewest characters in JSON
# Of formats CEL has types for: kind, most characters (0: the format says nothing of it), fewest in JSON.
_FORMATS = {"byte": ("bytes", 0, 2), "duration": ("duration", 32, 3), "date": ("timestamp", 12, 12),
            "date-time": ("timestamp", 32, 21)}
Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """`most` items, entries or characters; at least `least` characters in JSON. `element` of lists and maps."""

    kind: str
    most: int = 0
    least: int = 1
    fields: dict[str, Shape] = field(default_factory=dict)
    element: Shape | None = None

    def at(self, path: tuple[str, ...]) -> Shape | None:
        """What a path leads to, None when to nothing known."""
        found: Shape | None = self
        for name in path:
            if found is None:
                return None
            if name in ("@items", "@values"):
                found = found.element
            elif name == "@keys":
                found = KEY if found.kind == "map" else None
            else:
                found = found.fields.get(name)
        return found


KEY = Shape("string")


def shape(node: Any, whole: bool = False) -> Shape | None:
    """The shape of a node, None of what rules cannot see; `whole` is a resource with the fields all have."""
    if not isinstance(node, dict):
        return None
    most = node.get("maxLength")
    if node.get(INT_OR_STRING):
        return Shape("dyn", REQUEST - 2 if most is None else 4 * max(most, 0))
    if whole or node.get(EMBEDDED):
        node = types.resource(node, types.NAMES)
    kind = node.get("type") or ""
    if kind == "array":
        inner = shape(node.get("items"))
        return inner and Shape("list", _bound(node.get("maxItems"), inner.least + 1), 2, element=inner)
    if kind == "object":
        return _object(node)
    if kind == "string":
        return _string(node, most)
    return Shape(_SCALARS[kind][0], 0, _SCALARS[kind][1]) if kind in _SCALARS else None


def _bound(declared: int | None, least: int) -> int:
    """The declared bound, or how many of this size a request can hold."""
    return (REQUEST - 2) // least if declared is None else max(declared, 0)


def _object(node: Node) -> Shape | None:
    if isinstance(node.get("additionalProperties"), dict):
        inner = shape(node["additionalProperties"])
        return inner and Shape("map", _bound(node.get("maxProperties"), inner.least + 6), 2, element=inner)
    fields, least = {}, 2
    for name, sub in (node.get("properties") or {}).items():
        inner = shape(sub)
        if inner is None:
            continue
        fields[types.escaped(name)] = inner
        if name in (node.get("required") or ()) and sub.get("default") is None:
            least += len(name.encode()) + inner.least + 4
    return Shape("struct", 0, least, fields)


def _string(node: Node, most: int | None) -> Shape:
    kind, known, least = _FORMATS.get(node.get("format") or "", ("string", 0, 2))
    if known:
        return Shape(kind, known, least)
    if most is not None:
        return Shape(kind, max(most, 0) * (1 if kind == "bytes" else 4), least)
    if kind == "string" and node.get("enum"):
        return Shape(kind, max(len(one.encode()) for one in node["enum"] if isinstance(one, str)), least)
    return Shape(kind, REQUEST - 2, least)


def visible(node: Node, whole: bool = False) -> Node | None:
    """The part of a schema that rules see, as a schema: None when that is nothing. Values may not be null."""
    if node.get(INT_OR_STRING):
        return {INT_OR_STRING: True}
    if whole or node.get(EMBEDDED):
        node = types.resource(node, types.NAMES)
    made = {key: node[key] for key in ("type", "format") if node.get(key)}
    kind = made.get("type")
    if kind == "array":
        inner = visible(node["items"]) if isinstance(node.get("items"), dict) else None
        return None if inner is None else {**made, "items": inner}
    if kind == "object" and isinstance(node.get("additionalProperties"), dict):
        inner = visible(node["additionalProperties"])
        return None if inner is None else {**made, "additionalProperties": inner}
    if kind == "object":
        seen = {name: visible(sub) for name, sub in (node.get("properties") or {}).items() if isinstance(sub, dict)}
        return {**made, "properties": {name: sub for name, sub in seen.items() if sub is not None}}
    return made if kind else None
