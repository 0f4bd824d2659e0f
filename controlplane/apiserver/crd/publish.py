"""The OpenAPI definitions of custom resources.

Owns the form a structural schema is published in: whole for v3, and for v2 without what old kubectl cannot read
(junctors, nullable, union types). Every kind has the standard fields and its list. Pure. Called by `openapi`.

Upstream: k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.resources import Resource
from controlplane.machinery.structural.structural import EMBEDDED, INT_OR_STRING, META, PRESERVE

Body = dict[str, Any]

LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
_API_VERSION = {"type": "string", "description": (
    "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized "
    "schemas to the latest internal value, and may reject unrecognized values. More info: "
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources")}
_KIND = {"type": "string", "description": (
    "Kind is a string value representing the REST resource this object represents. Servers may infer this from the "
    "endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: "
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds")}
_METADATA_TEXT = ("Standard object's metadata. More info: "
                  "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata")
_KEPT = ("type", "format", "title", "description", "default", "enum", "pattern", "maximum", "minimum", "multipleOf",
         "exclusiveMaximum", "exclusiveMinimum", "maxLength", "minLength", "maxItems", "minItems", "maxProperties",
         "minProperties", "required", "nullable", "allOf", "anyOf", "oneOf", "not", PRESERVE, EMBEDDED, INT_OR_STRING,
         "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations")
_NOT_IN_V2 = ("allOf", "anyOf", "oneOf", "not", "nullable", "x-kubernetes-validations", "default")


def name_of(resource: Resource, kind: str = "") -> str:
    """`io.example.v1.Foo`: the reversed group, the version, the kind."""
    return ".".join([*reversed(resource.group.split(".")), resource.version, kind or resource.kind])


def definitions(resource: Resource, v2: bool) -> Body:
    """The definitions of a kind and of its list, by name."""
    home = "#/definitions/" if v2 else "#/components/schemas/"
    extra: Any = resource.extra
    made = _root(extra["shape"].schema, v2, home)
    made["x-kubernetes-group-version-kind"] = [_gvk(resource, resource.kind)]
    kind = resource.list_kind or resource.kind + "List"
    whole = {"type": "object", "required": ["items"], "description": f"{kind} is a list of {resource.kind}",
             "properties": {"apiVersion": _API_VERSION, "kind": _KIND,
                            "metadata": _described(home + LIST_META, "Standard list metadata. More info: https://git."
                                                   "k8s.io/community/contributors/devel/sig-architecture/api-"
                                                   "conventions.md#types-kinds", v2),
                            "items": {"type": "array", "description": f"List of {resource.plural}. More info: https:"
                                      "//git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
                                      "items": {"$ref": home + name_of(resource)}}},
             "x-kubernetes-group-version-kind": [_gvk(resource, kind)]}
    return {name_of(resource): made, name_of(resource, kind): whole}


def _gvk(resource: Resource, kind: str) -> Body:
    return {"group": resource.group, "kind": kind, "version": resource.version}


def _described(reference: str, text: str, v2: bool) -> Body:
    return {"description": text, "$ref": reference} if v2 else {"description": text, "allOf": [{"$ref": reference}]}


def _root(schema: Body, v2: bool, home: str) -> Body:
    if not schema or (v2 and schema.get(PRESERVE)):
        return {"type": "object"}  # anything goes: kubectl must not refuse fields it was not told of
    made = _node(schema, v2, home)
    made["properties"] = {**made.get("properties", {}), **_standard(v2, home)}
    return made


def _standard(v2: bool, home: str) -> Body:
    return {"apiVersion": _API_VERSION, "kind": _KIND, "metadata": _described(home + META, _METADATA_TEXT, v2)}


def _node(schema: Body, v2: bool, home: str) -> Body:
    made = {key: schema[key] for key in _KEPT if key in schema and not (v2 and key in _NOT_IN_V2)}
    if v2 and schema.get("nullable"):
        return {k: v for k, v in made.items() if k not in ("type", "enum")}
    if v2 and schema.get(PRESERVE):
        return {k: v for k, v in made.items() if k not in ("required",)}
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {key: _node(sub, v2, home) for key, sub in schema["properties"].items()
                              if isinstance(sub, dict)}
    if schema.get(EMBEDDED):
        made["properties"] = {**made.get("properties", {}), **_standard(v2, home)}
        made["required"] = sorted({*made.get("required", []), "apiVersion", "kind"})
    for key in ("items", "additionalProperties"):
        sub = schema.get(key)
        if isinstance(sub, dict):
            made[key] = _node(sub, v2, home)
        elif sub is True:
            made[key] = True
    return made
