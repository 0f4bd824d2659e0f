"""Whether the schema of a CustomResourceDefinition is structural, in upstream's words.

A structural schema gives every node a type and keeps structure (properties, items, additionalProperties) apart from
value validation in junctors, so that pruning, defaulting and merging are well defined. Owns those rules, and that
defaults are themselves valid. Pure. CEL rules are compiled by the caller, who has the library. Called by the
apiserver's validation of CustomResourceDefinitions.

Upstream: k8s.io/apiextensions-apiserver/pkg/apiserver/schema/validation.go, pkg/apis/apiextensions/validation.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from controlplane.machinery import structural, structuralvalues
from controlplane.machinery.errors import Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.structural import EMBEDDED, INT_OR_STRING, PRESERVE, Schema

TYPES = ("array", "boolean", "integer", "number", "object", "string")
_UNSUPPORTED = ("$ref", "definitions", "dependencies", "id", "additionalItems", "patternProperties")
_STRUCTURAL = ("additionalProperties", "default", "description", "nullable", "title", "type", EMBEDDED, PRESERVE,
               "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
               "x-kubernetes-validations")
_JUNCTORS = ("allOf", "anyOf", "oneOf")
_INT_OR_STRING_BRANCHES = [{"type": "integer"}, {"type": "string"}]


def check(schema: Any, path: str) -> list[Cause]:
    """What is wrong with the schema at `path` of a CustomResourceDefinition."""
    if not isinstance(schema, dict) or not schema:
        return [required(path, "schemas are required")]
    found = list(_root(schema, path))
    for at, node in structural.nodes(schema):
        where = structural.join(path, at)
        root = not at
        found += _unsupported(node, where)
        found += _node(node, where, root)
        found += _lists(node, where)
        for junctor, part in _parts(node):
            found += _junctor(part, f"{where}.{junctor}", node)
        if not found and "default" in node:
            found += _default(node, where, root)
    return found


def _root(schema: Schema, path: str) -> Iterator[Cause]:
    kind = schema.get("type")
    if kind and kind != "object":
        yield invalid(f"{path}.type", kind, "must be object at the root")
    if schema.get("nullable"):
        yield forbidden(f"{path}.nullable", "nullable cannot be true at the root")
    if not kind:
        yield required(f"{path}.type", "must not be empty at the root")
    metadata = (schema.get("properties") or {}).get("metadata")
    if isinstance(metadata, dict):
        yield from _metadata(metadata, f"{path}.properties[metadata]")


def _metadata(schema: Schema, path: str) -> Iterator[Cause]:
    if schema.get("type") not in (None, "object"):
        yield invalid(f"{path}.type", schema["type"], "must be object")
    others = set(schema) - {"type", "properties", "description", "required"}
    if others or set(schema.get("properties") or {}) - {"name", "generateName"}:
        yield forbidden(path, "must not specify anything other than name and generateName, but metadata is "
                        "implicitly specified")


def _unsupported(node: Schema, path: str) -> Iterator[Cause]:
    for key in _UNSUPPORTED:
        if node.get(key):
            yield forbidden(f"{path}.{key}", f"{key} is not supported")
    if node.get("uniqueItems"):
        yield forbidden(f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes "
                        "quadratic")
    if node.get("additionalProperties") is False:
        yield forbidden(f"{path}.additionalProperties", "additionalProperties cannot be set to false")
    if node.get("additionalProperties") and node.get("properties"):
        yield forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    if isinstance(node.get("items"), list):
        yield forbidden(f"{path}.items", "items must be a schema object and not an array")
    if node.get("pattern"):
        try:
            structuralvalues.compiled(node["pattern"])
        except re.error as error:
            yield invalid(f"{path}.pattern", node["pattern"], "must be a valid regular expression, but isn't: "
                          f"error parsing regexp: {error}")


def _node(node: Schema, path: str, root: bool) -> Iterator[Cause]:
    kind = node.get("type")
    if node.get(INT_OR_STRING):
        if kind:
            yield invalid(f"{path}.type", kind, f"must be empty if {INT_OR_STRING} is true")
        if node.get(EMBEDDED):
            yield forbidden(f"{path}.{EMBEDDED}", f"must be false if {INT_OR_STRING} is true")
    elif not kind and not root and not node.get(PRESERVE):
        kind_of_place = "array items" if path.endswith(".items") else "object fields"
        yield required(f"{path}.type", f"must not be empty for specified {kind_of_place}")
    elif kind and kind not in TYPES:
        yield not_supported(f"{path}.type", kind, TYPES)
    if kind == "array" and not isinstance(node.get("items"), dict | list):
        yield required(f"{path}.items", "must be specified")
    if PRESERVE in node and node[PRESERVE] is not True:
        yield invalid(f"{path}.{PRESERVE}", node[PRESERVE], "must be true or undefined")
    if node.get(EMBEDDED):
        if kind != "object":
            yield invalid(f"{path}.type", kind or "", f"must be object if {EMBEDDED} is true")
        if not node.get(PRESERVE) and not node.get("properties"):
            yield required(f"{path}.properties", f"must not be empty if {EMBEDDED} is true without {PRESERVE}")


def _lists(node: Schema, path: str) -> Iterator[Cause]:
    kind, list_type = node.get("type"), node.get("x-kubernetes-list-type")
    if list_type is not None:
        if list_type not in ("atomic", "set", "map"):
            yield not_supported(f"{path}.x-kubernetes-list-type", list_type, ["atomic", "map", "set"])
        if kind != "array":
            yield invalid(f"{path}.type", kind or "", "must be array if x-kubernetes-list-type is specified")
    map_type = node.get("x-kubernetes-map-type")
    if map_type is not None:
        if map_type not in ("atomic", "granular"):
            yield not_supported(f"{path}.x-kubernetes-map-type", map_type, ["atomic", "granular"])
        if kind != "object":
            yield invalid(f"{path}.type", kind or "", "must be object if x-kubernetes-map-type is specified")
    keys = node.get("x-kubernetes-list-map-keys") or []
    if keys and list_type != "map":
        yield invalid(f"{path}.x-kubernetes-list-type", list_type or "", "must be map if x-kubernetes-list-map-keys is "
                      "non-empty")
    if list_type == "map":
        yield from _map_keys(node, keys, path)
    if list_type == "set" and structural.items_of(node).get("type") in ("object", "array"):
        inside = structural.items_of(node)
        atomic = inside.get("x-kubernetes-map-type") == "atomic" or inside.get("x-kubernetes-list-type") == "atomic"
        if not atomic:
            what = "x-kubernetes-map-type" if inside["type"] == "object" else "x-kubernetes-list-type"
            yield invalid(f"{path}.items.{what}", inside.get(what), "must be atomic as item of a list with "
                          "x-kubernetes-list-type=set")


def _map_keys(node: Schema, keys: list[str], path: str) -> Iterator[Cause]:
    if not keys:
        yield required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        return
    inside = structural.items_of(node)
    if inside.get("type") != "object":
        yield invalid(f"{path}.items.type", inside.get("type") or "", "must be object if parent array's "
                      "x-kubernetes-list-type is map")
        return
    for index, key in enumerate(keys):
        declared = (inside.get("properties") or {}).get(key)
        if key in keys[:index]:
            yield Cause("FieldValueDuplicate", f'Duplicate value: "{key}"', f"{path}.x-kubernetes-list-map-keys")
        elif not isinstance(declared, dict):
            yield invalid(f"{path}.x-kubernetes-list-map-keys", key, "entries must all be names of item properties")
        elif declared.get("type") in ("object", "array"):
            yield invalid(f"{path}.items.properties[{key}].type", declared["type"], "must be a scalar type if parent "
                          "array's x-kubernetes-list-type is map")
        elif key not in (inside.get("required") or ()) and "default" not in declared:
            yield required(f"{path}.items.properties[{key}].default", "this property is in x-kubernetes-list-map-keys, "
                           "so it must have a default or be a required property")


def _parts(node: Schema) -> Iterator[tuple[str, Any]]:
    for junctor in _JUNCTORS:
        for index, part in enumerate(node.get(junctor) or ()):
            yield f"{junctor}[{index}]", part
    if isinstance(node.get("not"), dict):
        yield "not", node["not"]


def _junctor(part: Any, path: str, outside: Schema) -> Iterator[Cause]:
    """A part of a junctor may only validate values, of fields that the structure declares."""
    if not isinstance(part, dict):
        return
    branch = outside.get(INT_OR_STRING) and part in _INT_OR_STRING_BRANCHES
    for key in _STRUCTURAL:
        if part.get(key) and not (branch and key == "type") and not (
                outside.get(INT_OR_STRING) and key == "type" and part["type"] in ("integer", "string")):
            yield forbidden(f"{path}.{key}", "must be empty to be structural" if key != "default" else
                            "must be undefined to be structural")
    for name, sub in (part.get("properties") or {}).items():
        declared = structural.child(outside, name)
        at = f"{path}.properties[{name}]"
        if declared is None and not outside.get(PRESERVE):
            origin = path.rpartition(".")[0]
            yield required(f"{origin}.properties[{name}]", f"because it is defined in {at}")
        yield from _junctor(sub, at, declared or {PRESERVE: True})
    if isinstance(part.get("items"), dict):
        yield from _junctor(part["items"], f"{path}.items", structural.items_of(outside))
    for junctor, inner in _parts(part):
        yield from _junctor(inner, f"{path}.{junctor}", outside)


def _default(node: Schema, path: str, root: bool) -> Iterator[Cause]:
    if root:
        yield forbidden(f"{path}.default", "must not be set at the root")
        return
    value = copy.deepcopy(node["default"])
    pruned = copy.deepcopy(value)
    wrapped = {"type": "object", "properties": {"default": node}}
    if structural.prune({"default": pruned}, wrapped):
        yield invalid(f"{path}.default", value, "must not have unknown fields")
    structural.default(pruned, node)
    yield from structuralvalues.check(pruned, node, f"{path}.default")
