"""How lists are printed: upstream's columns for each kind, and the cells the server computes for them.

Owns the choice of columns and rows; the kinds live in the modules of this package, each a function from an object to
its cells. Pure: the time is an argument. Unknown and custom kinds print a name and an age. kubectl prints cells
verbatim, so every "3 (5m ago)" is made here. Called by the apiserver for lists, single objects and watch events asked
for as a Table.

Upstream: k8s.io/kubernetes/pkg/printers/internalversion.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.resources import Resource
from controlplane.machinery.tables import cluster, core, pods, workloads
from controlplane.machinery.tables.text import Object, Printer, age

_AGED = "Name, Age"
_DATED = "Name, Created At:date"
_DATED_KINDS = frozenset((  # kinds older than upstream's printing of ages
    "limitranges", "clusterroles.rbac.authorization.k8s.io", "roles.rbac.authorization.k8s.io",
    "csistoragecapacities.storage.k8s.io", "customresourcedefinitions.apiextensions.k8s.io"))
_PRINTERS: dict[str, Printer] = {**core.PRINTERS, **pods.PRINTERS, **workloads.PRINTERS, **cluster.PRINTERS}


def columns(resource: Resource) -> list[dict[str, Any]]:
    """The columnDefinitions of a kind. Columns of priority 1 show with `-o wide` only."""
    own: Any = resource.extra.get("printer")
    if own is not None:
        return own.definitions()  # type: ignore[no-any-return]
    printer = _PRINTERS.get(resource.name)
    text = printer.columns if printer else _DATED if resource.name in _DATED_KINDS else _AGED
    return [_column(word.strip()) for word in text.split(",")]


def _column(word: str) -> dict[str, Any]:
    name, _, kind = word.rstrip("*").partition(":")
    return {"name": name, "type": kind or "string", "format": "name" if name == "Name" else "", "description": "",
            "priority": 1 if word.endswith("*") else 0}


def row(resource: Resource, obj: Object, now: float) -> dict[str, Any]:
    """One row: `cells`, and `conditions` for a pod that is done. The caller adds `object`."""
    own: Any = resource.extra.get("printer")
    if own is not None:
        return {"cells": own.cells(obj, now)}
    printer = _PRINTERS.get(resource.name)
    if printer is not None:
        cells = printer.cells(obj, now)
        conditions = printer.conditions(obj) if printer.conditions else []
        return {"cells": cells, "conditions": conditions} if conditions else {"cells": cells}
    metadata = obj.get("metadata") or {}
    created = metadata.get("creationTimestamp")
    return {"cells": [metadata.get("name", ""), created if resource.name in _DATED_KINDS else age(created, now)]}


def table(resource: Resource, items: list[Object], now: float) -> dict[str, Any]:
    """A Table without metadata, its rows without objects: what to attach is the caller's choice."""
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": columns(resource),
            "rows": [row(resource, item, now) for item in items]}
