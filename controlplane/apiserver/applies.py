"""Server-side apply: the object a manager wants, merged with what others own.

Owns the request side: create when missing, retry when another writer came first. The merge and the bookkeeping of
fields are machinery's `apply`, pure. Called by the handlers.
"""

from __future__ import annotations

from controlplane.apiserver import bodies, patches
from controlplane.apiserver.context import Context
from controlplane.apiserver.lists import object_key
from controlplane.apiserver.request import Request
from controlplane.apiserver.writes import Object, Stored, Writes
from controlplane.machinery import apply, strategy
from controlplane.machinery.errors import AlreadyExists
from controlplane.machinery.resources import Resource


async def apply_object(request: Request, resource: Resource, writes: Writes, context: Context) -> tuple[Stored, bool]:
    """The stored object of an apply patch, and whether it was created. Raises ApiError."""
    config = await patches.applied(request, resource)
    manager, force = request.query.get("fieldManager"), request.query.flag("force")
    now = context.clock.timestamp()

    def merged(old: Object | None) -> Object:
        result: Object = apply.apply(old, config, manager, force, resource.definition, now)
        return result

    if context.cache.get(object_key(resource, request.namespace, request.name)) is None:
        try:
            obj = merged(None)
            bodies.check(request, resource.definition, resource.api_version, resource.kind, obj)
            return await writes.create_object(request, resource, obj), True
        except AlreadyExists:
            pass  # created meanwhile: this is an update of it
    return await writes.modify(request, resource, merged, strategy.of(resource).prepare_update), False
