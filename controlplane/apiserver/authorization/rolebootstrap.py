"""The default roles and bindings, made at start and brought up to date when this server knows more than the last one.

Owns the writing; what there should be is `machinery.rbacdefaults`. Promises that every component may do its work
before the server listens, and that an object that is right is not written. Called by the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.writing import objectmeta
from controlplane.machinery import rbacdefaults
from controlplane.machinery.rbacdefaults import Object
from controlplane.machinery.resources import BUILTIN, Resource
from controlplane.store.item import Item

LOG = logging.getLogger("apiserver")


async def ensure(context: Context) -> None:
    """Make and update them. Raises Finding when the store cannot be written."""
    writes = []
    for right in rbacdefaults.objects():
        resource = BUILTIN.of(right["apiVersion"], right["kind"])
        assert resource is not None, right["kind"]
        metadata = right["metadata"]
        key = object_key(resource, metadata.get("namespace", ""), metadata["name"])
        item = context.cache.get(key)
        if item is None:
            writes.append(_made(context, resource, key, right))
            continue
        wanted = rbacdefaults.reconciled(item.obj, right)
        if wanted is None:
            LOG.warning("%s %s names another role: it is made anew", right["kind"], metadata["name"])
            await context.cache.write(key, None, item.revision)
            writes.append(_made(context, resource, key, right))
        elif wanted != item.obj:
            writes.append(context.cache.write(key, wanted, item.revision))
    async with asyncio.TaskGroup() as group:  # together, so that they share the disk's few round trips
        for write in writes:
            group.create_task(write)
    if writes:
        LOG.info("made or updated %d default roles and bindings", len(writes))


def _made(context: Context, resource: Resource, key: str, obj: Object) -> Coroutine[Any, Any, Item]:
    objectmeta.found(resource, obj, context.clock.uid(), context.clock.timestamp())
    return context.cache.write(key, obj, 0)
