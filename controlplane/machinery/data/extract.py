"""Makes the committed schema files from the `kubernetes-validate` package; run when the Kubernetes version moves.

Reads the package's JSON-schema definitions, keeps those that any kind of `machinery.resources` reaches (served or not),
and writes two files beside this one: `schemas.gz`, the structure, and `descriptions.gz`, the prose for
`kubectl explain`. Each is gzip over sorted lines `name TAB compact JSON`, so that a reader can index it without parsing
it. The same input gives the same bytes. Never imported by the product; a test compares its output with what is
committed. Usage: `python -m controlplane.machinery.data.extract`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from controlplane.machinery.data import DESCRIPTIONS, SCHEMAS

VERSION = "1.36.0"  # of Kubernetes, as the package names its folders

Node = dict[str, Any]
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
# Bodies that are no kind of their own in the table.
_MORE = (*(_META + n for n in ("DeleteOptions", "Status", "ListMeta", "WatchEvent", "APIGroup", "APIGroupList",
                               "APIResourceList", "APIVersions", "LabelSelector")),
         "io.k8s.api.core.v1.Binding", "io.k8s.api.autoscaling.v1.Scale", "io.k8s.api.policy.v1.Eviction",
         "io.k8s.api.authentication.v1.TokenRequest", "io.k8s.apimachinery.pkg.version.Info")
_KEPT = ("format", "x-kubernetes-patch-merge-key", "x-kubernetes-patch-strategy", "x-kubernetes-list-type",
         "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-group-version-kind")
# The package spells these two as a choice of types; here they are texts with a format of their own.
_SPECIAL = {"io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string", "format": "quantity"},
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": "string", "format": "int-or-string"}}


def source() -> Path:
    """The package's definitions. Raises ModuleNotFoundError when it is not installed."""
    import kubernetes_validate
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    return folder / f"v{VERSION}-local" / "_definitions.json"


def compact(node: Node) -> Node:
    """A node of the package as a node of ours: no prose, plain types, bare reference names, sorted keys."""
    out: Node = {}
    if "$ref" in node and isinstance(node["$ref"], str):
        out["$ref"] = node["$ref"].rsplit("/", 1)[1]
    kind = node.get("type")
    if isinstance(kind, list):
        kind = next(t for t in kind if t != "null")
    if isinstance(kind, str):
        out["type"] = kind
    for key in _KEPT:
        if key in node:
            out[key] = node[key]
    if isinstance(node.get("properties"), dict):
        out["properties"] = {name: compact(sub) for name, sub in sorted(node["properties"].items())}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            out[key] = compact(node[key])
    if node.get("required"):
        out["required"] = sorted(node["required"])
    if "$ref" not in out and _open(out):
        out["x-kubernetes-preserve-unknown-fields"] = True
    return dict(sorted(out.items()))


def _open(node: Node) -> bool:
    """Whether anything may stand here: an object without a shape, or no type at all."""
    return "type" not in node or (node["type"] == "object" and not {"properties", "additionalProperties"} & node.keys())


def _references(node: Node) -> Iterator[str]:
    if "$ref" in node:
        yield node["$ref"]
    for sub in (*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")):
        if isinstance(sub, dict):
            yield from _references(sub)


def roots(known: Iterable[str]) -> set[str]:
    """The definitions of all kinds and of their lists."""
    from controlplane.machinery import resources
    names = set(_MORE)
    for group_version, rows in resources._TABLE.items():
        group, _, version = group_version.rpartition("/")
        for line in rows.strip().splitlines():
            name = resources._definition(group, version, line.split()[1])
            names |= {name, name + "List"}
    return names & set(known)


def extract(definitions: dict[str, Node]) -> tuple[dict[str, Node], dict[str, dict[str, str]]]:
    """(nodes by name, descriptions by name and then property; the property "" is the definition itself)."""
    nodes: dict[str, Node] = {}
    queue = sorted(roots(definitions))
    while queue:
        name = queue.pop()
        if name in nodes:
            continue
        nodes[name] = _SPECIAL.get(name) or compact(definitions[name])
        queue.extend(_references(nodes[name]))
    prose: dict[str, dict[str, str]] = {}
    for name in nodes:
        found = {"": definitions[name].get("description", "")}
        for field, sub in (definitions[name].get("properties") or {}).items():
            found[field] = sub.get("description", "")
        prose[name] = {field: text for field, text in found.items() if text}
    return nodes, prose


def lines(table: dict[str, Any]) -> bytes:
    """The content of a file before compression."""
    rows = (f"{name}\t{json.dumps(table[name], separators=(',', ':'), sort_keys=True, ensure_ascii=False)}\n"
            for name in sorted(table))
    return "".join(rows).encode()


def main() -> None:
    nodes, prose = extract(json.loads(source().read_text())["$defs"])
    for path, table in ((SCHEMAS, nodes), (DESCRIPTIONS, prose)):
        path.write_bytes(gzip.compress(lines(table), 9, mtime=0))
        print(f"{path.name}: {len(table)} definitions, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
