"""What a CEL rule may cost at most, from its schema's bounds alone: rules that could take too long are never accepted.

Owns the estimate, step for step upstream's, its oddities included: a rule upstream's server takes is taken here, and
one it refuses is refused with the same factor. Every step has a cost, and a loop costs its body times the most items
its list may have. Sizes are found by the path from `self` to a value, so what a function returns has none but what the
function says of it. Reads the checked expression as the CEL library serializes it. Pure. Called by `checks`.

Upstream: github.com/google/cel-go/checker/cost.go, k8s.io/apiserver/pkg/cel/library/cost.go,
k8s.io/apiextensions-apiserver/pkg/{apiserver/schema/cel,apis/apiextensions/validation}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from controlplane.machinery.cel import macros
from controlplane.machinery.cel.functions import (
    LIST,
    MAP,
    MAX,
    NOMINAL,
    TRAVERSAL,
    UNKNOWN,
    Entries,
    Path,
    Size,
    Value,
    add,
    by_overload,
    of_text,
    scaled,
    times,
    union,
)
from controlplane.machinery.cel.shapes import REQUEST, Shape
from controlplane.machinery.protobuf import fields

PER_RULE = 10_000_000  # upstream's bound of one rule, at all places it applies to
PER_SCHEMA = 100_000_000  # and of all rules of a version
_LOOP = ("@result", "__result__")  # the variable a macro gathers its result in
_PAIR_OF_LIST, _PAIR_OF_MAP = "@places and items", "@keys and values"  # what a loop over pairs goes over
_PRIMITIVES = {1: "bool", 2: "int", 3: "uint", 4: "double", 5: "string", 6: "bytes"}
_SCALARS = frozenset(("bool", "double", "duration", "int", "timestamp", "uint"))
_TOKENS = {"int": "int64", "uint": "uint64"}  # how overloads call the kinds they do not call by their name
# Functions whose values are of a kind the library knows as dynamic.
_MAKES = {"quantity": "quantity", "add": "quantity", "sub": "quantity", "url": "url", "ip": "ip", "cidr": "cidr",
          "masked": "cidr", "semver": "semver", "getQuery": "map"}
_COMPARABLE = frozenset(("quantity", "url", "ip", "cidr", "semver"))  # of which comparing two costs one
@dataclass(frozen=True, slots=True)
class Variable:
    """A loop's variable: `size` and `entries` are those of what it is bound to."""

    path: Path
    size: Size | None = None
    entries: Entries | None = None


# --- a whole schema -------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Place:
    """A node of a structural schema: at how many places it may stand, None when nothing bounds it; `uncorrelatable` is
    the path of the outermost node above whose parts cannot be told apart from those of a former object."""

    path: str
    node: dict[str, Any]
    count: int | None = 1
    uncorrelatable: str = ""


def placed(schema: Any, path: str, count: int | None = 1, uncorrelatable: str = "") -> Iterator[Place]:
    """Every node of a structural schema, deepest first, as upstream looks at them."""
    for key, bound in (("additionalProperties", "maxProperties"), ("items", "maxItems")):
        if isinstance(schema.get(key), dict):
            most = schema.get(bound)
            inside = None if most is None or count is None else times(count, max(most, 0))
            lost = key == "items" and schema.get("x-kubernetes-list-type") != "map"
            yield from placed(schema[key], f"{path}.{key}", inside, uncorrelatable or (path if lost else ""))
    lost = schema.get("x-kubernetes-map-type") == "atomic"
    for name, sub in (schema.get("properties") or {}).items():
        if isinstance(sub, dict):
            yield from placed(sub, f"{path}.properties[{name}]", count, uncorrelatable or (path if lost else ""))
    yield Place(path, schema, count, uncorrelatable)


def everywhere(cost: int, places: int | None, of: Shape) -> int:
    """What a rule costs at all places its node may stand in; unbounded ones are as many as fit into a request."""
    return times(cost, REQUEST // (of.least + 1) if places is None else places)


def exceeded(what: str, cost: int, limit: int) -> str:
    """Upstream's words for too much."""
    factor = cost / limit
    shown = "more than 100x" if factor > 100 else f"{factor:f}x" if factor < 1.5 else f"{factor:.1f}x"
    return (f"{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, "
            "and maxLength where arrays, maps, and strings are declared)")


# --- one expression -------------------------------------------------------------------------------------------------

def estimate(serialized: bytes, root: Shape) -> int:
    """The most a compiled expression may cost over `self` and `oldSelf` of this shape."""
    return _Coster(dict(fields(serialized))[2], root).cost()


def _type(body: bytes) -> Shape:
    """A type as the checker found it; what is not of interest is dynamic."""
    number: int
    value: Any
    number, value = next(iter(fields(body)), (0, b""))
    if number == 3:
        return Shape(_PRIMITIVES.get(value, "dyn"))
    if number == 5:
        return Shape({2: "timestamp", 3: "duration"}.get(value, "dyn"))
    if number in (6, 7, 14):  # lists, maps, and optionals, which are as large as what they hold
        parts: dict[Any, Any] = dict(fields(value))
        inner = _type(parts.get(1 if number == 6 else 2, b""))
        return inner if number == 14 else Shape("list" if number == 6 else "map", element=inner)
    return Shape("struct") if number == 9 else Shape("dyn")


class _Coster:
    """One walk over a checked expression."""

    def __init__(self, checked: bytes, root: Shape) -> None:
        self._root = root
        self._types: dict[Any, bytes] = {}
        self._overloads: dict[Any, list[str]] = {}
        self._top = b""
        self._variables: dict[str, Variable] = {}
        for number, value in fields(checked):
            if number == 4:
                self._top = value
            elif number in (2, 3):
                entry: dict[Any, Any] = dict(fields(value))
                if number == 3:
                    self._types[entry.get(1, 0)] = entry.get(2, b"")
                else:
                    self._overloads[entry.get(1, 0)] = [v.decode() for n, v in fields(entry[2]) if n == 3]

    def cost(self) -> int:
        return self._cost(self._top).cost

    def _cost(self, expression: bytes) -> Value:
        parts = dict(fields(expression))
        kind = next((number for number in parts if number != 2), 0)
        ident, body = parts.get(2, 0), parts.get(kind, b"")
        if kind == 3:
            return _constant(body)
        if kind == 4:
            return self._named(ident, dict(fields(body)).get(1, b"").decode())
        if kind == 5:
            return self._selected(ident, dict(fields(body)))
        if kind == 6:
            return self._called(ident, body)
        if kind == 7:
            return self._list([self._cost(value) for number, value in fields(body) if number == 1], ident)
        if kind == 8:
            return self._map([dict(fields(value)) for number, value in fields(body) if number == 2], ident)
        return self._loop(ident, dict(fields(body))) if kind == 9 else Value(0)

    def _value(self, ident: int, cost: int, path: Path, size: Size | None = None, **known: Any) -> Value:
        """A value of which nothing but its place and type may be known: those give its size."""
        found = self._root.at(path[1:]) if path else None
        kind = found if found is not None and path[0] in ("self", "oldSelf") else _type(self._types.get(ident, b""))
        if size is None and found is not None:
            size = (0, found.most)
        elif size is None and kind.kind in _SCALARS:
            size = (1, 1)
        return Value(cost, path, size, type=kind, **known)

    def _named(self, ident: int, name: str) -> Value:
        variable = self._variables.get(name) or Variable((name,))
        made = self._value(ident, 1, variable.path, entries=variable.entries)
        return made if made.size is not None else replace(made, size=variable.size)

    def _selected(self, ident: int, parts: dict[int, Any]) -> Value:
        operand = self._cost(parts[1])
        if parts.get(3):
            return self._value(ident, operand.cost, ())
        step = 1 if operand.type.kind in ("map", "struct") else 0
        return self._value(ident, min(MAX, operand.cost + step), (*operand.path, parts.get(2, b"").decode()))

    def _list(self, parts: list[Value], ident: int) -> Value:
        inner = (0 if not parts else MAX, 0)
        for part in parts:
            inner = union(inner, part.known)
        cost = min(MAX, LIST + sum(p.cost for p in parts))
        return self._value(ident, cost, (), (len(parts), len(parts)), entries=("list", (1, 1), inner))

    def _map(self, entries: list[dict[int, Any]], ident: int) -> Value:
        keys = [self._cost(entry[3]) for entry in entries if 3 in entry]
        values = [self._cost(entry[4]) for entry in entries if 4 in entry]
        sizes = [(0 if not entries else MAX, 0)] * 2
        for index, side in enumerate((keys, values)):
            for one in side:
                sizes[index] = union(sizes[index], one.known)
        cost = min(MAX, MAP + sum(v.cost for v in (*keys, *values)))
        return self._value(ident, cost, (), (len(entries), len(entries)), entries=("map", sizes[0], sizes[1]))

    # --- loops -------------------------------------------------------------------------------------------------------

    def _loop(self, ident: int, parts: dict[int, Any]) -> Value:
        """A macro: its range once, and its condition and step for every item there may be."""
        over, start = self._cost(parts[2]), self._cost(parts[4])
        first, accumulator = (parts.get(n, b"").decode() for n in (1, 3))
        outside = dict(self._variables)
        self._variables[accumulator] = Variable(start.path, start.size, start.entries)
        bind = accumulator not in _LOOP and over.size == (0, 0)
        if bind:  # one half of a pair: upstream's loop gives that for nothing
            result = self._cost(parts[7])
            self._variables = outside
            return replace(result, cost=min(MAX, start.cost + result.cost), path=())
        container = over.entries[0] if over.entries else over.type.kind
        keys, values = (over.entries[1], over.entries[2]) if over.entries else (None, None)
        listed = container == "list"
        if first.startswith(macros.PAIR):
            both = _PAIR_OF_LIST if listed else _PAIR_OF_MAP
            self._variables[first] = Variable((*over.path, both), entries=over.entries)
        else:
            self._variables[first] = Variable((*over.path, "@items" if listed else "@keys"),
                                              values if listed else keys)
        condition = self._cost(parts[5]) if 5 in parts else Value(0)
        step = self._cost(parts[6]) if 6 in parts else Value(0)
        self._variables.pop(first, None)
        if first in outside:
            self._variables[first] = outside[first]
        result = self._cost(parts[7]) if 7 in parts else Value(0)
        self._variables = outside
        turns = times(over.known[1], min(MAX, step.cost + condition.cost))
        cost = min(MAX, over.cost + start.cost + result.cost + turns)
        if start.entries:  # it makes a list or map
            return self._value(ident, cost, (), over.known, entries=step.entries)
        return self._value(ident, cost, (), start.size)

    def _half(self, ident: int, pair: Value, which: int) -> Value:
        """The first or second of the two variables of a loop that `macros` made one."""
        names = ("@indices", "@items") if pair.path[-1] == _PAIR_OF_LIST else ("@keys", "@values")
        sizes = pair.entries[1:] if pair.entries else (None, None)
        return self._value(ident, 0, (*pair.path[:-1], names[which]), sizes[which])

    # --- calls -------------------------------------------------------------------------------------------------------

    def _called(self, ident: int, body: bytes) -> Value:
        name = next((v.decode() for n, v in fields(body) if n == 2), "")
        given = [self._cost(v) for n, v in fields(body) if n == 3]
        target = next((self._cost(v) for n, v in fields(body) if n == 1), None)
        if name == "dyn":
            return replace(given[0], cost=min(MAX, given[0].cost + 1), path=(), type=Shape("dyn"))
        if name == macros.ENTRIES and target is not None:
            return target
        if name == macros.MERGED and target is not None:
            return replace(target, type=Shape("map"), entries=None)
        if name == "_[_]" and given[0].path[-1:] in ((_PAIR_OF_LIST,), (_PAIR_OF_MAP,)):
            return self._half(ident, given[0], given[1].literal or 0)
        if name == "_[_]":
            inside = given[0].type.kind == "list" or "index_list" in self._overloads.get(ident, ())
            sizes = given[0].entries[2] if given[0].entries else None
            return self._value(ident, min(MAX, given[0].cost + given[1].cost + 1),
                               (*given[0].path, "@items" if inside else "@values"), sizes)
        everything = given if target is None else [target, *given]
        work, size = self._work(name, ident, target, given)
        paid = [value.cost for value in everything]
        if name == "_?_:_":
            paid = [paid[0], max(paid[1:])]
        made = self._value(ident, min(MAX, sum(paid) + work), (), size, entries=_entries(name, given))
        kind = _MAKES.get(name)
        if name in ("sum", "min", "max") and target is not None and target.type.element:
            kind = target.type.element.kind
            made = replace(made, size=made.size or ((1, 1) if kind in _SCALARS else None))
        return made if kind is None else replace(made, type=Shape(kind))

    def _work(self, name: str, ident: int, target: Value | None, given: list[Value]) -> tuple[int, Size | None]:
        """What a function itself does with the sizes it is given, and the size of what it returns."""
        if name in ("_&&_", "_||_"):
            return 0, None
        if name == "_?_:_":
            return 0, union(given[1].known, given[2].known)
        if name in NOMINAL:
            return 1, None
        if (found := of_text(name, target, given)) is not None:
            return found
        if (found := self._of_lists(name, target, given)) is not None:
            return found
        if name == "_==_" and given[0].type.kind == given[1].type.kind and given[0].type.kind in _COMPARABLE:
            return 1, None
        work, size = 0, None
        for overload in self._narrowed(ident, given):
            cost, made = by_overload(overload, target, given)
            work = max(work, cost)
            size = size if made is None else made if size is None else union(size, made)
        return work, size

    def _narrowed(self, ident: int, given: list[Value]) -> list[str]:
        """The overloads that fit: fewer than the checker found where it could not see a type."""
        overloads = self._overloads.get(ident, [])
        for value in given if len(overloads) > 1 else ():
            token = _TOKENS.get(value.type.kind, value.type.kind)
            overloads = [one for one in overloads if token in one] or overloads
        return overloads

    def _of_lists(self, name: str, target: Value | None, given: list[Value]) -> tuple[int, Size | None] | None:
        if name in ("isSorted", "sum", "max", "min", "indexOf", "lastIndexOf") and target is not None:
            if target.type.kind != "list":
                return scaled(target.known[1], TRAVERSAL), None
            element = self._element(target)
            return times(target.known[1], 1 + (0 if element is None else scaled(element[1], TRAVERSAL))), None
        if name == "join" and target is not None:
            inner = self._element(target, anything=True) or UNKNOWN
            size = times(target.known[0], inner[0]), times(target.known[1], inner[1])
            if given:
                between = [max(0, n - 1) for n in target.known]
                size = add(size, (times(given[0].known[0], between[0]), times(given[0].known[1], between[1])))
            return scaled(size[1], TRAVERSAL), size
        if name.startswith("sets."):
            product = times(given[0].known[1], given[1].known[1])
            return min(MAX, scaled(product, 2.0 if name == "sets.equivalent" else 1.0) + 1), None
        return None

    def _element(self, target: Value, anything: bool = False) -> Size | None:
        """How large the texts of a list may be; None of a list of others, unless of `anything`."""
        element = target.type.element or Shape("dyn")
        if not anything and element.kind not in ("string", "bytes"):
            return None
        found = self._root.at((*target.path, "@items")[1:]) if target.path else None
        return UNKNOWN if found is None else (0, found.most)


def _constant(body: bytes) -> Value:
    number, value = next(iter(fields(body)), (0, b""))
    size = len(value.decode()) if number == 6 else len(value) if number == 7 else 1
    kind = {6: "string", 7: "bytes", 3: "int", 4: "uint", 5: "double", 2: "bool"}.get(number, "dyn")
    return Value(0, (), (size, size), type=Shape(kind), literal=value if number == 3 else None)


def _entries(name: str, given: list[Value]) -> Entries | None:
    """What is known of the items of a list or map that a call joins or chooses."""
    if name not in ("_+_", "_?_:_"):
        return None
    a, b = given[-2].entries, given[-1].entries
    return (a[0], union(a[1], b[1]), union(a[2], b[2])) if a and b else None
