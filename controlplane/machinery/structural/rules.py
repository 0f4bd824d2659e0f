"""Whether the schema of a CustomResourceDefinition is structural, in upstream's words.

A structural schema gives every node a type and keeps structure (properties, items, additionalProperties) apart from
value validation in junctors, so that pruning, defaulting and merging are well defined. Owns those rules, what of
OpenAPI may be used at all, and that defaults are themselves valid. Pure. The CEL rules are `cel.checks`'. Called by the
validation of CustomResourceDefinitions.

Upstream: k8s.io/apiextensions-apiserver/pkg/apiserver/schema, pkg/apis/apiextensions/validation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from controlplane.machinery.errors import Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.structural import structural
from controlplane.machinery.structural import values as structuralvalues
from controlplane.machinery.structural.patterns import PatternError, compiled
from controlplane.machinery.structural.structural import EMBEDDED, INT_OR_STRING, PRESERVE, Schema

TYPES = ("array", "boolean", "integer", "number", "object", "string")
_UNSUPPORTED = ("id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref")
# What a part of a junctor may not say: the field, and what it must be instead.
_VALUES_ONLY = {"type": "empty", "default": "undefined", "title": "empty", "description": "empty", "nullable": "false",
                PRESERVE: "false", EMBEDDED: "false", INT_OR_STRING: "false", "x-kubernetes-list-map-keys": "empty",
                "x-kubernetes-list-type": "undefined", "x-kubernetes-map-type": "undefined",
                "x-kubernetes-validations": "empty", "additionalProperties": "undefined"}
_BRANCHES = [{"type": "integer"}, {"type": "string"}]  # as which an int-or-string may spell itself out
_META = ("metadata", "kind", "apiVersion")
_NOTHING_ELSE = "must not specify anything other than name and generateName, but metadata is implicitly specified"
ROOT, ITEM, FIELD = "at the root", "for specified array items", "for specified object fields"


def check(schema: Schema, path: str) -> tuple[list[Cause], list[Cause]]:
    """What is wrong with the schema at `path` of a CustomResourceDefinition: with its structure and its defaults, and
    with what of OpenAPI it uses."""
    found = [forbidden(f"{path}.nullable", "nullable cannot be true at the root")] if schema.get("nullable") else []
    if _readable(schema):
        wrong = [*_invariants(schema, path, ROOT), *_complete(schema, schema, path, path)]
        found += sorted(wrong or _defaults(schema, path, schema, False), key=str)
    return found, list(_openapi(schema, path, _Place(root=True)))


def _readable(node: Schema) -> bool:
    """Whether a schema can be read as a structural one at all."""
    if any(node.get(key) for key in _UNSUPPORTED) or isinstance(node.get("items"), list) or node.get(PRESERVE) is False:
        return False
    below = (*structural.inside(node), *structural.parts(node))
    return all(_readable(sub) for _, sub in below if isinstance(sub, dict))


# --- structure -------------------------------------------------------------------------------------------------------

def _invariants(node: Schema, path: str, level: str) -> Iterator[Cause]:
    kind, embedded = node.get("type"), bool(node.get(EMBEDDED))
    if kind == "array" and node.get("items") is None:
        yield required(f"{path}.items", "must be specified")
    for at, sub in structural.inside(node):
        yield from _invariants(sub, f"{path}.{at}", ITEM if at == "items" else FIELD)
    more = node.get("additionalProperties")
    if more is not None and level == ROOT:
        yield forbidden(f"{path}.additionalProperties", "must not be used at the root")
    for key in (PRESERVE, EMBEDDED):
        if node.get(INT_OR_STRING) and node.get(key):
            yield invalid(f"{path}.{key}", True, f"must be false if {INT_OR_STRING} is true")
    yield from _values(node, path, node.get("anyOf") == _BRANCHES,
                       bool(node.get("allOf")) and node["allOf"][0].get("anyOf") == _BRANCHES)
    if embedded and kind != "object":
        why = f"must be object if {EMBEDDED} is true"
        yield invalid(f"{path}.type", kind, why) if kind else required(f"{path}.type", why)
    elif not kind and not node.get(INT_OR_STRING) and not node.get(PRESERVE):
        yield required(f"{path}.type", f"must not be empty {level}")
    if embedded and more is not None:
        yield forbidden(f"{path}.additionalProperties", f"must not be used if {EMBEDDED} is set")
    if level == ROOT and kind and kind != "object":
        yield invalid(f"{path}.type", kind, "must be object at the root")
    yield from _metadata(node, path, level)
    if embedded and not node.get(PRESERVE) and not node.get("properties"):
        yield required(f"{path}.properties", f"must not be empty if {EMBEDDED} is true without {PRESERVE}")


def _metadata(node: Schema, path: str, level: str) -> Iterator[Cause]:
    """What every object has may be declared, but not restricted."""
    properties = node.get("properties") or {}
    checked = level == ROOT or bool(node.get(EMBEDDED))
    for name, kind in (("kind", "string"), ("apiVersion", "string"), ("metadata", "object")):
        declared = properties.get(name)
        if checked and isinstance(declared, dict) and declared.get("type") != kind:
            yield invalid(f"{path}.properties[{name}].type", declared.get("type") or "", f"must be {kind}")
    if level != ROOT or not isinstance(properties.get("metadata"), dict):
        return
    left = {key: value for key, value in properties["metadata"].items() if value and key not in ("type", "default")}
    if set(left.get("properties") or ()) <= {"name", "generateName"}:
        left.pop("properties", None)
    if left:
        yield forbidden(f"{path}.properties[metadata]", _NOTHING_ELSE)


def _values(node: Schema, path: str, skip_any: bool = False, skip_first: bool = False) -> Iterator[Cause]:
    """The junctors of a node; the two ways of spelling out an int-or-string may be skipped."""
    for at, part in structural.parts(node):
        if isinstance(part, dict) and not (skip_any and at.startswith("anyOf")):
            yield from _part(part, f"{path}.{at}", skip_first and at == "allOf[0]")
    if node.get("pattern"):
        try:
            compiled(node["pattern"])
        except PatternError as error:
            yield invalid(f"{path}.pattern", node["pattern"], f"must be a valid regular expression, but isn't: {error}")


def _part(part: Schema, path: str, skip_any: bool = False) -> Iterator[Cause]:
    """A part of a junctor may only validate values."""
    yield from _values(part, path, skip_any)
    for at, sub in structural.inside(part):
        if at != "additionalProperties":
            yield from _part(sub, f"{path}.{at}")
    for key, wanted in _VALUES_ONLY.items():
        if part.get(key) not in (None, False, "", [], {}) or (key == "default" and part.get(key) is not None) or (
                key == "additionalProperties" and part.get(key) == {}):
            yield forbidden(f"{path}.{key}", f"must be {wanted} to be structural")
    if "metadata" in (part.get("properties") or {}):
        yield forbidden(f"{path}.properties[metadata]", "must not be specified in a nested context")


def _complete(part: Schema, node: Schema | None, at: str, path: str) -> Iterator[Cause]:
    """What a junctor speaks of is declared by the structure: `part` is at `path`, the node it is about at `at`."""
    if node is None:
        yield required(at, f"because it is defined in {path}")
        return
    for where, sub in structural.parts(part):
        if isinstance(sub, dict):
            yield from _complete_part(sub, node, at, f"{path}.{where}")


def _complete_part(part: Schema, node: Schema, at: str, path: str) -> Iterator[Cause]:
    yield from _complete(part, node, at, path)
    declared = node.get("properties") or {}
    for where, sub in structural.inside(part):
        if where == "items":
            inner = node["items"] if isinstance(node.get("items"), dict) else None
        elif where == "additionalProperties":
            continue
        else:
            inner = declared.get(where.removeprefix("properties[").removesuffix("]"))
        if isinstance(inner, dict):
            yield from _complete_part(sub, inner, f"{at}.{where}", f"{path}.{where}")
        else:
            yield required(f"{at}.{where}", f"because it is defined in {path}.{where}")


# --- OpenAPI ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node is: at the root, below what every object has; and why it may have no default."""

    root: bool = False
    meta: bool = False
    no_default: str = ""


def _openapi(node: Schema, path: str, place: _Place) -> Iterator[Cause]:
    """What of OpenAPI may not be used, at this node and below."""
    yield from _standard(node, path, place)
    if node.get("uniqueItems"):
        yield forbidden(f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes "
                        "quadratic")
    more = node.get("additionalProperties")
    if node.get("properties") and (more is False or isinstance(more, dict)):
        yield forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    below = replace(place, root=False)
    for at, sub in structural.inside(node):
        inner = below
        name = at.removeprefix("properties[").removesuffix("]")
        if at == "additionalProperties" and place.meta:
            inner = replace(below, no_default=" inside additionalProperties applying to object metadata")
        elif at.startswith("properties[") and name in _META and (place.root or node.get(EMBEDDED)):
            inner = replace(below, meta=True, no_default=f" in top-level {name}" if place.root else place.no_default)
        yield from _openapi(sub, f"{path}.{at}", inner)
    for at, sub in structural.parts(node):
        if isinstance(sub, dict):
            yield from _openapi(sub, f"{path}.{at}", below)
    if node.get(PRESERVE) is False:
        yield invalid(f"{path}.{PRESERVE}", False, "must be true or undefined")
    yield from _topology(node, path)


def _standard(node: Schema, path: str, place: _Place) -> Iterator[Cause]:
    kind = node.get("type")
    if kind and kind not in TYPES:
        yield not_supported(f"{path}.type", kind, TYPES)
    if node.get("default") is not None and place.no_default:
        yield forbidden(f"{path}.default", f"must not be set{place.no_default}")
    for key in _UNSUPPORTED:
        if node.get(key):
            yield forbidden(f"{path}.{key}", f"{key} is not supported")
    if kind == "null":
        yield forbidden(f"{path}.type", "type cannot be set to null, use nullable as an alternative")
    if isinstance(node.get("items"), list):
        yield forbidden(f"{path}.items", "items must be a schema object and not an array")
    if place.meta and node.get(EMBEDDED):
        yield forbidden(f"{path}.{EMBEDDED}", "must not be used inside of resource meta")


def _topology(node: Schema, path: str) -> Iterator[Cause]:
    """How lists and maps are merged."""
    kind, inside = node.get("type") or "", structural.items_of(node)
    for what, wanted, values in (("map", "object", ("atomic", "granular")),
                                 ("list", "array", ("atomic", "set", "map"))):
        given = node.get(f"x-kubernetes-{what}-type")
        if given is None:
            continue
        if kind != wanted:
            why = f"must be {wanted} if x-kubernetes-{what}-type is specified"
            yield invalid(f"{path}.type", kind, why) if kind else required(f"{path}.type", why)
        elif given == "set":
            yield from _set(inside, path)
        if given not in values:
            yield not_supported(f"{path}.x-kubernetes-{what}-type", given, values, as_given=True)
    listed, keys = node.get("x-kubernetes-list-type"), node.get("x-kubernetes-list-map-keys") or []
    if keys and listed != "map":
        at, why = f"{path}.x-kubernetes-list-type", "must be map if x-kubernetes-list-map-keys is non-empty"
        yield required(at, why) if listed is None else invalid(at, listed, why)
    if listed == "map":
        yield from _map(node, keys, path)
    if listed in ("set", "map") and inside.get("nullable"):
        yield forbidden(f"{path}.items.nullable", f"cannot be nullable when x-kubernetes-list-type is {listed}")
    if listed == "map":
        yield from _keys(inside, keys, path)


def _set(inside: Schema, path: str) -> Iterator[Cause]:
    """The items of a set are told apart as wholes."""
    why = "must be atomic as item of a list with x-kubernetes-list-type=set"
    listed = inside.get("x-kubernetes-list-type")
    if inside.get("type") == "array" and listed not in (None, "atomic"):
        yield invalid(f"{path}.items.x-kubernetes-list-type", listed, why)
    if inside.get("type") == "object" and inside.get("x-kubernetes-map-type") != "atomic":
        yield invalid(f"{path}.items.x-kubernetes-map-type", listed, why)


def _map(node: Schema, keys: list[str], path: str) -> Iterator[Cause]:
    inside = structural.items_of(node)
    at = f"{path}.x-kubernetes-list-map-keys"
    if not keys:
        yield required(at, "must not be empty if x-kubernetes-list-type is map")
    if node.get("items") is None:
        yield required(f"{path}.items", "must have a schema if x-kubernetes-list-type is map")
        return
    if inside.get("type") != "object":
        yield invalid(f"{path}.items.type", inside.get("type") or "", "must be object if parent array's "
                      "x-kubernetes-list-type is map")
        return
    for index, key in enumerate(keys):
        declared = (inside.get("properties") or {}).get(key)
        if not isinstance(declared, dict):
            yield invalid(at, keys, "entries must all be names of item properties")
        elif declared.get("type") in ("object", "array"):
            yield invalid(f"{path}.items.properties[{key}].type", inside["type"], "must be a scalar type if parent "
                          "array's x-kubernetes-list-type is map")
        if key in keys[:index]:
            yield invalid(at, keys, "must not contain duplicate entries")


def _keys(inside: Schema, keys: list[str], path: str) -> Iterator[Cause]:
    for key in keys:
        declared, at = (inside.get("properties") or {}).get(key), f"{path}.items.properties[{key}]"
        if not isinstance(declared, dict):
            continue
        if key not in (inside.get("required") or ()) and declared.get("default") is None:
            yield required(f"{at}.default", "this property is in x-kubernetes-list-map-keys, so it must have a default "
                           "or be a required property")
        if declared.get("nullable"):
            yield forbidden(f"{at}.nullable", "this property is in x-kubernetes-list-map-keys, so it cannot be "
                            "nullable")


# --- defaults --------------------------------------------------------------------------------------------------------

def _defaults(node: Schema, path: str, whole: Schema, meta: bool) -> Iterator[Cause]:
    """Defaults have no unknown fields and are valid. `whole` is the resource around the node, `meta` whether it is
    part of what every object has."""
    resource = node is whole or bool(node.get(EMBEDDED))
    if resource:
        meta, whole = False, node
    if node.get("default") is not None and not meta:
        yield from _default(node, f"{path}.default", resource)
    for at, sub in structural.inside(node):
        if at != "additionalProperties":
            name = at.removeprefix("properties[").removesuffix("]")
            yield from _defaults(sub, f"{path}.{at}", whole, meta or (resource and at != "items" and name in _META))


def _default(node: Schema, path: str, resource: bool) -> Iterator[Cause]:
    value = node["default"]
    if structural.prune({"default": copy.deepcopy(value)}, {"type": "object", "properties": {"default": node}}):
        yield invalid(path, value, "must not have unknown fields")
    wrong = structuralvalues.check(value, node, "")  # whose texts speak of paths within the value
    for cause in wrong:
        yield replace(cause, field=path if cause.field in ("", "<nil>") else structural.join(path, cause.field))
    if not wrong and any(sub.get("x-kubernetes-validations") for _, sub in structural.nodes(node)):
        from controlplane.machinery.cel import checks  # heavy: 16 MB of library
        yield from checks.of_default(value, node, path, resource)
