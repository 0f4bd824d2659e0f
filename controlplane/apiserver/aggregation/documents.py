"""What other servers say about themselves, in the form of this server's own documents.

Owns the order of groups and versions once other servers take part (their APIServices' priorities decide), the entries
of their kinds in aggregated discovery, the union of OpenAPI v2 documents, and the v3 form of a server's v2 document.
Pure. Called by `discovery` and
`openapi`.

Upstream: k8s.io/kube-aggregator/pkg/apiserver/handler_discovery.go, pkg/controllers/openapi/aggregator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.machinery import apiservices
from controlplane.machinery.customdefinitions import version_rank

if TYPE_CHECKING:
    from controlplane.apiserver.aggregation.remotes import Remotes
    from controlplane.machinery.resources import Registry

Body = dict[str, Any]


def groups(registry: Registry, remotes: Remotes | None) -> dict[str, list[str]]:
    """Every group in discovery's order with its versions, the preferred one first."""
    own = registry.group_versions()
    if not remotes:
        return own
    ranks: dict[str, dict[str, tuple[int, int]]] = {}
    for resource in registry:
        ranks.setdefault(resource.group, {})[resource.version] = (
            apiservices.CUSTOM_PRIORITY if resource.custom else apiservices.priority(resource.group, resource.version))
    for remote in remotes:
        group, version = remote.group_version
        ranks.setdefault(group, {})[version] = remote.spec["groupPriorityMinimum"], remote.spec["versionPriority"]
    places = {group: place for place, group in enumerate(own)}

    def order(group: str) -> tuple[int, int, str]:
        return -max(first for first, _ in ranks[group].values()), places.get(group, len(places)), group
    return {group: sorted(ranks[group], key=lambda v: (-ranks[group][v][1], version_rank(v)))
            for group in sorted(ranks, key=order)}


def version_of(remote: Any) -> Body:
    """The entry of a remote version in aggregated discovery: stale while nobody knows what it serves now."""
    fresh = remote.available and remote.resources is not None
    return {"version": remote.group_version[1], "freshness": "Current" if fresh else "Stale",
            "resources": _resources(remote.resources or [])}


def _resources(listed: list[Body]) -> list[Body]:
    found: dict[str, Body] = {}
    for entry in listed:
        name, _, sub = entry["name"].partition("/")
        kind = {"group": entry.get("group") or "", "version": entry.get("version") or "", "kind": entry["kind"]}
        verbs = entry.get("verbs") or []
        parent = found.setdefault(name, {"resource": name})
        if sub:
            parent.setdefault("subresources", []).append({"subresource": sub, "responseKind": kind, "verbs": verbs})
            continue
        parent |= {"responseKind": kind, "scope": "Namespaced" if entry.get("namespaced") else "Cluster",
                   "singularResource": entry.get("singularName") or entry["kind"].lower(), "verbs": verbs}
        parent |= {field: entry[field] for field in ("shortNames", "categories") if entry.get(field)}
    return [entry for entry in found.values() if "verbs" in entry]


def merged(own: Body, root: str, other: Body) -> Body:
    """A swagger document with another's part: the paths below `root` and the definitions missing so far."""
    paths = {path: item for path, item in other.get("paths", {}).items() if f"{path}/".startswith(root + "/")}
    return {**own, "paths": {**paths, **own["paths"]},
            "definitions": {**other.get("definitions", {}), **own["definitions"]}}


# --- a v2 document in the form of v3 ---------------------------------------------------------------------------------

# What of a v2 parameter stays beside its schema in v3.
_PARAMETER = ("name", "in", "description", "required", "allowEmptyValue", "uniqueItems")


def upgraded(root: str, swagger: Body) -> Body:
    """The v3 document of the paths below `root` of a server that has a v2 document only."""
    made = {"openapi": "3.0.0", "info": swagger.get("info") or {},
            "paths": {path: _upgraded_path(item, swagger)
                      for path, item in merged({"paths": {}, "definitions": {}}, root, swagger)["paths"].items()},
            "components": {"schemas": swagger.get("definitions") or {}}}
    return _refer(made)


def _refer(node: Any) -> Any:
    """With references to where v3 keeps schemas."""
    if isinstance(node, list):
        return [_refer(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {key: "#/components/schemas/" + value.removeprefix("#/definitions/")
            if key == "$ref" and isinstance(value, str) else _refer(value) for key, value in node.items()}


def _upgraded_path(item: Body, swagger: Body) -> Body:
    return {key: _upgraded_operation(value, swagger) if isinstance(value, dict) else
            [_upgraded_parameter(one) for one in value] if key == "parameters" else value
            for key, value in item.items()}


def _upgraded_operation(operation: Body, swagger: Body) -> Body:
    made = {key: value for key, value in operation.items() if key not in ("consumes", "produces", "schemes")}
    parameters = operation.get("parameters") or []
    if parameters:
        made["parameters"] = [_upgraded_parameter(one) for one in parameters if one.get("in") != "body"]
    if (body := next((one for one in parameters if one.get("in") == "body"), None)) is not None:
        made["requestBody"] = {key: body[key] for key in ("description", "required") if key in body} | {
            "content": _content(operation.get("consumes") or swagger.get("consumes"), body.get("schema"))}
    produced = operation.get("produces") or swagger.get("produces")
    made["responses"] = {
        code: {"description": answer.get("description", "")} | (
            {"content": _content(produced, answer["schema"])} if "schema" in answer else {})
        for code, answer in (operation.get("responses") or {}).items()}
    return made


def _content(medias: list[str] | None, schema: Any) -> Body:
    return {media: {"schema": schema or {}} for media in medias or ["*/*"]}


def _upgraded_parameter(parameter: Body) -> Body:
    if "$ref" in parameter:
        return parameter
    return {key: parameter[key] for key in _PARAMETER if key in parameter} | {
        "schema": {key: value for key, value in parameter.items() if key not in _PARAMETER}}
