"""The form an answer takes: JSON, YAML, a Table, or metadata only.

Owns the reading of `Accept` for resources and the rendering of objects, lists and watch events into the form asked for.
Plain JSON is the fast case and is served from the cache's bytes by the callers; everything here decodes. It promises
that the work for large bodies is done off the event loop. Called by the verbs.

Upstream: k8s.io/apiserver/pkg/endpoints/handlers/{negotiation,response}.go.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from controlplane.apiserver.request import Request
from controlplane.apiserver.response import JSON, Response
from controlplane.machinery.errors import NotAcceptable
from controlplane.machinery.resources import Resource

META = "meta.k8s.io/v1"
YAML = "application/yaml"
GZIP_ABOVE = 128 * 1024  # bytes; upstream's threshold: below, compressing costs more than it saves
GZIP_LEVEL = 1  # a LIST is compressed once and read once: speed counts
_BROWSERS = ("curl", "Wget", "Mozilla")
_WORDING = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")


@dataclass(frozen=True, slots=True)
class Form:
    """`media` is JSON or YAML; `shape` is "", "Table", "PartialObjectMetadata" or "PartialObjectMetadataList"."""

    media: str = JSON
    shape: str = ""
    version: str = META  # of the shape

    @property
    def plain(self) -> bool:
        return not self.shape and self.media == JSON


PLAIN = Form()


def not_acceptable() -> NotAcceptable:
    return NotAcceptable("only the following media types are accepted: " + ", ".join(_WORDING))


@lru_cache(maxsize=256)  # clients send a handful of headers; the bound keeps a hostile one from filling memory
def negotiate(accept: str) -> Form:
    """The first clause of an Accept header that can be served. Raises NotAcceptable."""
    if not accept:
        return PLAIN
    for clause in accept.split(","):
        media, *rest = (part.strip() for part in clause.split(";"))
        parameters = dict(p.split("=", 1) for p in rest if "=" in p)
        if media in ("*/*", "application/*", JSON):
            media = JSON
        elif media != YAML:
            continue
        shape = parameters.get("as", "")
        if not shape:
            if parameters.get("stream", "") in ("", "watch"):
                return Form(media)
            continue
        if shape not in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList"):
            continue
        if parameters.get("g") == "meta.k8s.io" and parameters.get("v") in ("v1", "v1beta1"):
            return Form(media, shape, f"meta.k8s.io/{parameters['v']}")
    raise not_acceptable()


def form_of(request: Request) -> Form:
    form = negotiate(request.accept)
    if form.shape and request.resource is not None and "get" not in request.resource.verbs:
        raise not_acceptable()  # a review has no metadata to tabulate
    return form


def pretty(request: Request) -> bool:
    if "pretty" in request.query:
        return request.query.flag("pretty")
    return request.user_agent.startswith(_BROWSERS)


def partial(obj: dict[str, Any], version: str = META) -> dict[str, Any]:
    return {"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": obj.get("metadata") or {}}


def entries(request: Request, resource: Resource, form: Form, now: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """How one object stands in a Table, with what `includeObject` asks for, or in a list of metadata."""
    if form.shape == "PartialObjectMetadataList":
        return lambda obj: partial(obj, form.version)
    from controlplane.machinery import tables
    include = request.query.get("includeObject") or "Metadata"

    def row(obj: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = tables.row(resource, obj, now)
        if include != "None":
            made["object"] = obj if include == "Object" else partial(obj, form.version)
        return made
    return row


def opening(resource: Resource, metadata: dict[str, Any], form: Form) -> dict[str, Any]:
    """A Table or a list of metadata, but for its rows or items, which come last."""
    if form.shape == "PartialObjectMetadataList":
        return {"kind": form.shape, "apiVersion": form.version, "metadata": metadata, "items": []}
    from controlplane.machinery import tables
    return {"kind": "Table", "apiVersion": form.version, "metadata": metadata,
            "columnDefinitions": tables.columns(resource), "rows": []}


def table(request: Request, resource: Resource, objects: Sequence[dict[str, Any]], now: float, form: Form,
          metadata: dict[str, Any]) -> dict[str, Any]:
    """A Table of the objects."""
    return {**opening(resource, metadata, form), "rows": list(map(entries(request, resource, form, now), objects))}


def shaped_object(request: Request, resource: Resource, obj: dict[str, Any], form: Form, now: float) -> dict[str, Any]:
    """One object in the asked-for shape."""
    if form.shape == "Table":
        revision = (obj.get("metadata") or {}).get("resourceVersion")
        return table(request, resource, [obj], now, form, {"resourceVersion": revision} if revision else {})
    return partial(obj, form.version) if form.shape == "PartialObjectMetadata" else obj


def shaped_list(request: Request, resource: Resource, objects: list[dict[str, Any]], metadata: dict[str, Any],
                form: Form, now: float) -> dict[str, Any]:
    """A list in the asked-for shape; `objects` are whole objects with apiVersion and kind."""
    if form.shape == "Table":
        return table(request, resource, objects, now, form, metadata)
    if form.shape == "PartialObjectMetadataList":
        items = [partial(obj, form.version) for obj in objects]
        return {"kind": form.shape, "apiVersion": form.version, "metadata": metadata, "items": items}
    if not resource.custom:
        objects = [{k: v for k, v in obj.items() if k not in ("apiVersion", "kind")} for obj in objects]
    return {"kind": resource.lists, "apiVersion": resource.api_version, "metadata": metadata, "items": objects}


def encode(obj: Any, form: Form, indent: bool) -> bytes:
    if form.media == YAML:
        import yaml
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        return yaml.dump(obj, Dumper=dumper, default_flow_style=False, allow_unicode=True).encode()
    return orjson.dumps(obj, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE) if indent else orjson.dumps(obj)


def warning_headers(request: Request) -> list[tuple[str, str]]:
    """`Warning` lines, escaped and cut to what proxies let through (4 KiB in all)."""
    lines, left = [], 4096
    for text in request.warnings:
        clean = "".join(c if c.isprintable() else " " for c in text).replace("\\", "\\\\").replace('"', '\\"')
        value = f'299 - "{clean}"'
        left -= len(value)
        if left < 0:
            break
        lines.append(("Warning", value))
    return lines


async def answer(request: Request, obj: dict[str, Any], resource: Resource | None, now: float,
                 status: int = 200) -> Response:
    """An object, shaped, encoded and with the collected warnings."""
    form = form_of(request)
    if form.shape and resource is not None and obj.get("kind") != "Status":
        obj = shaped_object(request, resource, obj, form, now)
    headers = warning_headers(request) if request.warnings else ()
    return Response(status, encode(obj, form, pretty(request)), form.media, headers)


async def compressed(request: Request, response: Response) -> Response:
    """The same answer, gzipped when that was asked for and pays."""
    if response.size <= GZIP_ABOVE or "gzip" not in request.headers.get("Accept-Encoding", ""):
        return response
    body = await asyncio.get_running_loop().run_in_executor(None, _gzip, response.body)
    return Response(response.status, body, response.content_type, [*response.headers, ("Content-Encoding", "gzip"),
                                                                   ("Vary", "Accept-Encoding")])


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()
