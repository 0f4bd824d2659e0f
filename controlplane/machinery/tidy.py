"""Brings a decoded body to the one form its Go type would have: what Go cannot tell from absent is absent.

Null is never kept; `""`, `0`, `false` and empty lists and maps stay only in fields where Go distinguishes them
(pointers) or always prints them. So `hostNetwork: false` written by hand and left out by a typed client are the same
pod, an update that only differs there changes nothing, and code after this point meets no null. Which zeros mean
something comes with the protobuf tables, which were read from the Go structs. Bytes and times are written as Go writes
them, these in UTC with no or six decimals: its clients read microseconds in no other form. Values without a schema (raw
extensions) are untouched. In place, compiled once per definition; `strategy` runs it on every write.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

from controlplane.machinery import protobuf, schema

Node = dict[str, Any]
Rule = Callable[[Any], bool | str]  # tidies the value; True when the field should go, text to take its place
_TIMES = "io.k8s.apimachinery.pkg.apis.meta.v1."
_ALWAYS_KEPT = frozenset(("quantity", "int-or-string", "date-time"))


def tidy(definition: str, obj: Node) -> None:
    """Bring `obj`, a body of this definition, to its one form."""
    if definition in schema.load():
        _of(definition)(obj)


@cache
def _of(definition: str) -> Rule:
    """The rule of a whole definition; its fields' rules are made when a body first shows them."""
    node = schema.load().definition(definition)
    kept = protobuf.kept_zeros(protobuf.message_of_definition(definition))
    return _struct(node.get("properties") or {}, kept) if "properties" in node else _untouched


def _untouched(_: Any) -> bool:
    return False


def _empty(value: Any) -> bool:
    return not value


def _bytes(value: Any) -> bool | str:
    """Base64 without the line ends and odd last bits that decoders pass over."""
    if value.__class__ is not str:
        return False
    text: str = value.replace("\n", "").replace("\r", "") if "\n" in value or "\r" in value else value
    try:
        whole = text[:-4] + base64.b64encode(base64.b64decode(text[-4:])).decode() if text.endswith("=") else text
    except ValueError:
        return False
    return whole if whole != value else False


def _time(value: Any) -> bool | str:
    if value.__class__ is not str or (len(value) == 20 and value[19] == "Z"):
        return False
    return _canonical(value, "seconds")


def _micro_time(value: Any) -> bool | str:
    if value.__class__ is not str or (len(value) == 27 and value[19] == "." and value[26] == "Z"):
        return False
    return _canonical(value, "microseconds")


def _canonical(text: str, precision: str) -> bool | str:
    """The time in UTC, cut to the precision; False when it is none."""
    head, point, tail = text.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    whole = f"{head}.{tail[:digits][:6]:0<6}{tail[digits:]}" if point else text
    try:
        when = datetime.fromisoformat(whole.replace("Z", "+00:00").replace("z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return when.isoformat(timespec=precision).removesuffix("+00:00") + "Z"


def _struct(properties: dict[str, Node], kept: frozenset[str] | None) -> Rule:
    rules: dict[str, Rule] = {}

    def rule(value: Any) -> bool:
        if value.__class__ is not dict:
            return False
        stale: list[str] | None = None
        for field, sub in value.items():
            if sub is not None:
                own = rules.get(field)
                if own is None:
                    own = rules[field] = (_field(properties[field], kept is None or field in kept)
                                          if field in properties else _untouched)
                if own is _untouched or not (found := own(sub)):
                    continue
                if found is not True:
                    value[field] = found  # changes no key: safe while iterating
                    continue
            stale = [field] if stale is None else [*stale, field]
        for field in stale or ():
            del value[field]
        return False

    return rule


def _field(node: Node, keep: bool) -> Rule:
    if "$ref" in node:
        if node["$ref"] in (_TIMES + "Time", _TIMES + "MicroTime"):
            return _time if node["$ref"] == _TIMES + "Time" else _micro_time
        found = schema.load().definition(node["$ref"])
        return _of(node["$ref"]) if "properties" in found else _untouched
    kind = node.get("type")
    if kind == "array":
        return _each(node["items"], keep, list)
    if kind == "object" and "additionalProperties" in node:
        return _each(node["additionalProperties"], keep, dict)
    if node.get("format") == "byte":
        return _bytes if keep else lambda value: _bytes(value) or not value
    if keep or node.get("format") in _ALWAYS_KEPT or kind not in ("string", "integer", "number", "boolean"):
        return _untouched
    return _empty


def _each(node: Node, keep: bool, container: Any) -> Rule:
    """A list's or map's rule: null elements become the zero value, as in Go."""
    inner = _field(node, True)
    zero: Any = _zero(node)

    def rule(value: Any) -> bool:  # value[at] below changes no key: safe while iterating
        if value.__class__ is not container:
            return False
        if not value:
            return not keep
        pairs: Any = value.items() if container is dict else enumerate(value)
        for at, item in pairs:
            if item is None and zero is not None:
                value[at] = {} if zero == {} else zero
            elif inner is not _untouched and (found := inner(item)).__class__ is str:
                value[at] = found
        return False

    return rule


def _zero(node: Node) -> Any:
    """What null means as an element; None where null is a value of its own."""
    if "$ref" in node:
        found = schema.load().definition(node["$ref"])
        if "properties" in found:
            return {}
        return "0" if found.get("format") == "quantity" else None
    return {"string": "", "integer": 0, "number": 0, "boolean": False, "array": None}.get(node.get("type", ""))

