"""Bodies of writes: decoded, of the right type, with what they hold too much of reported.

Owns `fieldValidation`, `dryRun`, and the agreement of a body with its URL (kind, name, namespace). It promises an
object whose `apiVersion`, `kind` and `metadata` are set and well typed. It knows nothing of what is stored. Called by
the verbs that write.

Upstream: k8s.io/apiserver/pkg/endpoints/handlers/{create,update,rest}.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.apiserver.request import Request
from controlplane.machinery import schema, wire
from controlplane.machinery.errors import (
    ApiError,
    BadRequest,
    Invalid,
    UnsupportedMediaType,
    invalid,
    not_supported,
    too_long,
)
from controlplane.machinery.resources import Resource

VALIDATION_MODES = ("Ignore", "Strict", "Warn")
MAX_MANAGER = 128  # bytes of a field manager's name; upstream's bound
_OPTIONS = {"create": "CreateOptions", "update": "UpdateOptions", "patch": "PatchOptions"}


def dry_run(request: Request, options: dict[str, Any] | None = None) -> bool:
    """Whether nothing may be stored. Raises Invalid."""
    asked = request.query.all("dryRun") if request.raw_query else []
    asked = [*asked, *((options or {}).get("dryRun") or [])]
    if wrong := [value for value in asked if value not in ("All", "")]:
        kind = _OPTIONS.get(request.verb, "DeleteOptions")
        raise Invalid.of(kind, "", [not_supported("dryRun", wrong, ["All"])], "meta.k8s.io")
    return "All" in asked


def manager(request: Request) -> str:
    """Who writes, as managedFields will say. Raises Invalid."""
    given = request.query.get("fieldManager") if request.raw_query else ""
    cause = None
    if len(given.encode()) > MAX_MANAGER:
        cause = too_long("fieldManager", MAX_MANAGER)
    elif not given.isprintable():
        cause = invalid("fieldManager", given, "should not contain non-printable characters")
    if cause is not None:
        raise Invalid.of(_OPTIONS.get(request.verb, "CreateOptions"), "", [cause], "meta.k8s.io")
    return request.field_manager[:MAX_MANAGER]


def validation_mode(request: Request) -> str:
    """Strict, Warn or Ignore. Raises Invalid."""
    mode = request.query.get("fieldValidation") if request.raw_query else ""
    if mode and mode not in VALIDATION_MODES:
        raise Invalid.of(_OPTIONS.get(request.verb, "CreateOptions"), "",
                         [not_supported("fieldValidation", mode, VALIDATION_MODES)], "meta.k8s.io")
    return mode or "Warn"


def cannot_handle(api_version: str, kind: str, why: str) -> BadRequest:
    group, _, version = api_version.rpartition("/")
    return BadRequest(f'{kind} in version "{version or group}" cannot be handled as a {kind}: {why}')


def report(request: Request, api_version: str, kind: str, problems: list[str]) -> None:
    """What a body holds too much of, told as the request wants it. Raises BadRequest when that is Strict."""
    mode = validation_mode(request)
    if not problems or mode == "Ignore":
        return
    if mode == "Strict":
        raise cannot_handle(api_version, kind, "strict decoding error: " + ", ".join(problems))
    for problem in problems:
        request.warn(problem)


def check(request: Request, definition: Any, api_version: str, kind: str, obj: dict[str, Any],
          duplicates: Sequence[str] = ()) -> None:
    """Type errors, unknown fields and, after them, fields given twice of a decoded object; `definition` is a
    resource's `shape`. Raises BadRequest."""
    problems = list(duplicates)
    if definition:
        found = schema.load().check(definition, obj) if isinstance(definition, str) else definition.check(obj)
        if found.errors:
            raise cannot_handle(api_version, kind, found.errors[0])
        problems = [*(f'unknown field "{path}"' for path in found.unknown), *duplicates]
        if isinstance(definition, str):
            for path in found.unknown:
                drop(obj, path)
    report(request, api_version, kind, problems)


def prune(resource: Resource, obj: dict[str, Any]) -> list[str]:
    """Drop unknown fields of an object the server was handed by others, in place; its type errors."""
    shape = resource.shape
    if not shape:
        return []
    found = schema.load().check(shape, obj) if isinstance(shape, str) else shape.check(obj)
    if isinstance(shape, str):
        for path in found.unknown:
            drop(obj, path)
    return list(found.errors)


def drop(value: Any, path: str) -> None:
    """Remove the field at a path such as `spec.containers[0].foo`, in place; keys may hold dots themselves. Pure."""
    if isinstance(value, list):
        index, _, rest = path[1:].partition("]")
        drop(value[int(index)], rest.removeprefix("."))
        return
    if path in value:
        del value[path]
        return
    for key, inner in value.items():
        if path.startswith((key + ".", key + "[")) and isinstance(inner, dict | list):
            drop(inner, path[len(key):].removeprefix("."))
            return


async def decode(request: Request, api_version: str, kind: str, definition: Any) -> dict[str, Any]:
    """The body as an object of the given type. Raises BadRequest, TooLarge, UnsupportedMediaType."""
    data = await request.body()
    duplicates: list[str] = []
    try:
        obj = wire.decode(data, request.content_type, duplicates)
    except ApiError:
        raise
    except ValueError as error:
        raise cannot_handle(api_version, kind, str(error)) from None
    if not isinstance(obj, dict):
        raise cannot_handle(api_version, kind, "json: cannot unmarshal into Go value of type " + kind)
    typed(obj, api_version, kind)
    check(request, definition, api_version, kind, obj, duplicates)
    if not isinstance(obj.get("metadata"), dict):
        obj["metadata"] = {}
    return obj


def typed(obj: dict[str, Any], api_version: str, kind: str) -> None:
    """Fill in the type from the endpoint, or refuse another one. Raises BadRequest."""
    given = (obj.get("apiVersion") or api_version, obj.get("kind") or kind)
    if given != (api_version, kind):
        group, _, version = str(given[0]).rpartition("/")
        if given[1] == kind:
            raise BadRequest(f"the API version in the data ({given[0]}) does not match the expected API version "
                             f"({api_version})")
        expected = f"{kind} in version \"{api_version.rpartition('/')[2]}\""
        raise BadRequest(f'{given[1]} in version "{version or group}" cannot be handled as a {expected.split()[0]}: '
                         f"no kind \"{given[1]}\" is registered for the internal version of group \"{group}\"")
    obj["apiVersion"], obj["kind"] = api_version, kind


def place(request: Request, resource: Resource, obj: dict[str, Any], name: str = "") -> None:
    """Make the body agree with the URL: its namespace, and its name when the URL has one. Raises BadRequest."""
    metadata = obj["metadata"]
    if resource.namespaced:
        given = metadata.get("namespace")
        if given and given != request.namespace:
            raise BadRequest("the namespace of the provided object does not match the namespace sent on the request")
        metadata["namespace"] = request.namespace
    else:
        metadata.pop("namespace", None)
    if name:
        given = metadata.get("name")
        if given and given != name:
            raise BadRequest(f"the name of the object ({given}) does not match the name on the URL ({name})")
        metadata["name"] = name


def object_of(request: Request, resource: Resource) -> Any:
    """A coroutine: the body as an object of the resource's own kind. Raises UnsupportedMediaType."""
    if resource.custom and wire.PROTOBUF in request.content_type:  # only compiled types have field numbers
        raise UnsupportedMediaType("the body of the request was in an unknown format - accepted media types include: "
                                   + ", ".join(t for t in wire.ACCEPTED if t != wire.PROTOBUF))
    return decode(request, resource.api_version, resource.kind, resource.shape)
