"""Protobuf bodies of every kind: each field there is, written as Go writes it, read back, and held against the schemas.

The field tables come from Go's sources and the schemas from the OpenAPI documents, so that they agree says much.
"""

import base64
import json
import struct
from functools import cache

import pytest

from controlplane.machinery import protobuf, schema
from controlplane.machinery.resources import BUILTIN
from tests.unit.machinery.test_protobuf import enveloped, field, varint

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
MAX_DEPTH = 14  # of messages in messages; what is deeper repeats itself
# What has no row of its own in the table of kinds: bodies of subresources, options, and what clients wrap.
OTHERS = [("policy/v1", "Eviction", "io.k8s.api.policy.v1.Eviction"),
          ("autoscaling/v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
          ("authentication.k8s.io/v1", "TokenRequest", "io.k8s.api.authentication.v1.TokenRequest"),
          ("v1", "Status", META + "Status")]
OTHERS += [(version, "DeleteOptions", META + "DeleteOptions") for version in (
    "v1", "apps/v1", "apiextensions.k8s.io/v1", "apiregistration.k8s.io/v1", "meta.k8s.io/v1")]
KINDS = [(r.api_version, r.kind, r.definition) for r in BUILTIN if r.definition]
PACKAGES = {"io.k8s.api.": "k8s.io.api.", "io.k8s.apimachinery.": "k8s.io.apimachinery.",
            "io.k8s.apiextensions-apiserver.": "k8s.io.apiextensions_apiserver.",
            "io.k8s.kube-aggregator.": "k8s.io.kube_aggregator."}


def message_named(definition):
    old = next(prefix for prefix in PACKAGES if definition.startswith(prefix))
    return PACKAGES[old] + definition[len(old):]


def fields_of(message):
    """JSON name -> (type, repeated, map), embedded messages opened."""
    found = {}
    for name, kind, repeated, mapped, _, embedded, _ in protobuf._table(message).fields.values():
        found.update(fields_of(kind) if embedded else {name: (kind, repeated, mapped)})
    return found


def references(node):
    if isinstance(node, dict):
        yield from (v for k, v in node.items() if k == "$ref" and isinstance(v, str))
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from references(inner)


def test_tables_and_schemas_know_the_same_fields():
    schemas, wanted, seen = schema.load(), [d for *_, d in KINDS + OTHERS], set()
    while wanted:
        name = wanted.pop()
        if name in seen or message_named(name) in protobuf._SPECIAL:
            continue
        seen.add(name)
        node = schemas.definition(name)
        wanted += references(node)
        if "properties" not in node:
            continue
        fields, properties = fields_of(message_named(name)), node["properties"]
        assert fields.keys() - {"apiVersion", "kind"} == properties.keys() - {"apiVersion", "kind"}, name
        for field_name, (kind, repeated, mapped) in fields.items():
            own = properties.get(field_name, {})
            assert repeated == (own.get("type") == "array"), (name, field_name)
            assert mapped == ("additionalProperties" in own), (name, field_name)
            if "$ref" in own:
                assert message_named(own["$ref"]) == kind, (name, field_name)
    assert len(seen) > 450


# --- a writer as Go's ------------------------------------------------------------------------------------------------

TIME, LATER = field(1, 1_700_000_000) + field(2, 500_000_000), "2023-11-14T22:13:20"
EXTENSIONS = "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1."
SPECIAL = {  # message -> bytes and value
    "Time": (TIME, LATER + "Z"), "MicroTime": (TIME, LATER + ".500000Z"), "Duration": (field(1, 90 * 10**9), "1m30s"),
    "FieldsV1": (field(1, b'{"f:a":{}}'), {"f:a": {}}), "Quantity": (field(1, "1500m"), "1500m"),
    "RawExtension": (field(1, b'{"apiVersion":"v1","kind":"ConfigMap"}'), {"apiVersion": "v1", "kind": "ConfigMap"}),
    "IntOrString": (field(1, 1) + field(2, 0) + field(3, "25%"), "25%"), "JSON": (field(1, b"[1,2]"), [1, 2]),
    "JSONSchemaPropsOrBool": (field(1, 1), True), "JSONSchemaPropsOrArray": (field(1, field(5, "string")),
                                                                          {"type": "string"}),
    "JSONSchemaPropsOrStringArray": (field(2, "a") + field(2, "b"), ["a", "b"])}
SCALARS = {"s": ("text", "text"), "b": (b"\x00\xff", base64.b64encode(b"\x00\xff").decode()), "t": (1, True),
           "i": (7, 7), "u": (9, 9)}


@cache
def written(message, depth=0):
    """The bytes and the JSON value of a message with all its fields set, as text."""
    body, value = b"", {}
    table = protobuf._table(message)
    for number, (name, kind, repeated, mapped, _, embedded, _) in table.fields.items():
        short = kind.rpartition(".")[2]
        if kind in protobuf._SPECIAL:
            raw, meant = SPECIAL[short]
        elif kind == "d":
            body, value[name] = body + varint(number << 3 | 1) + struct.pack("<d", 0.5), 0.5
            continue
        elif kind in SCALARS:
            raw, meant = SCALARS[kind]
        elif depth < MAX_DEPTH and (depth < 6 or short != "JSONSchemaProps"):
            raw, text = written(kind, depth + 1)
            meant = json.loads(text)
        else:
            continue
        if mapped:
            body += field(number, field(1, "key") + field(2, raw))
            value[name] = {"key": meant}
        else:
            body += field(number, raw)
            if embedded:
                value.update(meant)
            else:
                value[name] = [meant] if repeated else meant
    return body, json.dumps(value["items"] if table.sole else value)


@pytest.mark.parametrize(("api_version", "kind", "definition"), KINDS + OTHERS,
                         ids=[f"{kind}.{version}" for version, kind, _ in KINDS + OTHERS])
def test_a_body_with_every_field_reads_as_its_json(api_version, kind, definition):
    body, text = written(protobuf.message_of(api_version, kind))
    read = protobuf.decode(enveloped(api_version, kind, body))
    assert read == {**json.loads(text), "apiVersion": api_version, "kind": kind}
    found = schema.check(definition, read)
    assert (found.unknown, found.errors) == ([], [])


def test_lists_of_kinds_read_too():
    for resource in BUILTIN:
        message = protobuf.message_of(resource.api_version, resource.lists)
        if message not in protobuf._lines():
            assert "list" not in resource.verbs or resource.group == "apiregistration.k8s.io", resource.name
            continue
        item, text = written(protobuf.message_of(resource.api_version, resource.kind))
        read = protobuf.decode(enveloped(resource.api_version, resource.lists, field(2, item)))
        assert read["items"] == [json.loads(text)], resource.name
