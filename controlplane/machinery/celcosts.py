"""What a CEL rule may cost at most, from its schema's bounds alone: rules that could take too long are never accepted.

Owns the estimate: every step has upstream's cost, a loop costs its body times the most items its list may have, and
what a schema leaves unbounded is bounded by the size of a request. Where nothing can be known of a value (the result of
a function), it counts as small: a rule is refused for what it does to its schema, never for a guess. Reads the checked
expression as the CEL library serializes it. Pure. Called by `celrules`.

Upstream: github.com/google/cel-go/checker/cost.go, k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.machinery.protobuf import fields

PER_RULE = 10_000_000  # upstream's bound of one rule, at all places it applies to
PER_SCHEMA = 100_000_000  # and of all rules of a version
SLACK = 2  # only clear excess is refused: this estimate and upstream's differ a little, and upstream's let it pass
REQUEST = 3 * 1024 * 1024  # bytes of a request: nothing in it has more parts
LIST, MAP, STRUCT = 10, 30, 40  # of making one
TRAVERSAL, REGEX = 0.1, 0.25  # per character
_FORMATS = {"duration": 32, "date": 12, "date-time": 26, "byte": REQUEST}
_LOGICAL = ("_||_", "_&&_")
_CHOICE = "_?_:_"
Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of an expression's value: its schema, and how many items or characters it has at most."""

    cost: float
    node: Node | None = None
    size: float = 1.0


def smallest(node: Any) -> int:
    """The fewest characters a value takes in JSON."""
    if not isinstance(node, dict) or node.get("x-kubernetes-int-or-string"):
        return 1
    kind = node.get("type")
    if kind == "boolean":
        return 4
    if kind in ("string", "array"):
        return 2
    if kind == "object":
        properties = node.get("properties") or {}
        needed = [n for n in node.get("required") or () if n in properties and "default" not in properties[n]]
        return 2 + sum(len(n) + 4 + smallest(properties[n]) for n in needed)
    return 1


def size_of(node: Node | None) -> float:
    """The most items, properties or characters a value may have."""
    if not node:
        return 1.0
    kind = node.get("type")
    if kind == "array":
        most = node.get("maxItems")
        return most if most is not None else (REQUEST - 2) // (smallest(node.get("items")) + 1)
    if kind == "object":
        most = node.get("maxProperties")
        inner = node.get("additionalProperties")
        if not isinstance(inner, dict):
            return len(node.get("properties") or {})
        return most if most is not None else (REQUEST - 2) // (smallest(inner) + 6)
    if kind == "string":
        if node.get("enum"):
            return max(len(str(text)) for text in node["enum"])
        most = node.get("maxLength")
        return _FORMATS.get(node.get("format") or "", REQUEST) if most is None else 4 * most
    return 1.0


def placed(schema: Node, path: str, count: float | None = 1.0) -> Iterator[tuple[str, Node, float]]:
    """(path, node, at how many places it may stand) of a structural schema, itself first. What the schema does not
    bound is as often in a request as it fits."""
    yield path, schema, REQUEST // (smallest(schema) + 1) if count is None else count
    for key, inner in (schema.get("properties") or {}).items():
        if isinstance(inner, dict):
            yield from placed(inner, f"{path}.properties[{key}]", count)
    for key, bound in (("items", "maxItems"), ("additionalProperties", "maxProperties")):
        if isinstance(schema.get(key), dict):
            most = schema.get(bound)
            yield from placed(schema[key], f"{path}.{key}", None if most is None or count is None else count * most)


def estimate(serialized: bytes, nodes: Mapping[str, Node | None]) -> float:
    """The most a compiled expression may cost over variables of these schemas."""
    checked = dict(fields(dict(fields(serialized))[2]))
    return _cost(checked[4], {name: Value(1, node, size_of(node)) for name, node in nodes.items()}).cost


def exceeded(what: str, cost: float, limit: int) -> str:
    """Upstream's words for too much."""
    factor = cost / limit
    shown = "more than 100x" if factor > 100 else f"{factor:f}x" if factor < 1.5 else f"{factor:.1f}x"
    return (f"{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, "
            "and maxLength where arrays, maps, and strings are declared)")


def _cost(expression: bytes, scope: Mapping[str, Value]) -> Value:
    kind, body = next(((number, value) for number, value in fields(expression) if number != 2), (0, b""))
    if kind == 3:
        return _constant(body)
    if kind == 4:
        return scope.get(dict(fields(body)).get(1, b"").decode(), Value(1))
    if kind == 5:
        return _selected(dict(fields(body)), scope)
    if kind == 6:
        return _called(body, scope)
    if kind == 7:
        parts = [_cost(value, scope) for number, value in fields(body) if number == 1]
        return Value(LIST + sum(p.cost for p in parts), {"type": "array", "items": parts[0].node if parts else None},
                     len(parts))
    if kind == 8:
        entries = [dict(fields(value)) for number, value in fields(body) if number == 2]
        inner = sum(_cost(e[n], scope).cost for e in entries for n in (3, 4) if n in e)
        return Value((MAP if all(3 in e for e in entries) else STRUCT) + inner, None, len(entries))
    return _loop(dict(fields(body)), scope) if kind == 9 else Value(0)


def _constant(body: bytes) -> Value:
    number, value = next(iter(fields(body)), (0, b""))
    return Value(0, {"type": "string"} if number == 6 else None, len(value) if number in (6, 7) else 1)


def _selected(parts: dict[int, Any], scope: Mapping[str, Value]) -> Value:
    operand, name = _cost(parts[1], scope), parts.get(2, b"").decode()
    node = operand.node or {}
    inner = (node.get("properties") or {}).get(name)
    if inner is None and isinstance(node.get("additionalProperties"), dict):
        inner = node["additionalProperties"]
    return Value(operand.cost + (0 if parts.get(3) else 1), inner, size_of(inner))


def _called(body: bytes, scope: Mapping[str, Value]) -> Value:
    name = next((v.decode() for n, v in fields(body) if n == 2), "")
    given = [_cost(v, scope) for n, v in fields(body) if n == 1] + [_cost(v, scope) for n, v in fields(body) if n == 3]
    spent = sum(value.cost for value in given)
    if name in _LOGICAL:
        return Value(spent)
    if name == _CHOICE:
        chosen = max(given[1:], key=lambda value: value.cost)
        return Value(given[0].cost + chosen.cost, chosen.node, max(value.size for value in given[1:]))
    if name in ("_[_]", "_[?_]", "optional.of", "value", "orValue"):
        node = given[0].node or {}
        inner = (node.get("items") or node.get("additionalProperties")) if "[" in name else node
        inner = inner if isinstance(inner, dict) else None
        return Value(spent + 1, inner, size_of(inner))
    return Value(spent + max(1.0, _work(name, given)), None, sum(v.size for v in given) if name == "_+_" else 1)


def _work(name: str, given: list[Value]) -> float:
    """What a function itself does with the sizes it is given."""
    sizes = [value.size for value in given]
    if name in ("startsWith", "endsWith"):
        return sizes[-1] * TRAVERSAL
    if name in ("==", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"):
        return min(sizes) * TRAVERSAL
    if name in ("matches", "find", "findAll"):
        return (sizes[0] + 1) * TRAVERSAL * max(1.0, sizes[1] * REGEX)
    if name == "contains":
        return sizes[0] * TRAVERSAL * max(1.0, sizes[1] * TRAVERSAL)
    if name in ("@in", "_in_"):
        return sizes[-1] if (given[-1].node or {}).get("type") == "array" else 1.0
    if name in ("isSorted", "sum", "min", "max", "indexOf", "lastIndexOf"):
        return sizes[0]
    if name.startswith("sets."):
        return sizes[0] * sizes[-1]
    if name in ("split", "join", "replace", "lowerAscii", "upperAscii", "trim", "url", "quantity", "ip", "cidr"):
        return sizes[0] * TRAVERSAL
    return sum(sizes) * TRAVERSAL if name == "_+_" else 1.0


def _loop(parts: dict[int, Any], scope: Mapping[str, Value]) -> Value:
    """A macro: its range once, and its condition and step for every item there may be."""
    over = _cost(parts[2], scope)
    start = _cost(parts[4], scope)
    node = over.node or {}
    item = node.get("items") if node.get("type") == "array" else None
    inner = {**scope, parts.get(3, b"").decode(): Value(1, start.node, start.size)}
    first, second = parts.get(1, b"").decode(), parts.get(8, b"").decode()
    values = node.get("additionalProperties") if isinstance(node.get("additionalProperties"), dict) else item
    if second:  # two variables: position or key, and value
        inner |= {first: Value(1), second: Value(1, values, size_of(values))}
    else:
        inner[first] = Value(1, item, size_of(item))
    turn = sum(_cost(parts[n], inner).cost for n in (5, 6) if n in parts)
    result = _cost(parts[7], inner) if 7 in parts else Value(0)
    return Value(over.cost + start.cost + over.size * turn + result.cost, result.node, result.size)
