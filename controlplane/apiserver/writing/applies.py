"""Server-side apply: the object a manager wants, merged with what others own.

Owns the request side: create when missing, retry when another writer came first. The merge and the bookkeeping of
fields are machinery's `apply`, pure. Called by the handlers.
"""

from __future__ import annotations

from collections.abc import Callable

from controlplane.apiserver.context import Context
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.request import Request
from controlplane.apiserver.writing import bodies, patches
from controlplane.apiserver.writing.writes import Object, Stored, Writes
from controlplane.machinery import apply, strategy
from controlplane.machinery.errors import AlreadyExists
from controlplane.machinery.resources import Resource


async def merge_of(request: Request, resource: Resource, now: str) -> Callable[[Object | None], Object]:
    """A pure function from the stored object to the one after an apply patch. Raises ApiError."""
    config = await patches.applied(request, resource)

    def merged(old: Object | None) -> Object:
        result = owned(request, resource, old, config, now)
        bodies.check(request, resource.shape, resource.api_version, resource.kind, result)
        return result

    return merged


def owned(request: Request, resource: Resource, old: Object | None, config: Object, now: str) -> Object:
    """The object after the request's manager applied `config` through its endpoint. Raises ApiError."""
    return apply.apply(old, config, bodies.manager(request), request.query.flag("force"), resource.node, now,
                       request.subresource)


async def apply_object(request: Request, resource: Resource, writes: Writes, context: Context) -> tuple[Stored, bool]:
    """The stored object of an apply patch, and whether it was created. Raises ApiError."""
    merged = await merge_of(request, resource, context.clock.timestamp())
    if context.cache.get(object_key(resource, request.namespace, request.name)) is None:
        try:
            return await writes.create_object(request, resource, merged(None)), True
        except AlreadyExists:
            pass  # created meanwhile: this is an update of it
    return await writes.modify(request, resource, merged, strategy.of(resource).prepare_update), False
