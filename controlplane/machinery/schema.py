"""The types of the API: one compact node per definition, and the check every written body goes through.

A *node* is a dict in the manner of OpenAPI, without prose: `type` (object, array, string, integer, number, boolean),
`format` (int32, int64, double, byte, date-time, quantity, int-or-string), `properties`, `items`,
`additionalProperties`, `required`, `$ref` (the bare name of another definition, perhaps beside the next ones),
`x-kubernetes-patch-merge-key`, `-patch-strategy`, `-list-type`, `-list-map-keys`, `-map-type`,
`-group-version-kind`, `-preserve-unknown-fields`. Nodes are shared: never change one. `Schemas.resolve(node)` follows a
`$ref`. A definition is decoded when it is first asked for, so a process pays for the kinds it touches.

Called by decoding, strategic merge, server-side apply, OpenAPI and explain.
"""

from __future__ import annotations

import gzip
from functools import cache
from typing import Any

import orjson

from controlplane.machinery.checker import Checkers, Problems
from controlplane.machinery.data import DESCRIPTIONS, SCHEMAS

Node = dict[str, Any]
__all__ = ["Node", "Problems", "Schemas", "check", "load"]


class _Lines:
    """A data file as an index of its lines; a line is decoded when asked for."""

    def __init__(self, content: bytes) -> None:
        self.rows: dict[str, bytes] = {}
        for line in content.splitlines():
            name, _, body = line.partition(b"\t")
            self.rows[name.decode()] = body


class Schemas:
    """All definitions, by names such as `io.k8s.api.core.v1.Pod`."""

    def __init__(self, content: bytes) -> None:
        self._lines = _Lines(content).rows
        self._nodes: dict[str, Node] = {}
        self._shared: dict[bytes, Node] = {}
        self._checkers = Checkers(self)

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def names(self) -> list[str]:
        return list(self._lines)

    def definition(self, name: str) -> Node:
        """The node of a definition. Raises KeyError."""
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = orjson.loads(self._lines[name])
            for field, sub in (node.get("properties") or {}).items():
                node["properties"][field] = self._shared.setdefault(orjson.dumps(sub), sub)
        return node

    def resolve(self, node: Node) -> Node:
        """The node itself, or the definition it refers to."""
        return self.definition(node["$ref"]) if "$ref" in node else node

    def raw(self, name: str) -> bytes:
        """The node as the compact JSON it is kept in, for whoever only passes it on. Raises KeyError."""
        return self._lines[name]

    def check(self, name: str, obj: Any) -> Problems:
        """What is wrong with a decoded body of this definition; nothing, when there is no such definition."""
        return self._checkers.check(name, obj) if name in self._lines else Problems([], [])


@cache
def load() -> Schemas:
    """The schemas of this release: read once, decoded piece by piece."""
    return Schemas(gzip.decompress(SCHEMAS.read_bytes()))


def check(definition: str, obj: Any) -> Problems:
    """`load().check`: unknown fields, and type errors as Go's decoder words them."""
    return load().check(definition, obj)


def descriptions(name: str) -> dict[str, str]:
    """The prose of a definition, by property; "" is the definition's own. Read from disk at each call: only
    `explain` and the OpenAPI documents ask, and they keep what they build."""
    rows = _Lines(gzip.decompress(DESCRIPTIONS.read_bytes())).rows
    return orjson.loads(rows[name]) if name in rows else {}


def all_descriptions() -> dict[str, dict[str, str]]:
    """`descriptions` of every definition, for a document that needs many at once."""
    rows = _Lines(gzip.decompress(DESCRIPTIONS.read_bytes())).rows
    return {name: orjson.loads(body) for name, body in rows.items()}
