"""OpenAPI documents as protobuf, which client-go asks for first: the messages of gnostic's OpenAPIv2 and OpenAPIv3.

Owns the tables of those messages, as far as our documents and custom kinds use them, and the encoding by them. Promises
that every field the tables know reaches the bytes, and that what they cannot say (a default that is an object, in v3)
is left out, as upstream leaves it out. Never builds a document. Called by `openapi`, on a thread, for bytes it keeps.

Source of the field numbers: github.com/google/gnostic-models, OpenAPIv2.proto and OpenAPIv3.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import orjson

Encode = Callable[[Any], bytes | None]  # a value's bytes, without tag and length; None for what cannot be said
_VARINT, _FIXED, _BYTES = 0, 1, 2


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, wire: int, data: bytes) -> bytes:
    head = _varint(number << 3 | wire)
    return head + data if wire != _BYTES else head + _varint(len(data)) + data


def _text(value: Any) -> bytes:
    return str(value).encode()


def _any(value: Any) -> bytes:
    """Any value as YAML, of which JSON is a part."""
    return _field(2, _BYTES, orjson.dumps(value) + b"\n")


class Message:
    """Encodes a JSON object as a message: `fields` are number, kind and, of messages, their encoding by JSON name.

    Kinds: `s` string, `b` bool, `i` int64, `d` double, `m` message, `*` repeated messages, `s*` repeated strings. `x`
    is the number of the field for `x-…`, `rest` number and encoding of what any other name holds, as pairs of both."""

    def __init__(self, x: int = 0) -> None:
        self.fields: dict[str, tuple[int, str, Encode | None]] = {}
        self.rest: tuple[int, Encode] | None = None
        self._x = x

    def scalars(self, **numbers: str) -> Message:
        """Fields told as `name="25s"`: number and kind. `ref` stands for `$ref`."""
        for name, told in numbers.items():
            digits = told.rstrip("sbid*")
            self.fields["$ref" if name == "ref" else name] = (int(digits), told[len(digits):], None)
        return self

    def __call__(self, value: Any) -> bytes | None:
        return b"".join(self._parts(value)) if isinstance(value, dict) else None

    def _parts(self, value: dict[str, Any]) -> Iterator[bytes]:
        for name, what in value.items():
            if name in self.fields:
                yield from _encoded(what, *self.fields[name])
            elif self._x and name.startswith("x-"):
                yield _field(self._x, _BYTES, _pair(name, _any(what)))
            elif self.rest is not None and (data := self.rest[1](what)) is not None:
                yield _field(self.rest[0], _BYTES, _pair(name, data))


def _pair(name: str, value: bytes) -> bytes:
    return _field(1, _BYTES, name.encode()) + _field(2, _BYTES, value)


def _encoded(value: Any, number: int, kind: str, encode: Encode | None) -> Iterator[bytes]:
    match kind:
        case "s":
            yield _field(number, _BYTES, _text(value))
        case "s*":
            yield from (_field(number, _BYTES, _text(one)) for one in value)
        case "b" | "i":
            yield _field(number, _VARINT, _varint(int(value)))
        case "d":
            yield _field(number, _FIXED, struct.pack("<d", value))
        case _:
            assert encode is not None
            for one in value if kind == "*" else (value,):
                if (data := encode(one)) is not None:
                    yield _field(number, _BYTES, data)


def _one(number: int, encode: Encode) -> Encode:
    """A message whose field `number` is the value."""
    def encoded(value: Any) -> bytes | None:
        data = encode(value)
        return None if data is None else _field(number, _BYTES, data)
    return encoded


def _named(number: int, encode: Encode, x: int = 0) -> Message:
    """A message of pairs in its field `number`: any name and what it holds."""
    made = Message(x)
    made.rest = (number, encode)
    return made


def _or_reference(encode: Encode) -> Encode:
    """The choice between a thing (1) and a reference to one (2)."""
    reference = Message().scalars(ref="1s", summary="2s", description="3s")

    def encoded(value: Any) -> bytes | None:
        return _one(2, reference)(value) if isinstance(value, dict) and "$ref" in value else _one(1, encode)(value)
    return encoded


def _schema_or_boolean(encode: Encode) -> Encode:
    def encoded(value: Any) -> bytes | None:
        return _field(2, _VARINT, _varint(value)) if isinstance(value, bool) else _one(1, encode)(value)
    return encoded


def _default(value: Any) -> bytes | None:
    """A number (1), boolean (2) or text (3): no more can a v3 message hold."""
    if isinstance(value, bool):
        return _field(2, _VARINT, _varint(value))
    if isinstance(value, (int, float)):
        return _field(1, _FIXED, struct.pack("<d", value))
    return _field(3, _BYTES, _text(value)) if isinstance(value, str) else None


def _listed(number: int, encode: Encode) -> Encode:
    """One value or several, as a message of a repeated field."""
    def encoded(value: Any) -> bytes | None:
        return b"".join(_encoded(value if isinstance(value, list) else [value], number, "*", encode))
    return encoded


_METHODS = ("get", "put", "post", "delete", "options", "head", "patch")


def _v2() -> Message:
    schema = Message(31).scalars(
        ref="1s", format="2s", title="3s", description="4s", multipleOf="6d", maximum="7d", exclusiveMaximum="8b",
        minimum="9d", exclusiveMinimum="10b", maxLength="11i", minLength="12i", pattern="13s", maxItems="14i",
        minItems="15i", uniqueItems="16b", maxProperties="17i", minProperties="18i", required="19s*",
        discriminator="26s", readOnly="27b")
    schema.fields |= {
        "default": (5, "m", _any), "enum": (20, "*", _any),
        "additionalProperties": (21, "m", _schema_or_boolean(schema)), "type": (22, "m", _listed(1, _text)),
        "items": (23, "m", _listed(1, schema)), "allOf": (24, "*", schema), "properties": (25, "m", _named(1, schema)),
        "example": (30, "m", _any), "externalDocs": (29, "m", Message(3).scalars(description="1s", url="2s"))}
    response = Message(5).scalars(description="1s")
    response.fields["schema"] = (2, "m", _one(1, schema))
    operation = Message(13).scalars(tags="1s*", summary="2s", description="3s", operationId="5s", produces="6s*",
                                    consumes="7s*", schemes="10s*", deprecated="11b")
    operation.fields["responses"] = (9, "m", _named(1, _one(1, response), x=2))
    path = Message(10).scalars(ref="1s")
    path.fields |= {method: (number, "m", operation) for number, method in enumerate(_METHODS, 2)}
    document = Message(16).scalars(swagger="1s", host="3s", basePath="4s", schemes="5s*", consumes="6s*",
                                   produces="7s*")
    document.fields |= {"info": (2, "m", Message(7).scalars(title="1s", version="2s", description="3s")),
                        "paths": (8, "m", _named(2, path, x=1)), "definitions": (9, "m", _named(1, schema))}
    return document


def _v3() -> Message:
    schema = Message(36).scalars(
        nullable="1b", readOnly="3b", writeOnly="4b", deprecated="8b", title="9s", multipleOf="10d", maximum="11d",
        exclusiveMaximum="12b", minimum="13d", exclusiveMinimum="14b", maxLength="15i", minLength="16i", pattern="17s",
        maxItems="18i", minItems="19i", uniqueItems="20b", maxProperties="21i", minProperties="22i", required="23s*",
        type="25s", description="34s", format="35s")
    some = _or_reference(schema)
    schema.fields |= {
        "externalDocs": (6, "m", Message(3).scalars(description="1s", url="2s")), "example": (7, "m", _any),
        "enum": (24, "*", _any), "allOf": (26, "*", some), "oneOf": (27, "*", some), "anyOf": (28, "*", some),
        "not": (29, "m", schema), "items": (30, "m", _listed(1, some)), "properties": (31, "m", _named(1, some)),
        "additionalProperties": (32, "m", _schema_or_boolean(some)), "default": (33, "m", _default)}
    media = Message(5)
    media.fields["schema"] = (1, "m", some)
    content = _named(1, media)
    parameter = Message(14).scalars(name="1s", description="3s", required="4b", deprecated="5b")
    parameter.fields |= {"in": (2, "s", None), "schema": (10, "m", some), "content": (13, "m", content)}
    parameters = _or_reference(parameter)
    response = Message(5).scalars(description="1s")
    response.fields["content"] = (3, "m", content)
    body = Message(4).scalars(description="1s", required="3b")
    body.fields["content"] = (2, "m", content)
    responses = _named(2, _or_reference(response), x=3)
    responses.fields["default"] = (1, "m", _or_reference(response))
    operation = Message(13).scalars(tags="1s*", summary="2s", description="3s", operationId="5s", deprecated="10b")
    operation.fields |= {"parameters": (6, "*", parameters), "requestBody": (7, "m", _or_reference(body)),
                         "responses": (8, "m", responses)}
    path = Message(14).scalars(ref="1s", summary="2s", description="3s")
    path.fields |= {method: (number, "m", operation) for number, method in enumerate(_METHODS, 4)}
    path.fields["parameters"] = (13, "*", parameters)
    components = Message(10)
    components.fields["schemas"] = (1, "m", _named(1, some))
    document = Message(9).scalars(openapi="1s")
    document.fields |= {"info": (2, "m", Message(7).scalars(title="1s", description="2s", version="6s")),
                        "paths": (4, "m", _named(1, path, x=2)), "components": (5, "m", components)}
    return document


def encode(document: dict[str, Any]) -> bytes:
    """A v2 (`swagger`) or v3 (`openapi`) document as the bytes of its message."""
    made = (_v2() if "swagger" in document else _v3())(document)
    assert made is not None
    return made
