"""Tables of custom resources: the columns a definition asks for, by JSONPath.

Owns the cells of one version's rows. A path that finds nothing, or something of another type than the column says,
leaves the cell empty: a table is never refused for what an object holds. Pure. Found by `machinery.tables` as the
resource's `printer`.

Upstream: k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor.
"""

from __future__ import annotations

from typing import Any

import orjson

from controlplane.machinery import jsonpath
from controlplane.machinery.tables.text import age

Object = dict[str, Any]

_NAME = {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}
_AGE = {"name": "Age", "type": "date", "description": "", "jsonPath": ".metadata.creationTimestamp"}


class Columns:
    """`definitions()` and `cells(obj, now)` of one version."""

    def __init__(self, asked: list[Object]) -> None:
        self._asked = asked or [_AGE]
        self._paths = [jsonpath.parse(column["jsonPath"]) for column in self._asked]

    def definitions(self) -> list[Object]:
        shown = [{"name": c["name"], "type": c["type"], "format": c.get("format") or "",
                  "description": c.get("description") or "", "priority": c.get("priority") or 0}
                 for c in self._asked]
        return [_NAME, *shown]

    def cells(self, obj: Object, now: float) -> list[Any]:
        made: list[Any] = [(obj.get("metadata") or {}).get("name", "")]
        for column, path in zip(self._asked, self._paths, strict=True):
            found = path(obj)
            made.append(_cell(column["type"], found[0], now) if found else None)
        return made


def _cell(kind: str, value: Any, now: float) -> Any:
    if kind == "string":
        if value is None:
            return None
        return value if isinstance(value, str) else orjson.dumps(value).decode()
    if kind == "date":
        return age(value, now) if isinstance(value, str) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if kind == "integer" else value
