"""The OpenAPI documents: made from the schemas when someone asks, and forgotten when nobody does.

Owns `/openapi/v2` and `/openapi/v3`, both as JSON and as protobuf (`openapiproto`). kubectl reads the latter to learn
how to merge and whether the server checks fields, and `explain` for its texts; kubectl 1.27 and 1.28 insist on the
former in protobuf. Promises: the hash in a v3 URL changes when the document may, since clients keep
it for ever under that URL; documents are built off the event loop, one at a time, and kept gzipped, a bounded number
of them. Called by the server for paths that are no resource paths.

Upstream: k8s.io/kube-openapi/pkg/handler3.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from controlplane.apiserver.aggregation import documents
from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import publish
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import JSON, Answer, Response, json_response
from controlplane.machinery.errors import MethodNotAllowed, NotAcceptable, ServiceUnavailable
from controlplane.machinery.resources import Registry, Resource

PROTOBUF = "application/com.github.proto-openapi.spec.{}.v1.0+protobuf"
VERSION = "v1.36.0"
FORM = 3  # raise when `document` changes, so that clients fetch again
KEPT = 24  # gzipped documents, 5 to 250 kB each: all group-versions of a server without custom kinds, in one form
FOR_EVER = (("Cache-Control", "public, immutable"), ("Expires", "Thu, 31 Dec 2037 23:55:55 GMT"))
PATCHES = ("application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json",
           "application/strategic-merge-patch+json")
Body = dict[str, Any]


def group_versions(registry: Registry) -> dict[str, list[Resource]]:
    """`api/v1`, `apis/apps/v1`, … and their resources."""
    found: dict[str, list[Resource]] = {}
    for resource in registry:
        found.setdefault(resource.path()[1:].removesuffix(f"/{resource.plural}"), []).append(resource)
    return found


# Texts that may be numbers: v3 can say so, and `explain` then shows the definition's name; v2 knows no choice.
CHOICES_V3: dict[str, Body] = {
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
    "int-or-string": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}}
V2_HOME = "#/definitions/"  # where the references of the v2 document point
CHOICES_V2: dict[str, Body] = {"quantity": {"type": "string"},
                               "int-or-string": {"type": "string", "format": "int-or-string"}}


class _Schemas:
    """Definitions in OpenAPI's form; `home` is where references point, `choices` the form of such definitions."""

    def __init__(self, home: str, choices: dict[str, Body]) -> None:
        from controlplane.machinery import schema
        self._schemas = schema.load()
        self._prose = schema.all_descriptions()
        self._home = home
        self._choices = choices

    def closure(self, names: Iterable[str]) -> Body:
        """The named definitions and everything they refer to."""
        found: Body = {}
        queue = list(names)
        while queue:
            name = queue.pop()
            if name in found or name not in self._schemas:
                continue
            node = orjson.loads(self._schemas.raw(name))
            queue += references(node)
            found[name] = self._definition(name, node)
        return dict(sorted(found.items()))

    def _definition(self, name: str, node: Body) -> Body:
        texts = self._prose.get(name, {})
        if (special := self._choices.get(node.get("format", ""))) is not None:
            made = special
        else:
            made = self._node(node, texts)
        return {"description": texts[""], **made} if texts.get("") else made

    def _node(self, node: Body, texts: dict[str, str]) -> Body:
        if "$ref" in node:
            reference = {"$ref": self._home + node["$ref"]}
            return self._beside(reference, {k: v for k, v in node.items() if k.startswith("x-kubernetes-")})
        made = dict(node)
        if "properties" in node:
            made["properties"] = {field: self._property(sub, texts.get(field, ""))
                                  for field, sub in node["properties"].items()}
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                made[key] = self._node(node[key], {})
        return made

    def _property(self, node: Body, text: str) -> Body:
        made = self._node(node, {})
        if not text:
            return made
        return self._beside(made, {"description": text}) if "$ref" in made else {"description": text, **made}

    def _beside(self, reference: Body, more: Body) -> Body:
        """A reference and what is said of it. Readers of v3 ignore what stands beside one; those of v2 follow no
        other form."""
        return {**more, **reference} if self._home == V2_HOME or not more else {**more, "allOf": [reference]}


def references(node: Body) -> Iterator[str]:
    """Names a node refers to."""
    if "$ref" in node:
        yield node["$ref"]
    for sub in (*(node.get("properties") or {}).values(), node.get("items"), node.get("additionalProperties")):
        if isinstance(sub, dict):
            yield from references(sub)


def paths(resource: Resource) -> Body:
    """The two paths of a kind: its collection and its objects, with what they accept."""
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    base = resource.path("{namespace}" if resource.namespaced else "")
    patches = [p for p in PATCHES if not (resource.custom and "strategic" in p)]
    named = publish.name_of(resource) if resource.custom else resource.definition
    whole: Body = {"schema": {"$ref": f"#/components/schemas/{named}"}} if named else {}

    def operation(action: str, media: Iterable[str] = ()) -> Body:
        answer: Body = {"description": "OK"}
        if action in ("get", "post", "put", "patch"):
            answer["content"] = {JSON: whole}
        made: Body = {"x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind,
                      "responses": {"200": answer}}
        if media:
            made |= {"parameters": _WRITING, "requestBody": {
                "content": {m: whole if m == JSON else {"schema": _PATCH.get(m, _ANY)} for m in media}}}
        elif action in ("list", "deletecollection"):
            made["parameters"] = _LISTING
        return made

    collection: Body = {}
    one: Body = {}
    for verb, method, place, media in (
            ("list", "get", collection, ()), ("create", "post", collection, (JSON,)),
            ("deletecollection", "delete", collection, ()), ("get", "get", one, ()),
            ("update", "put", one, (JSON,)), ("patch", "patch", one, patches), ("delete", "delete", one, ())):
        if verb in resource.verbs:
            place[method] = operation("post" if verb == "create" else verb, media)
    places = [_parameter("namespace", "path")] if resource.namespaced else []
    return {path: {**item, "parameters": parameters} if parameters else item for path, item, parameters in (
        (base, collection, places), (base + "/{name}", one, [_parameter("name", "path"), *places])) if item}


def _parameter(name: str, place: str = "query", kind: str = "string") -> Body:
    """A parameter of an operation."""
    made: Body = {"name": name, "in": place, "schema": {"type": kind, "uniqueItems": True}}
    return {**made, "required": True} if place == "path" else made


_ANY: Body = {"type": "object"}
_PATCH: dict[str, Body] = {"application/json-patch+json": {"type": "array", "items": _ANY}}
_WRITING = [_parameter(name) for name in ("dryRun", "fieldManager", "fieldValidation")]
_LISTING = [*(_parameter(name) for name in ("continue", "fieldSelector", "labelSelector", "resourceVersion",
                                            "resourceVersionMatch")),
            _parameter("limit", kind="integer"), _parameter("timeoutSeconds", kind="integer")]


def _roots(resources: list[Resource]) -> set[str]:
    """The definitions that are not referred to by others; custom kinds refer to the common metadata."""
    found = {r.definition for r in resources if r.definition}
    return found | {publish.META, publish.LIST_META} if any(r.custom for r in resources) else found


def _custom(resources: list[Resource], v2: bool) -> Body:
    return {name: made for r in resources if r.custom and r.shape
            for name, made in publish.definitions(r, v2).items()}


def document(resources: list[Resource]) -> Body:
    """The v3 document of some resources."""
    schemas = _Schemas("#/components/schemas/", CHOICES_V3)
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION},
            "paths": {path: item for r in resources for path, item in paths(r).items()},
            "components": {"schemas": schemas.closure(_roots(resources)) | _custom(resources, False)}}


def swagger(resources: list[Resource]) -> Body:
    """The v2 document of some resources: the same paths without bodies, the same schemas."""
    schemas = _Schemas(V2_HOME, CHOICES_V2)
    operations = {path: {m: {k: v for k, v in op.items() if k.startswith("x-")} | {
        "responses": {"200": {"description": "OK"}}} for m, op in item.items() if m != "parameters"}
        for r in resources for path, item in paths(r).items()}
    return {"swagger": "2.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": operations,
            "definitions": schemas.closure(_roots(resources)) | _custom(resources, True)}


class OpenAPI:
    """Answers the OpenAPI paths."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: OrderedDict[str, bytes] = OrderedDict()  # by hash, gzipped, the least used first
        self._building = asyncio.Lock()
        self._data = ""

    @property
    def _remotes(self) -> Any:
        """Other servers of some group-versions, which are empty for most clusters."""
        return self._context.aggregator.remotes if self._context.aggregator is not None else ()

    async def handle(self, request: Request) -> Answer | None:
        path = request.path.rstrip("/")
        if path not in ("/openapi/v2", "/openapi/v3") and not path.startswith("/openapi/v3/"):
            return None
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        if path == "/openapi/v2":
            return await self._v2(request)
        versions = group_versions(self._context.registry)
        if path == "/openapi/v3":
            return self._root(request, versions)
        name = path.removeprefix("/openapi/v3/")
        if (remote := self._remotes.at("/" + name) if self._remotes else None) is not None:
            if remote.translated:
                return await self._translated(request, remote.path)
            answer: Answer = await self._context.aggregator.pass_on(request, remote)
            return answer
        resources = versions.get(name)
        if resources is None:
            return None
        form = _form(request, "v3")
        tag = self._hash(name, resources)
        asked = request.query.get("hash")
        if asked and asked != tag:
            return Response(301, b"", "", [("Location", f"/openapi/v3/{name}?hash={tag}")])
        return await self._answer(request, tag, form, partial(document, resources), list(FOR_EVER) if asked else [])

    def _root(self, request: Request, versions: dict[str, list[Resource]]) -> Response:
        found = {name: {"serverRelativeURL": f"/openapi/v3/{name}?hash={self._hash(name, resources)}"}
                 for name, resources in versions.items()}
        for remote in self._remotes:
            found.pop(remote.path[1:], None)
            if remote.v3:
                found[remote.path[1:]] = {"serverRelativeURL": remote.v3}
        found = dict(sorted(found.items()))
        tag = '"' + hashlib.sha256(orjson.dumps(found)).hexdigest().upper() + '"'
        if request.headers.get("If-None-Match") == tag:
            return Response(304, b"", "", [("ETag", tag)])
        return json_response({"paths": found}, 200, [("ETag", tag), ("Vary", "Accept")])

    async def _translated(self, request: Request, root: str) -> Response | None:
        """The v3 document of a server that only has one of v2."""
        body = dict(await self._context.aggregator.swaggers()).get(root)
        if body is None:
            return None
        tag = hashlib.sha256(body).hexdigest().upper()
        try:
            return await self._answer(request, f"{root} {tag}", _form(request, "v3"),
                                      lambda: documents.upgraded(root, orjson.loads(body)), [])
        except (AttributeError, TypeError, ValueError):
            raise ServiceUnavailable(f"the OpenAPI v2 document of {root} cannot be read") from None

    async def _v2(self, request: Request) -> Response:
        resources = list(self._context.registry)
        tag, others = self._hash("v2", resources), []
        if self._remotes:
            others = await self._context.aggregator.swaggers()
            tag = hashlib.sha256(repr([tag, *((root, hashlib.sha256(body).digest()) for root, body in others)]).encode(
                )).hexdigest().upper()
        return await self._answer(request, tag, _form(request, "v2"), partial(_swagger, resources, others), [])

    async def _answer(self, request: Request, tag: str, form: str, make: Callable[[], Body],
                      headers: list[tuple[str, str]]) -> Response:
        """What `make` makes, named by `tag`, in the media type `form`."""
        quoted = f'"{tag}"'
        headers += [("ETag", quoted), ("Vary", "Accept"), ("Vary", "Accept-Encoding")]
        if request.headers.get("If-None-Match") == quoted:
            return Response(304, b"", "", headers)
        packed = await self._packed(tag, form, make)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return Response(200, packed, form, [*headers, ("Content-Encoding", "gzip")])
        return Response(200, gzip.decompress(packed), form, headers)

    async def _packed(self, tag: str, form: str, make: Callable[[], Body]) -> bytes:
        key = f"{tag} {form}"
        async with self._building:  # kubectl asks for several at once; each costs some megabytes while it is built
            packed = self._kept.get(key)
            if packed is None:
                packed = await asyncio.get_running_loop().run_in_executor(None, _build, make, form)
                self._kept[key] = packed
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return packed

    def _hash(self, name: str, resources: list[Resource]) -> str:
        """Of everything a document is made of, so that it need not be built to be named."""
        if not self._data:
            from controlplane.machinery.data import DESCRIPTIONS, SCHEMAS
            content = hashlib.sha256(SCHEMAS.read_bytes())
            content.update(DESCRIPTIONS.read_bytes())
            self._data = f"{content.hexdigest()} {VERSION} {FORM}"
        return hashlib.sha256(f"{self._data} {name} {[(r, r.shape) for r in resources]!r}".encode()).hexdigest().upper()


def _form(request: Request, version: str) -> str:
    """The media type to answer in: protobuf where the client names it before JSON."""
    for media in request.accept.split(",") if request.accept else (JSON,):
        kind = media.partition(";")[0].strip()
        if kind.startswith("application/com.github.proto-openapi.spec." + version) and kind.endswith("protobuf"):
            return PROTOBUF.format(version)
        if kind in (JSON, "*/*", "application/*"):
            return JSON
    raise NotAcceptable(f"only the following media types are accepted: {JSON}, {PROTOBUF.format(version)}")


def _build(make: Callable[[], Body], form: str) -> bytes:
    from controlplane.apiserver.describing import openapiproto
    return gzip.compress(orjson.dumps(make()) if form == JSON else openapiproto.encode(make()), 5, mtime=0)


def _swagger(resources: list[Resource], others: list[tuple[str, bytes]]) -> Body:
    """`others` are root path and swagger document of servers that serve more."""
    made = swagger(resources)
    for root, body in others:
        with suppress(ValueError, AttributeError):  # what is no document adds nothing
            made = documents.merged(made, root, orjson.loads(body))
    return made
