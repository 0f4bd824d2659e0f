"""The type check of decoded bodies: a fast yes for good ones, and a slow walk that says what Go's decoder would say.

Every write passes here, so each definition is compiled once into a closure that only answers whether a value fits.
When it does not, `_Walk` goes over the value again and collects the paths of unknown fields
(`spec.containers[0].foo`) and the type errors (`json: cannot unmarshal string into Go struct field
DeploymentSpec.spec.replicas of type int32`). The closure and the walk must agree; a test holds them to it.
Null fits everywhere: it means unset. Called by `schema` alone.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from controlplane.machinery import quantity
from controlplane.machinery.clock import parse_rfc3339

Node = dict[str, Any]
Fits = Callable[[Any], bool]
RANGES = {"int32": (-(1 << 31), (1 << 31) - 1), "int64": (-(1 << 63), (1 << 63) - 1)}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)").fullmatch  # no other ISO 8601
_GO_TYPES = {"integer": "int64", "number": "float64", "boolean": "bool", "string": "string"}


class Definitions(Protocol):
    def definition(self, name: str) -> Node: ...


@dataclass(frozen=True, slots=True)
class Problems:
    """`unknown`: paths of fields the type does not have; `errors`: messages, of which Go reports the first."""

    unknown: list[str]
    errors: list[str]

    def __bool__(self) -> bool:
        return bool(self.unknown or self.errors)


def _anything(_: Any) -> bool:
    return True


def _base64(value: Any) -> bool:
    try:
        if value.__class__ is str and ("\n" in value or "\r" in value):  # base64 tools wrap lines; Go passes over that
            value = value.replace("\n", "").replace("\r", "")
        binascii.a2b_base64(value, strict_mode=True)
    except (ValueError, TypeError):
        return value is None
    return True


def _quantity(value: Any) -> bool:
    if value.__class__ not in (str, int, float):
        return value is None
    try:
        quantity.parse(value)
    except ValueError:
        return False
    return True


def _time(value: Any) -> bool:
    if value.__class__ is not str:
        return value is None
    try:
        parse_rfc3339(value)
    except (ValueError, TypeError):
        return False
    return _RFC3339(value) is not None


def _int_or_string(value: Any) -> bool:
    low, high = RANGES["int32"]
    return value is None or value.__class__ is str or (value.__class__ is int and low <= value <= high)


def _number(value: Any) -> bool:
    return value is None or value.__class__ in (int, float)


def _whole(low: int, high: int) -> Fits:
    return lambda value: value is None or (value.__class__ is int and low <= value <= high)


_FORMATS: dict[str, Fits] = {"byte": _base64, "quantity": _quantity, "date-time": _time,
                             "int-or-string": _int_or_string}


class Checkers:
    """The compiled definitions of one set of schemas."""

    def __init__(self, schemas: Definitions) -> None:
        self._schemas = schemas
        self._compiled: dict[str, Fits] = {}

    def check(self, name: str, obj: Any) -> Problems:
        if (self._compiled.get(name) or self._definition(name))(obj):
            return Problems([], [])
        walk = _Walk(self._schemas)
        walk.value({"$ref": name}, obj, "", [], "")
        return Problems(walk.unknown, walk.errors)

    def _definition(self, name: str) -> Fits:
        found = self._compiled.get(name)
        if found is None:
            # a definition may contain itself: stand in with a look-up while it is being compiled
            self._compiled[name] = lambda value: self._compiled[name](value)
            found = self._compiled[name] = self._compile(self._schemas.definition(name))
        return found

    def _compile(self, node: Node) -> Fits:
        if "$ref" in node:
            return self._definition(node["$ref"])
        if node.get("x-kubernetes-preserve-unknown-fields"):
            return _anything if "type" not in node else lambda value: value is None or value.__class__ is dict
        kind = node["type"]
        if kind == "object":
            if "properties" in node:
                return self._struct(node["properties"])
            return _map(self._compile(node["additionalProperties"]), node["additionalProperties"])
        if kind == "array":
            return _list(self._compile(node["items"]), node["items"])
        if node.get("format") in _FORMATS:
            return _FORMATS[node["format"]]
        if kind == "integer":
            return _whole(*RANGES[node.get("format", "int64")])
        if kind == "number":
            return _number
        cls = str if kind == "string" else bool
        return lambda value: value is None or value.__class__ is cls

    def _struct(self, properties: dict[str, Node]) -> Fits:
        # texts and bools, most of all fields, are tested by their class without a call
        simple: dict[str, type] = {}
        rest: dict[str, Fits] = {}
        lazy = {field: sub for field, sub in properties.items()
                if "$ref" in sub or sub.get("type") in ("object", "array")}
        for field, sub in properties.items():
            if field not in lazy:
                if sub.get("type") in ("string", "boolean") and "format" not in sub:
                    simple[field] = str if sub["type"] == "string" else bool
                rest[field] = self._compile(sub)

        def fits(value: Any) -> bool:
            if value.__class__ is not dict:
                return value is None
            for field, sub in value.items():
                if simple.get(field) is sub.__class__:
                    continue
                test = rest.get(field)
                if test is None:
                    if field not in lazy:
                        return False
                    test = rest[field] = self._compile(lazy[field])  # most definitions' corners are never visited
                if not test(sub):
                    return False
            return True

        return fits


def _is_text(node: Node) -> bool:
    return node.get("type") == "string" and "format" not in node


def _map(test: Fits, node: Node) -> Fits:
    if _is_text(node):
        return lambda value: value is None or (
            value.__class__ is dict and all(v.__class__ is str or v is None for v in value.values()))
    return lambda value: value is None or (value.__class__ is dict and all(map(test, value.values())))


def _list(test: Fits, node: Node) -> Fits:
    return lambda value: value is None or (value.__class__ is list and all(map(test, value)))


class _Walk:
    """One pass over a value that does not fit. `path` is of the strict decoder, `fields` of the type errors."""

    def __init__(self, schemas: Definitions) -> None:
        self._schemas = schemas
        self.unknown: list[str] = []
        self.errors: list[str] = []

    def value(self, node: Node, value: Any, path: str, fields: list[str], struct: str) -> None:
        """`struct` is the Go type that holds the field, "" at the top."""
        if value is None:
            return
        own = ""
        if "$ref" in node:
            own = node["$ref"].rsplit(".", 1)[1]
            node = self._schemas.definition(node["$ref"])
        if node.get("x-kubernetes-preserve-unknown-fields"):
            if node.get("type") == "object" and not isinstance(value, dict):
                self._mismatch(value, "map[string]interface {}", fields, struct)
            return
        kind = node["type"]
        if kind == "object":
            if not isinstance(value, dict):
                self._mismatch(value, self._go(node, own), fields, struct)
            elif "properties" in node:
                self._struct(node, value, path, fields, own)
            else:
                for key, sub in value.items():
                    self.value(node["additionalProperties"], sub, f"{path}.{key}", fields, struct)
        elif kind == "array":
            if not isinstance(value, list):
                self._mismatch(value, self._go(node, own), fields, struct)
            else:
                for index, sub in enumerate(value):
                    self.value(node["items"], sub, f"{path}[{index}]", fields, struct)
        else:
            self._scalar(node, value, fields, struct)

    def _struct(self, node: Node, value: Node, path: str, fields: list[str], own: str) -> None:
        for field, sub in value.items():
            where = f"{path}.{field}" if path else field
            known = node["properties"].get(field)
            if known is None:
                self.unknown.append(where)
            else:
                self.value(known, sub, where, [*fields, field], own)

    def _scalar(self, node: Node, value: Any, fields: list[str], struct: str) -> None:
        kind, form = node["type"], node.get("format", "")
        if form in _FORMATS:
            if not _FORMATS[form](value):
                self.errors.append(_format_error(form, value))
            return
        if kind == "integer":
            low, high = RANGES[form or "int64"]
            if value.__class__ is not int or not low <= value <= high:
                self._mismatch(value, form or "int64", fields, struct, exact=True)
        elif kind == "number":
            if value.__class__ not in (int, float):
                self._mismatch(value, "float64", fields, struct)
        elif value.__class__ is not (str if kind == "string" else bool):
            self._mismatch(value, _GO_TYPES[kind], fields, struct)

    def _mismatch(self, value: Any, wanted: str, fields: list[str], struct: str, exact: bool = False) -> None:
        found = _shown(value, exact)
        if not struct:
            self.errors.append(f"json: cannot unmarshal {found} into Go value of type {wanted}")
        else:
            self.errors.append(f"json: cannot unmarshal {found} into Go struct field {struct}.{'.'.join(fields)} "
                               f"of type {wanted}")

    def _go(self, node: Node, own: str) -> str:
        """The name of the Go type, as far as the schema knows it."""
        if node.get("type") == "array":
            return "[]" + self._element(node["items"])
        if "additionalProperties" in node:
            return "map[string]" + self._element(node["additionalProperties"])
        return f"v1.{own}" if own else "map[string]interface {}"

    def _element(self, node: Node) -> str:
        if "$ref" in node:
            package, name = node["$ref"].rsplit(".", 2)[1:]
            return f"{package}.{name}"
        if node.get("type") in ("array", "object"):
            return self._go(node, "")
        return "uint8" if node.get("format") == "byte" else str(node.get("format") or _GO_TYPES[node["type"]])


def _shown(value: Any, exact: bool = False) -> str:
    """What Go calls a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return f"number {value}" if exact else "number"
    return {str: "string", list: "array", dict: "object"}.get(value.__class__, "null")


def _format_error(form: str, value: Any) -> str:
    if form == "quantity":
        try:
            quantity.parse(value if isinstance(value, str) else "true")
        except ValueError as error:
            return str(error)
    if form == "byte":
        if isinstance(value, str):
            return f"illegal base64 data at input byte {_bad_base64(value)}"
        return f"json: cannot unmarshal {_shown(value)} into Go value of type []uint8"
    if form == "date-time" and isinstance(value, str):
        return f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" as "2006"'
    wanted = "int32" if form == "int-or-string" else "string"
    return f"json: cannot unmarshal {_shown(value)} into Go value of type {wanted}"


def _bad_base64(text: str) -> int:
    """The offset at which Go's decoder gives up."""
    alphabet = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    for index, c in enumerate(text.replace("\n", "").replace("\r", "")):
        if c not in alphabet:
            if c == "=" and index % 4 >= 2 and text[index:] == "=" * (4 - index % 4):
                continue
            return index
    return len(text) - len(text) % 4
