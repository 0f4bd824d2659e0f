"""Config maps, secrets and their like as pods need them: fetched at the first use, then followed by a watch per object.

Owns a small cache keyed by (kind, namespace, field selector) and counted by pod: the watch of an object ends with the
last pod that uses it. Promises the newest known object at once, and a wake-up of its users when it changes. Node
identities may read only what their pods reference, hence one watch per object and never a list, but of kinds that
everybody may read. Called by `volumes.manager` and `worker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery.errors import ApiError, Forbidden, NotFound, ServiceUnavailable
from controlplane.machinery.resources import named

Key = tuple[str, str, str]  # kind, namespace, field selector
FETCH_SECONDS = 10.0  # an object that does not come in this time fails the start, which is tried again


@dataclass(slots=True)
class _Followed:
    informer: Informer
    task: asyncio.Task[None]
    users: set[str] = field(default_factory=set)  # pod uids


class Objects:
    """`changed(uids)` is called on the loop whenever an object of these pods changed."""

    def __init__(self, client: Client, changed: Callable[[set[str]], None]) -> None:
        self._client, self._changed = client, changed
        self._followed: dict[Key, _Followed] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the watches until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def get(self, kind: str, namespace: str, name: str, uid: str) -> dict[str, Any] | None:
        """The object, or None when it does not exist; the pod `uid` is a user of it from now on. Raises ApiError."""
        followed = self._used((kind, namespace, f"metadata.name={name}"), uid)
        if not followed.informer.has_synced:
            try:  # a single GET answers at once, and says Forbidden where a watch would only retry
                return await asyncio.wait_for(self._client.get(named(kind), name, namespace), FETCH_SECONDS)
            except NotFound:
                return None
            except Forbidden as error:
                raise ApiError(error.message) from error
            except TimeoutError as error:
                raise ServiceUnavailable(f"timed out waiting for {kind[:-1]} {namespace}/{name}") from error
        return followed.informer.get(namespace, name)

    async def matching(self, kind: str, fields: str, uid: str) -> list[dict[str, Any]]:
        """All objects of the kind, which has no namespaces, that the field selector chooses. Raises ApiError."""
        followed = self._used((kind, "", fields), uid)
        try:
            await asyncio.wait_for(followed.informer.synced(), FETCH_SECONDS)
        except TimeoutError as error:
            raise ServiceUnavailable(f"timed out waiting for {kind} with {fields}") from error
        return list(followed.informer.items())

    def _used(self, key: Key, uid: str) -> _Followed:
        """What is followed by `key`; the pod `uid` is a user of it from now on."""
        followed = self._followed.get(key)
        if followed is None:
            followed = self._follow(key)
        followed.users.add(uid)
        return followed

    def _follow(self, key: Key) -> _Followed:
        if self._group is None:
            raise ServiceUnavailable("the node agent is stopping")
        kind, namespace, fields = key
        informer = Informer(self._client, named(kind), namespace, fields=fields)
        task = self._group.create_task(informer.run(), name=f"follow {kind} {namespace} {fields}")
        followed = _Followed(informer, task)
        informer.subscribe(lambda event, old, new: self._changed(set(followed.users)))
        self._followed[key] = followed
        return followed

    def release(self, uid: str) -> None:
        """The pod is gone: end the watches only it needed."""
        for key in list(self._followed):
            followed = self._followed[key]
            followed.users.discard(uid)
            if not followed.users:
                followed.task.cancel()
                del self._followed[key]
