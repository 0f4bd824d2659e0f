"""What this server serves: the legacy and the aggregated discovery documents, made from the registry.

Owns `/`, `/api`, `/api/v1`, `/apis`, `/apis/<group>` and `/apis/<group>/<version>` of what is served here; what other
servers serve (`aggregation`) is listed among it. Promises: groups come in the registry's order, or by the priorities of
their APIServices, which is the order kubectl resolves short names in; a document changes its ETag exactly when its
content changes; the aggregated form is served as v2 and, for older kubectl, as v2beta1 with the same body. Documents
are kept encoded until the registry changes. It asks nobody and never touches the store. Called by the server for
paths that are no resource paths.

Upstream: k8s.io/apiserver/pkg/endpoints/discovery.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from controlplane.apiserver.aggregation import documents
from controlplane.apiserver.aggregation.remotes import Remotes
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import JSON, Response
from controlplane.machinery.errors import MethodNotAllowed
from controlplane.machinery.resources import Registry, Resource, Subresource

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"
VERSIONS = ("v2", "v2beta1")  # of apidiscovery.k8s.io
Body = dict[str, Any]
Groups = dict[str, list[str]]  # in discovery's order, each with its versions


def aggregated_version(accept: str) -> str:
    """The aggregated form an Accept header prefers, "" for the legacy one: the first clause this server can serve."""
    for clause in accept.split(","):
        media, *parameters = (part.strip() for part in clause.split(";"))
        given = dict(p.split("=", 1) for p in parameters if "=" in p)
        if media not in (JSON, "*/*", "application/*"):
            continue
        if given.get("as") == "APIGroupDiscoveryList" and given.get("g") == "apidiscovery.k8s.io":
            if given.get("v") in VERSIONS:
                return given["v"]
        elif "as" not in given:
            return ""
    return ""


def api_resources(registry: Registry, group: str, version: str) -> Body:
    """The APIResourceList of one group-version."""
    entries: list[Body] = []
    for resource in sorted(registry.in_version(group, version), key=lambda r: r.plural):
        entries.append(_legacy(resource))
        entries += [_legacy_sub(resource, sub) for sub in resource.subresources]
    return {"kind": "APIResourceList", "apiVersion": "v1", "resources": entries,
            "groupVersion": f"{group}/{version}" if group else version}


def _legacy(resource: Resource) -> Body:
    entry: Body = {"name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
                   "kind": resource.kind, "verbs": list(resource.verbs)}
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _legacy_sub(resource: Resource, sub: Subresource) -> Body:
    entry: Body = {"name": f"{resource.plural}/{sub.name}", "singularName": "", "namespaced": resource.namespaced}
    if sub.version:
        entry |= {"group": sub.group, "version": sub.version}
    return entry | {"kind": sub.kind, "verbs": list(sub.verbs)}


def api_group(groups: Groups, group: str) -> Body:
    """The APIGroup of one group, without kind and apiVersion."""
    versions = [{"groupVersion": f"{group}/{v}", "version": v} for v in groups[group]]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def aggregated(registry: Registry, core: bool, version: str, groups: Groups, remotes: Remotes | None = None) -> Body:
    """The APIGroupDiscoveryList of `/api` (core) or `/apis`."""
    items = []
    for group, versions in groups.items():
        if bool(group) == core:
            continue
        items.append({"metadata": {"name": group} if group else {},
                      "versions": [_version(registry, group, v, remotes) for v in versions]})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{version}", "metadata": {},
            "items": items}


def _version(registry: Registry, group: str, version: str, remotes: Remotes | None) -> Body:
    if remotes and (remote := remotes.get(group, version)) is not None:
        return documents.version_of(remote)
    resources = sorted(registry.in_version(group, version), key=lambda r: r.plural)
    return {"version": version, "freshness": "Current", "resources": [_entry(r) for r in resources]}


def _entry(resource: Resource) -> Body:
    entry: Body = {"resource": resource.plural, "responseKind": _kind("", "", resource.kind),
                   "scope": "Namespaced" if resource.namespaced else "Cluster",
                   "singularResource": resource.singular, "verbs": list(resource.verbs)}
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if resource.subresources:
        entry["subresources"] = [{"subresource": s.name, "responseKind": _kind(s.group, s.version, s.kind),
                                  "verbs": list(s.verbs)} for s in resource.subresources]
    return entry


def _kind(group: str, version: str, kind: str) -> Body:
    """Empty group and version mean: the enclosing ones."""
    return {"group": group, "version": version, "kind": kind}


def paths(groups: Groups) -> list[str]:
    """What `/` lists."""
    found = {"/.well-known/openid-configuration", "/api", "/apis", "/healthz", "/livez", "/metrics", "/metrics/slis",
             "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"}
    for group, versions in groups.items():
        found |= {f"/apis/{group}/{v}" for v in versions} | {f"/apis/{group}"} if group else {
            f"/api/{v}" for v in versions}
    return sorted(found)


class Discovery:
    """Answers the discovery paths."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._fingerprint = 0
        self._groups: Groups = {}
        self._documents: dict[tuple[str, str], Response] = {}  # bounded: two forms of each path that exists

    async def handle(self, request: Request) -> Response | None:
        """The document of `request.path`, 304 when the client has it already, None when the path is not ours."""
        path = request.path.rstrip("/") or "/"
        if path != "/" and not path.startswith("/api"):
            return None
        remotes = self._remotes()
        fingerprint = hash((*self._context.registry, remotes.changes if remotes is not None else 0))
        if fingerprint != self._fingerprint:
            self._documents.clear()
            self._fingerprint = fingerprint
            self._groups = documents.groups(self._context.registry, remotes)
        form = aggregated_version(request.accept) if path in ("/api", "/apis") else ""
        answer = self._documents.get((path, form))
        if answer is None:
            document = self._document(path, form)
            if document is None:
                return None
            answer = self._documents[path, form] = _encode(document, form)
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        if (tag := _tag(answer)) and request.headers.get("If-None-Match") == tag:
            return Response(304, b"", "", answer.headers)
        return Response(answer.status, answer.body, answer.content_type, answer.headers)

    def _remotes(self) -> Remotes | None:
        return self._context.aggregator.remotes if self._context.aggregator is not None else None

    def _document(self, path: str, form: str) -> Body | None:
        registry, groups = self._context.registry, self._groups
        if path == "/":
            return {"paths": paths(groups)}
        match path.strip("/").split("/"):
            case ["api"] if form:
                return aggregated(registry, True, form, groups)
            case ["apis"] if form:
                return aggregated(registry, False, form, groups, self._remotes())
            case ["api"]:
                options = self._context.options
                where = {"clientCIDR": "0.0.0.0/0",
                         "serverAddress": f"{options.advertise_address or '127.0.0.1'}:{options.secure_port}"}
                return {"kind": "APIVersions", "versions": groups[""],
                        "serverAddressByClientCIDRs": [where]}
            case ["apis"]:
                return {"kind": "APIGroupList", "apiVersion": "v1",
                        "groups": [api_group(groups, g) for g in groups if g]}
            case ["apis", group] if group and group in groups:
                return {"kind": "APIGroup", "apiVersion": "v1", **api_group(groups, group)}
            case ["api", version] if version in groups[""]:
                return api_resources(registry, "", version)
            case ["apis", group, version] if group and version in groups.get(group, ()):
                return api_resources(registry, group, version)
        return None


def _encode(document: Body, form: str) -> Response:
    body = orjson.dumps(document)
    headers = [("Vary", "Accept")]
    if form:
        headers.append(("ETag", f'"{hashlib.sha256(body).hexdigest().upper()}"'))
    return Response(200, body, AGGREGATED.format(form) if form else JSON, headers)


def _tag(answer: Response) -> str:
    return next((value for name, value in answer.headers if name == "ETag"), "")
