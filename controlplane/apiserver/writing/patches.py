"""PATCH: the four ways to change an object without sending it whole.

Owns the choice of patch by content type and the checks of its body. The merging itself is machinery's (`patch`,
`strategic`, `apply`), pure. It promises that a patch is applied to the newest object, anew when another writer came
first. Called by the pipeline and, for subresources, by `subresources`.

Upstream: k8s.io/apiserver/pkg/endpoints/handlers/patch.go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.apiserver.request import Request
from controlplane.apiserver.writing import bodies
from controlplane.machinery import patch as patches
from controlplane.machinery import schema, strategic, wire
from controlplane.machinery.errors import ApiError, BadRequest, Invalid, UnsupportedMediaType, invalid, required
from controlplane.machinery.resources import Resource

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
JSON, YAML = "application/json", "application/yaml"
MAX_OPERATIONS = 10_000  # of a JSON patch; upstream's bound on the work one request can ask for

Object = dict[str, Any]
Change = Callable[[Object], Object]


def media_type(request: Request, resource: Resource) -> str:
    """The kind of a patch. Raises UnsupportedMediaType."""
    given = request.content_type.partition(";")[0].strip()
    accepted = [JSON_PATCH, MERGE_PATCH, APPLY_PATCH] if resource.custom else [
        JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH]
    if given not in accepted:
        raise UnsupportedMediaType("the body of the request was in an unknown format - accepted media types include: "
                                   + ", ".join(accepted))
    return given


async def _decoded(request: Request) -> Any:
    """A patch in JSON; what it says twice is told as the request wants it."""
    body, duplicates = await request.body(), list[str]()
    try:
        found = wire.decode(body, JSON, duplicates)
    except ValueError as error:
        raise BadRequest(f"error decoding patch: {error}") from None
    if duplicates and bodies.validation_mode(request) == "Strict":
        raise Invalid.of("", "", [invalid("patch", body.decode("utf-8", "replace"), "strict decoding error: "
                                          + ", ".join(duplicates))])
    bodies.report(request, "", "", duplicates)
    return found


async def _configuration(request: Request) -> Any:
    """The body of an apply: YAML, or JSON, which is YAML too."""
    duplicates: list[str] = []
    try:
        found = wire.decode(await request.body(), YAML, duplicates)
    except ValueError as error:
        raise BadRequest(f"error decoding YAML: {error}") from None
    if duplicates and bodies.validation_mode(request) == "Strict":
        raise BadRequest("error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n"
                         + "\n".join(f"  {text}" for text in duplicates))
    bodies.report(request, "", "", duplicates)
    return found


async def change_of(request: Request, resource: Resource, definition: str) -> Change:
    """A pure function from the stored object to the patched one. Raises ApiError."""
    kind = media_type(request, resource)
    document = await _decoded(request)
    if kind == JSON_PATCH:
        if not isinstance(document, list):
            raise BadRequest("error decoding patch: json: cannot unmarshal object into Go value of type "
                             "jsonpatch.Patch")
        if len(document) > MAX_OPERATIONS:
            raise ApiError(f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(document)}",
                           code=413, reason="RequestEntityTooLarge")
        return lambda obj: _object(patches.json_patch(obj, document))
    if not isinstance(document, dict):
        raise BadRequest("error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}")
    if kind == MERGE_PATCH:
        return lambda obj: _object(patches.merge_patch(obj, document))
    return lambda obj: _object(strategic.merge(obj, document, schema.load().definition(definition)))


def _object(result: Any) -> Object:
    if not isinstance(result, dict):
        raise BadRequest("the patch does not leave an object")
    if not isinstance(result.get("metadata"), dict):
        result["metadata"] = {}
    return result


def checked(request: Request, resource: Resource, change: Change, definition: Any, api_version: str,
            kind: str) -> Change:
    """The same change, its result held against the schema as a body would be."""
    def make(obj: Object) -> Object:
        patched = change(obj)
        bodies.typed(patched, api_version, kind)
        bodies.check(request, definition, api_version, kind, patched)
        bodies.place(request, resource, patched, request.name)
        return patched
    return make


async def applied(request: Request, resource: Resource, api_version: str = "", kind: str = "") -> Object:
    """The configuration of a server-side apply, of the resource's type when no other is given. Raises ApiError."""
    if not request.query.get("fieldManager"):
        raise Invalid.of("PatchOptions", "", [required("fieldManager", "is required for apply patch")], "meta.k8s.io")
    obj = await _configuration(request)
    if not isinstance(obj, dict):
        raise BadRequest("error decoding YAML: the configuration is no object")
    if not isinstance(obj.get("metadata") or {}, dict):
        raise BadRequest("error decoding YAML: metadata is no object")
    if (obj.get("metadata") or {}).get("managedFields"):
        raise BadRequest("metadata.managedFields must be nil")
    for field in ("apiVersion", "kind"):
        if not obj.get(field):
            raise BadRequest(f"{field} must be set in an apply configuration")
    if not isinstance(obj.get("metadata"), dict):
        obj["metadata"] = {}
    bodies.typed(obj, api_version or resource.api_version, kind or resource.kind)
    bodies.place(request, resource, obj, request.name)
    return obj
