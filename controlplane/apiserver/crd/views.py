"""Stored objects as one version shows them, and written ones as they are stored.

Owns the way between the version of an endpoint and the storage version: conversion, then pruning and defaults by the
schema of the version shown; of the few built-in kinds with two forms, machinery's `conversion`. What needs no work
passes through as it is. The verbs call this for resources that `converts` says it of, and for no others: most built-in
kinds pay one look at a flag.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson

from controlplane.machinery import conversion
from controlplane.machinery.resources import Resource
from controlplane.store.item import Event, Item

CHUNK = 200  # objects between two breaths of the loop: some 20 ms of work

Object = dict[str, Any]


def verbatim(resource: Resource) -> bool:
    """Whether stored bytes are just what this version shows."""
    return not resource.converts or bool(resource.extra.get("verbatim"))


async def shown(resource: Resource, item: Item) -> Item:
    """One item as the resource's version shows it. Raises InternalError when a webhook fails."""
    return item if verbatim(resource) else (await all_shown(resource, [item]))[0]


async def all_shown(resource: Resource, items: Sequence[Item]) -> list[Item]:
    """Items as the resource's version shows them, in order. Raises InternalError."""
    if verbatim(resource):
        return list(items)
    if not resource.custom:
        return [item.replaced(conversion.from_storage(resource.api_version, item.obj)) for item in items]
    extra: Any = resource.extra
    found: list[Item] = await extra["memory"].shown(repr(extra["shape"]), items, partial(_made, resource))
    return found


async def _made(resource: Resource, items: Sequence[Item]) -> list[Item]:
    """The items converted, pruned and defaulted."""
    extra: Any = resource.extra
    made: list[Item] = []
    for start in range(0, len(items), CHUNK):
        part = items[start:start + CHUNK]
        objects = await _to(resource, [orjson.loads(item.data) for item in part])
        for item, obj in zip(part, objects, strict=True):
            extra["shape"].complete(obj)
            made.append(item.replaced(obj))
        if len(items) > CHUNK:
            await asyncio.sleep(0)
    return made


async def events_shown(resource: Resource, events: Sequence[Event], selecting: bool) -> Sequence[Event]:
    """Events with their objects as shown; the former states too when a selector will look at them."""
    if verbatim(resource):
        return events
    now = await all_shown(resource, [event.item for event in events])
    before = iter(await all_shown(resource, [e.previous for e in events if e.previous]) if selecting else ())
    return [Event(e.kind, item, next(before) if e.previous and selecting else e.previous)
            for e, item in zip(events, now, strict=True)]


async def stored(resource: Resource, obj: Object) -> Object:
    """An object of this version in the form it is stored in. Raises InternalError."""
    if not resource.custom:
        return conversion.to_storage(resource.api_version, obj)
    if resource.version == resource.storage_version:
        return obj
    extra: Any = resource.extra
    converted: list[Object] = await extra["converter"].to(f"{resource.group}/{resource.storage_version}", [obj])
    return converted[0]


async def _to(resource: Resource, objects: list[Object]) -> list[Object]:
    if all(obj["apiVersion"] == resource.api_version for obj in objects):
        return objects
    extra: Any = resource.extra
    converted: list[Object] = await extra["converter"].to(resource.api_version, objects)
    return converted
