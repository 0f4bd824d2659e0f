"""ComponentStatus: whether the store, the controllers and the scheduler work, told from what the server itself sees.

Owns the three objects upstream names `etcd-0`, `controller-manager` and `scheduler`. The store is healthy when this can
be asked at all, for a server whose store failed stops; the other two while they hold a watch as their identity, which
they do whenever they run. Nothing is stored and nothing is probed. Called by `handlers`.

Upstream: pkg/registry/core/componentstatus.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from controlplane.apiserver.reading import representation
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Response
from controlplane.machinery import selectors
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import Resource

WATCHERS = {"controller-manager": "system:kube-controller-manager", "scheduler": "system:kube-scheduler"}
STORE = "etcd-0"


def statuses(watching: Container[str]) -> list[dict[str, Any]]:
    """The objects, ordered by name; `watching` are the users with an open watch."""
    made = [_object(name, "" if user in watching else f"no watch of {user} is open", "ok")
            for name, user in WATCHERS.items()]
    return sorted([*made, _object(STORE, "", "ok")], key=lambda o: o["metadata"]["name"])


def _object(name: str, error: str, message: str) -> dict[str, Any]:
    condition = {"type": "Healthy", "status": "False" if error else "True"}
    condition |= {"error": error} if error else {"message": message}
    return {"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition]}


async def handle(request: Request, resource: Resource, watching: Container[str], now: float) -> Response:
    """A get or list. Raises ApiError."""
    objects = statuses(watching)
    if request.name:
        for obj in objects:
            if obj["metadata"]["name"] == request.name:
                return await representation.answer(request, obj, resource, now)
        raise NotFound.of(resource.name, request.name)
    labels = selectors.parse_labels(request.query.get("labelSelector"))
    form = representation.form_of(request)
    chosen = [o for o in objects if labels.matches({})]
    if form.shape:
        body = representation.shaped_list(request, resource, chosen, {}, form, now)
    else:
        body = {"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": chosen}
    headers = representation.warning_headers(request) if request.warnings else ()
    return Response(200, representation.encode(body, form, representation.pretty(request)), form.media, headers)
