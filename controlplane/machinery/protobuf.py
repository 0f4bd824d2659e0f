"""Kubernetes' protobuf bodies, decoded to the same objects their JSON would give.

Owns the envelope (`k8s\\0` + Unknown), the wire format, and the messages with a JSON form of their own (Quantity, Time,
IntOrString, RawExtension …). Driven by the committed tables `data/protobuf.gz`: a message's table is parsed when it is
first met. Zero values that mean "unset" in Go are left out, as Go's JSON would. Unknown fields of newer clients are
skipped. Every length is checked; nesting is bounded. Decodes only: answers are always JSON. Pure, apart from reading
its table once. Called by `wire`.
"""

from __future__ import annotations

import gzip
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any

import orjson

from controlplane.machinery.clock import rfc3339

MAGIC = b"k8s\x00"
MAX_NESTING = 100  # messages within messages: no real object comes near, a hostile one could go on for ever

_META = "k8s.io.apimachinery.pkg.apis.meta.v1."
_RUNTIME = "k8s.io.apimachinery.pkg.runtime."
_EXTENSIONS = "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1."

Object = dict[str, Any]


class Malformed(ValueError):  # noqa: N818
    """The bytes are no such message."""


class Unregistered(ValueError):  # noqa: N818
    """The envelope names a type that has no table."""


# number -> (JSON name, type, repeated, map, keep zero, embedded, drop empty)
_Field = tuple[str, str, bool, bool, bool, bool, bool]


class _Table:
    """One message. `sole` is the element's field when the JSON form is the list itself."""

    __slots__ = ("fields", "sole")

    def __init__(self, package: str, rows: list[Any]) -> None:
        self.sole = bool(rows) and rows[0] == "list"
        if self.sole:
            rows = [[1, "items", rows[1], rows[2]]]
        self.fields: dict[int, _Field] = {
            number: (name, package + kind if kind.startswith(".") else kind,
                     "r" in flags, "m" in flags, "k" in flags, "n" in flags, "z" in flags)
            for number, name, kind, flags in rows}


@cache
def _lines() -> dict[str, bytes]:
    packed = resources.files("controlplane.machinery.data").joinpath("protobuf.gz").read_bytes()
    rows = (line.partition(b"\t") for line in gzip.decompress(packed).splitlines())
    return {name.decode(): row for name, _, row in rows}


@cache
def _table(message: str) -> _Table:
    row = _lines().get(message)
    if row is None:
        raise Unregistered(message)
    return _Table(message.rpartition(".")[0], orjson.loads(row))


def kept_zeros(message: str) -> frozenset[str] | None:
    """The JSON names of the fields whose zero value is not the same as none; None for a message without a table."""
    if message not in _lines():
        return None
    kept: set[str] = set()
    for name, kind, _, _, keep, embedded, _ in _table(message).fields.values():
        if embedded:
            kept |= kept_zeros(kind) or set()
        elif keep:
            kept.add(name)
    return frozenset(kept)


_PACKAGES = (("io.k8s.apiextensions-apiserver.", "k8s.io.apiextensions_apiserver."), ("io.k8s.", "k8s.io."))


def message_of_definition(definition: str) -> str:
    """The message of a schema's definition: `io.k8s.api.core.v1.Pod` is `k8s.io.api.core.v1.Pod` on the wire."""
    for ours, theirs in _PACKAGES:
        if definition.startswith(ours):
            return theirs + definition.removeprefix(ours)
    return definition


@cache
def always_there(definition: str) -> frozenset[str]:
    """The JSON names of the fields of a schema's definition that Go prints even when nothing was set in them."""
    rows = orjson.loads(_lines().get(message_of_definition(definition), b"[]"))
    return frozenset(row[1] for row in rows if isinstance(row, list) and "v" in row[3])


# --- the wire ------------------------------------------------------------------------------------------------------

def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("unexpected EOF" if at >= len(data) else "proto: integer overflow")
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result & 0xffffffffffffffff, at
        shift += 7


def _part(data: bytes, at: int) -> tuple[int, int, Any, int]:
    """The field at `at`: number, wire type, value (int for varints, else bytes), where the next begins."""
    tag, at = _varint(data, at)
    wire = tag & 7
    if wire == 0:
        value, at = _varint(data, at)
        return tag >> 3, wire, value, at
    if wire == 2:
        size, at = _varint(data, at)
    elif wire in (1, 5):
        size = 8 if wire == 1 else 4
    else:
        raise Malformed(f"proto: illegal wireType {wire}")
    end = at + size
    if end > len(data):
        raise Malformed("unexpected EOF")
    return tag >> 3, wire, data[at:end], end


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of every field of a message: an int for varints, else bytes. Raises Malformed."""
    at = 0
    while at < len(data):
        number, _, value, at = _part(data, at)
        yield number, value


def _raw_fields(data: bytes) -> dict[int, Any]:
    """Number -> last value, of a message with scalar fields."""
    return dict(fields(data))


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Malformed("proto: invalid UTF-8 in a string") from error


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_WIRES = {"s": 2, "b": 2, "t": 0, "i": 0, "u": 0, "d": 1}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "s": _text, "b": lambda value: b64encode(value).decode(), "t": bool, "i": _signed, "u": int,
    "d": lambda value: struct.unpack("<d", value)[0]}


def _value(kind: str, wire: int, value: Any, depth: int) -> Any:
    scalar = _SCALARS.get(kind)
    if wire != _WIRES.get(kind, 2):
        raise Malformed(f"proto: wrong wireType = {wire}")
    if scalar is not None:
        return scalar(value)
    special = _SPECIAL.get(kind)
    return special(value, depth) if special is not None else _message(kind, value, depth + 1)


def _entry(kind: str, data: bytes, depth: int) -> tuple[str, Any]:
    """A map's entry: field 1 the key, field 2 the value."""
    key, value, seen = "", None, False
    at = 0
    while at < len(data):
        number, wire, part, at = _part(data, at)
        if number == 1 and wire == 2:
            key = _text(part)
        elif number == 2:
            value, seen = _value(kind, wire, part, depth), True
    if not seen:
        value = _value(kind, _WIRES.get(kind, 2), b"" if _WIRES.get(kind, 2) else 0, depth)
    return key, value


def _message(kind: str, data: bytes, depth: int) -> Any:
    """A message as its JSON would be."""
    if depth > MAX_NESTING:
        raise Malformed("proto: nested too deeply")
    table = _table(kind)
    fields = table.fields
    out: Object = {}
    at, size = 0, len(data)
    while at < size:
        number, wire, part, at = _part(data, at)
        field = fields.get(number)
        if field is None:
            continue
        name, of, repeated, mapped, keep, embedded, drop = field
        if repeated:
            items = out.setdefault(name, [])
            if wire == 2 and _WIRES.get(of, 2) == 0:  # packed
                items.extend(_packed(of, part))
            else:
                items.append(_value(of, wire, part, depth))
        elif mapped:
            key, value = _entry(of, part, depth)
            out.setdefault(name, {})[key] = value
        else:
            value = _value(of, wire, part, depth)
            if embedded:
                out.update(value)
            elif value is not None and (keep or not _zero(of, value)) and not (drop and value == {}):
                out[name] = value
    return out.get("items", []) if table.sole else out


def _packed(kind: str, data: bytes) -> list[Any]:
    items, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        items.append(_SCALARS[kind](value))
    return items


def _zero(kind: str, value: Any) -> bool:
    """Whether Go, with omitempty, would leave it out; a struct never is, but an IntOrString of 0 means unset."""
    return (kind in _WIRES or kind == _INT_OR_STRING) and not value


# --- messages with a JSON form of their own --------------------------------------------------------------------------

def _time(data: bytes, _: int) -> str | None:
    return rfc3339(_seconds(_raw_fields(data))) if data else None


def _micro_time(data: bytes, _: int) -> str | None:
    if not data:
        return None
    fields = _raw_fields(data)
    return f"{rfc3339(_seconds(fields))[:-1]}.{fields.get(2, 0) // 1000 % 1_000_000:06d}Z"


def _seconds(fields: dict[int, Any]) -> int:
    seconds = _signed(fields.get(1, 0))
    if not -62135596800 <= seconds <= 253402300799:
        raise Malformed("proto: a time outside years 1 to 9999")
    return seconds


def _duration(data: bytes, _: int) -> str:
    """Go's notation: 1h2m3.5s."""
    nanos = _signed(_raw_fields(data).get(1, 0))
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    if nanos < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if nanos >= size:
                return f"{sign}{_decimal(nanos, size)}{unit}"
        return "0s"
    minutes, rest = divmod(nanos, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{front}{_decimal(rest, 1_000_000_000)}s"


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0") if rest else str(whole)


def _int_or_string(data: bytes, _: int) -> int | str:
    fields = _raw_fields(data)
    return _text(fields.get(3, b"")) if fields.get(1) else _signed(fields.get(2, 0))


def _quantity(data: bytes, _: int) -> str:
    return _text(_raw_fields(data).get(1, b"")) or "0"


def _raw(data: bytes, depth: int) -> Any:
    """Bytes that are JSON, or once more an enveloped object."""
    raw = _raw_fields(data).get(1, b"")
    if raw.startswith(MAGIC):
        return _envelope(raw, depth + 1)
    try:
        return orjson.loads(raw) if raw else None
    except ValueError as error:
        raise Malformed(f"embedded JSON: {error}") from error


def _either(data: bytes, depth: int) -> Any:
    """JSONSchemaPropsOr…: a schema, or lists of schemas or texts, or a truth value."""
    many: list[Any] = []
    allows: bool | None = None
    at = 0
    while at < len(data):
        number, wire, part, at = _part(data, at)
        if wire == 0:
            allows = bool(part)
        elif number == 1:
            return _message(_EXTENSIONS + "JSONSchemaProps", part, depth + 1)
        else:
            many.append(part)
    return allows if allows is not None else many


def _schema_or_array(data: bytes, depth: int) -> Any:
    found = _either(data, depth)
    if not isinstance(found, list):
        return found
    return [_message(_EXTENSIONS + "JSONSchemaProps", part, depth + 1) for part in found]


def _schema_or_bool(data: bytes, depth: int) -> Any:
    found = _either(data, depth)
    if isinstance(found, list):  # field 2 is the schema here
        return _message(_EXTENSIONS + "JSONSchemaProps", found[-1], depth + 1) if found else False
    schema = _raw_fields(data).get(2)
    return _message(_EXTENSIONS + "JSONSchemaProps", schema, depth + 1) if isinstance(schema, bytes) else found


def _schema_or_strings(data: bytes, depth: int) -> Any:
    found = _either(data, depth)
    return [_text(part) for part in found] if isinstance(found, list) else found


_INT_OR_STRING = "k8s.io.apimachinery.pkg.util.intstr.IntOrString"
_SPECIAL: dict[str, Callable[[bytes, int], Any]] = {
    _META + "Time": _time, _META + "MicroTime": _micro_time, _META + "Duration": _duration, _META + "FieldsV1": _raw,
    _RUNTIME + "RawExtension": _raw, _INT_OR_STRING: _int_or_string,
    "k8s.io.apimachinery.pkg.api.resource.Quantity": _quantity, _EXTENSIONS + "JSON": _raw,
    _EXTENSIONS + "JSONSchemaPropsOrArray": _schema_or_array, _EXTENSIONS + "JSONSchemaPropsOrBool": _schema_or_bool,
    _EXTENSIONS + "JSONSchemaPropsOrStringArray": _schema_or_strings}


# --- the envelope ----------------------------------------------------------------------------------------------------

def message_of(api_version: str, kind: str) -> str:
    """The message of a type; options and other meta types may come under any group's version, and an old version that
    has no message of its own is written as v1 is."""
    group, _, version = api_version.rpartition("/")
    if group == "apiextensions.k8s.io":
        name = f"k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.{version}.{kind}"
    elif group == "apiregistration.k8s.io":
        name = f"k8s.io.kube_aggregator.pkg.apis.apiregistration.{version}.{kind}"
    else:
        name = f"k8s.io.api.{group.split('.')[0] or 'core'}.{version}.{kind}"
    stable = name.replace(f".{version}.", ".v1.")
    return next((known for known in (name, stable) if known in _lines()), _META + kind)


def _envelope(body: bytes, depth: int) -> Object:
    unknown = _raw_fields(body[len(MAGIC):])
    meta = _raw_fields(unknown.get(1, b""))
    api_version, kind = _text(meta.get(1, b"")), _text(meta.get(2, b""))
    if unknown.get(4) == b"application/json":
        try:
            found = orjson.loads(unknown.get(2, b""))
        except ValueError as error:
            raise Malformed(str(error)) from error
    else:
        try:
            found = _message(message_of(api_version, kind), unknown.get(2, b""), depth + 1)
        except Unregistered:
            raise Unregistered(f'no kind "{kind}" is registered for version "{api_version}"') from None
    if not isinstance(found, dict):
        raise Malformed("the enveloped value is no object")
    return {"apiVersion": api_version, "kind": kind, **found}


def decode(body: bytes) -> Object:
    """The object of a protobuf body. Raises Malformed or Unregistered, both ValueError."""
    if not body.startswith(MAGIC):
        raise Malformed("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        return _envelope(body, 0)
    except (AttributeError, TypeError) as error:  # a scalar where the envelope has a message
        raise Malformed("proto: wrong wireType") from error
