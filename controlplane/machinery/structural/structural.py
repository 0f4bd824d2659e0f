"""What the structural schema of a custom resource does to a value: pruning, defaulting, and nodes for apply.

A schema is the plain dict of `spec.versions[*].schema.openAPIV3Schema`. Owns the walk of a value along it: removing
what is not declared (unless a node preserves it), filling in defaults, finding embedded resources. The root and every
embedded resource have `apiVersion`, `kind` and `metadata` without declaring them; `metadata` itself is checked by its
own definition. Whether values are valid is `values`' to say, whether a schema is structural
`rules`'. Pure; values are changed in place, schemas never. Called by the apiserver's custom resources.

Upstream: k8s.io/apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting,objectmeta}.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from controlplane.machinery import schema as schemas

Schema = dict[str, Any]
Node = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"
INT_OR_STRING = "x-kubernetes-int-or-string"
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_TYPE_META = ("apiVersion", "kind", "metadata")
_JUNCTORS = ("anyOf", "allOf", "oneOf")
_STRING: Node = {"type": "string"}


def child(schema: Schema, key: str) -> Schema | None:
    """The schema of a member, None when it is not declared. `True` as additionalProperties declares anything."""
    declared = (schema.get("properties") or {}).get(key)
    if declared is not None:
        return declared if isinstance(declared, dict) else {}
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        return more
    return {PRESERVE: True} if more is True else None


def items_of(schema: Schema) -> Schema:
    items = schema.get("items")
    return items if isinstance(items, dict) else {}


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# --- the parts of a schema -----------------------------------------------------------------------------------------

def everywhere(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """(path, node) of all of a schema, parts of junctors too."""
    yield path, node
    for at, sub in (*inside(node), *parts(node)):
        if isinstance(sub, dict):
            yield from everywhere(sub, f"{path}.{at}")


def parts(node: Schema) -> Iterator[tuple[str, Any]]:
    """(path, node) of the parts of a node's junctors."""
    for junctor in _JUNCTORS:
        for index, part in enumerate(node.get(junctor) or ()):
            yield f"{junctor}[{index}]", part
    if isinstance(node.get("not"), dict):
        yield "not", node["not"]


def inside(node: Schema) -> Iterator[tuple[str, Schema]]:
    """(path, node) of the parts of a node's own structure."""
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield key, node[key]
    for name, sub in (node.get("properties") or {}).items():
        if isinstance(sub, dict):
            yield f"properties[{name}]", sub


# --- pruning -------------------------------------------------------------------------------------------------------

def prune(value: Any, schema: Schema) -> list[str]:
    """Remove undeclared fields of a whole object; their paths, such as `spec.list[0].foo`."""
    found: list[str] = []
    _prune(value, schema, True, "", found)
    return found


def _prune(value: Any, schema: Schema, resource: bool, path: str, found: list[str]) -> None:
    if isinstance(value, list):
        inside = items_of(schema)
        if not inside and schema.get(PRESERVE):
            return
        for index, item in enumerate(value):
            _prune(item, inside, bool(inside.get(EMBEDDED)), f"{path}[{index}]", found)
        return
    if not isinstance(value, dict):
        return
    keeps = bool(schema.get(PRESERVE))
    gone: list[str] = []
    for key, inner in value.items():
        if resource and key in _TYPE_META:
            continue
        sub = child(schema, key)
        if sub is not None:
            if inner.__class__ in (dict, list):
                _prune(inner, sub, bool(sub.get(EMBEDDED)), join(path, key), found)
        elif not keeps:
            gone.append(key)
            found.append(join(path, key))
    for key in gone:
        del value[key]


def embedded(value: Any, schema: Schema, path: str = "") -> Iterator[tuple[str, Node]]:
    """(path, object) of every embedded resource in a value, not of the value itself."""
    if isinstance(value, dict):
        for key, inner in value.items():
            sub = child(schema, key)
            if sub is not None and inner.__class__ in (dict, list):
                if sub.get(EMBEDDED) and isinstance(inner, dict):
                    yield join(path, key), inner
                yield from embedded(inner, sub, join(path, key))
    elif isinstance(value, list):
        inside = items_of(schema)
        for index, inner in enumerate(value):
            if inside.get(EMBEDDED) and isinstance(inner, dict):
                yield f"{path}[{index}]", inner
            yield from embedded(inner, inside, f"{path}[{index}]")


# --- defaulting ----------------------------------------------------------------------------------------------------

def default(value: Any, schema: Schema) -> None:
    """Fill in defaults for what is absent, and for nulls where null is not allowed."""
    if isinstance(value, dict):
        for key, sub in (schema.get("properties") or {}).items():
            if not isinstance(sub, dict) or "default" not in sub:
                continue
            if key not in value or (value[key] is None and not sub.get("nullable")):
                value[key] = copy.deepcopy(sub["default"])
        for key, inner in value.items():
            if inner.__class__ in (dict, list) and (sub := child(schema, key)) is not None:
                default(inner, sub)
            elif inner is None and key not in (schema.get("properties") or {}):
                sub = child(schema, key)
                if sub is not None and "default" in sub and not sub.get("nullable"):
                    value[key] = copy.deepcopy(sub["default"])
    elif isinstance(value, list):
        inside = items_of(schema)
        for index, inner in enumerate(value):
            if inner is None and "default" in inside and not inside.get("nullable"):
                value[index] = copy.deepcopy(inside["default"])
            else:
                default(inner, inside)


def has_defaults(schema: Any) -> bool:
    """Whether any node declares a default."""
    return any("default" in node for _, node in nodes(schema))


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, Schema]]:
    """(path, node) of the schema's structural part, itself first. Paths are those of field errors in a CRD."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, sub in (schema.get("properties") or {}).items():
        yield from nodes(sub, f"{path}.properties[{key}]" if path else f"properties[{key}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], join(path, key))


_STEP = re.compile(r"\.('(?:[^'\\]|\\.)*'|[^.\[\]]+|[.\[\]])|\['((?:[^'\\]|\\.)*)'\]")


def field_path(path: str, schema: Schema, arrays: bool = True) -> tuple[str, Schema]:
    """(the path as errors show it, the node it leads to) of a simple JSON path such as `.spec.map['key']`.

    Raises ValueError with what is wrong with it; `arrays` allows brackets."""
    shown, at = "", 0
    while at < len(path):
        if path[at] == "[" and not arrays:
            raise ValueError("array notation is not allowed")
        step = _STEP.match(path, at)
        if step is None:
            if path[at] not in ".[":
                raise ValueError(f"expected [ or . but got: {re.split(r'[.[]', path[at:])[0]}")
            raise ValueError("unexpected end of JSON path" if path[at:] in (".", "[") else
                             f"expected single quoted string but got {re.split('[].[]', path[at + 1:])[0]}")
        name, at = step[1] if step[1] is not None else step[2].replace("\\'", "'"), step.end()
        properties, more = schema.get("properties"), schema.get("additionalProperties")
        if properties:
            if not isinstance(properties.get(name), dict):
                raise ValueError("does not refer to a valid field")
            schema, shown = properties[name], join(shown, name)
        elif isinstance(more, dict):
            schema, shown = more, f"{shown}[{name}]"
        else:
            raise ValueError("does not refer to a valid field")
    return shown, schema


# --- metadata ------------------------------------------------------------------------------------------------------

def check_metadata(obj: Node, path: str = "") -> tuple[list[str], list[str]]:
    """(paths of unknown fields, type errors) of an object's `metadata`; unknown fields and nulls are removed."""
    from controlplane.machinery.tidy import tidy
    metadata = obj.get("metadata")
    if metadata is None:
        obj.pop("metadata", None)
        return [], []
    found = schemas.load().check(META, metadata)
    at = join(path, "metadata")
    if found.errors:
        return [], found.errors
    for name in found.unknown:
        metadata.pop(name.partition(".")[0].partition("[")[0], None)
    tidy(META, metadata)
    return [f"{at}.{name}" for name in found.unknown], []


# --- nodes for server-side apply -----------------------------------------------------------------------------------

def node_of(schema: Schema) -> Node:
    """The schema as a node of `machinery.schema`, for apply: with the fields every resource has."""
    return _node(schema, True)


def _node(schema: Schema, resource: bool) -> Node:
    made = {key: schema[key] for key in ("type", "format", "required", "default", PRESERVE, "x-kubernetes-list-type",
                                         "x-kubernetes-list-map-keys", "x-kubernetes-map-type") if key in schema}
    if schema.get(INT_OR_STRING):
        made["format"] = "int-or-string"
    if schema.get("properties") or resource:
        made["properties"] = {key: _node(sub, bool(sub.get(EMBEDDED))) for key, sub in
                              (schema.get("properties") or {}).items() if isinstance(sub, dict)}
    if resource:
        made["properties"] |= {"apiVersion": _STRING, "kind": _STRING, "metadata": {"$ref": META}}
    if isinstance(schema.get("items"), dict):
        made["items"] = _node(schema["items"], bool(schema["items"].get(EMBEDDED)))
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _node(schema["additionalProperties"], False)
    elif schema.get("additionalProperties") is True:
        made["additionalProperties"] = {PRESERVE: True}
    return made
