"""Kubernetes protobuf as Go's clients write it: every field that is no pointer, zero or not; the rest when it is set.

Driven by the tables the decoder reads: a field marked as keeping its zero is a pointer there, or always in the JSON.
"""

from __future__ import annotations

import base64
import struct
from datetime import datetime

import orjson

from controlplane.machinery import protobuf
from tests.unit.machinery.test_protobuf import enveloped, field, varint

ZERO = {"s": b"", "b": b"", "t": 0, "i": 0, "u": 0}


def body(obj):
    """The bytes of an object with apiVersion and kind."""
    api_version, kind = obj["apiVersion"], obj["kind"]
    return enveloped(api_version, kind, message(protobuf.message_of(api_version, kind), obj))


def message(name, obj):
    table = protobuf._table(name)
    if table.sole:
        obj = {"items": obj}
    out = b""
    for number, (key, kind, repeated, mapped, keep, embedded, _) in sorted(table.fields.items()):
        if embedded:
            inner = message(kind, obj)
            out += field(number, inner) if inner else b""
            continue
        value = obj.get(key)
        if repeated:
            out += b"".join(_field(number, kind, one) for one in value or ())
        elif mapped:
            out += b"".join(field(number, field(1, k) + _field(2, kind, v)) for k, v in sorted((value or {}).items()))
        elif value is not None:
            out += _field(number, kind, value)
        elif not keep and kind in ZERO:
            out += field(number, ZERO[kind])
        elif not keep and kind != "d" and not _volatile(name, key):
            out += field(number, message(kind, {}) if kind not in protobuf._SPECIAL else b"")
    return out


def _volatile(name, key):
    """A member of a one-of whose message is a pointer in Go."""
    return name.endswith(("VolumeSource", "PersistentVolumeSource", "ProbeHandler"))


def _field(number, kind, value):
    if kind == "d":
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if kind == "b":
        return field(number, base64.b64decode(value))
    if kind in ZERO:
        return field(number, int(value) if kind in "tiu" else value)
    return field(number, _special(kind.rpartition(".")[2], value) if kind in protobuf._SPECIAL
                 else message(kind, value))


def _special(short, value):
    match short:
        case "Time" | "MicroTime":
            when = datetime.fromisoformat(value)
            return field(1, int(when.timestamp())) + field(2, when.microsecond * 1000)
        case "Quantity":
            return field(1, str(value))
        case "IntOrString":
            whole = isinstance(value, int)
            return field(1, int(not whole)) + field(2, value if whole else 0) + field(3, "" if whole else value)
        case "FieldsV1" | "RawExtension" | "JSON":
            return field(1, orjson.dumps(value))
        case "JSONSchemaPropsOrBool":
            return field(1, int(value)) if isinstance(value, bool) else field(1, 1) + field(2, _schema(value))
        case "JSONSchemaPropsOrArray":
            many = not isinstance(value, dict)
            return b"".join(field(2, _schema(v)) for v in value) if many else field(1, _schema(value))
    raise AssertionError(short)


def _schema(value):
    return message("k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps", value)
