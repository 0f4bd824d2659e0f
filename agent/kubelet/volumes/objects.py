"""Config maps, secrets and their like as pods need them: fetched at the first use, then followed by a watch per object.

Owns a small cache keyed by (kind, namespace, field selector) and counted by pod: the watch of an object ends with the
last pod that uses it. Promises the newest known object at once, one question for all pods that ask in the same moment,
and a wake-up of those that have an older one when it changes. Node identities may read only what their pods reference,
hence one watch per object and never a list, but of kinds that everybody may read. Called by `volumes.manager` and
`worker`.
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
Answer = tuple[dict[str, Any] | None, ApiError | None]
FAILED = "?"  # in place of the revision a pod was given: any news is for it
FETCH_SECONDS = 10.0  # an object that does not come in this time fails the start, which is tried again


@dataclass(slots=True)
class _Followed:
    informer: Informer
    task: asyncio.Task[None]
    users: dict[str, str | None] = field(default_factory=dict)  # pod uid -> revision it was given, None while it waits
    question: asyncio.Task[Answer] | None = None  # the first look, before the watch has begun


class Objects:
    """`changed(uids)` is called on the loop when pods have an older state of an object than there is."""

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
        try:
            found = None
            if not followed.informer.has_synced:
                found = await self._asked(followed, kind, namespace, name)
            if followed.informer.has_synced:
                found = followed.informer.get(namespace, name)
        except ApiError:
            followed.users[uid] = FAILED
            raise
        followed.users[uid] = _revision(found)
        return found

    async def _asked(self, followed: _Followed, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """What a GET says: it answers at once, and Forbidden where a watch would only retry."""
        if followed.question is None or followed.question.done():
            assert self._group is not None
            followed.question = self._group.create_task(self._fetch(kind, namespace, name), name=f"get {kind} {name}")
        found, error = await asyncio.shield(followed.question)
        if error is not None:
            raise error
        return found

    async def _fetch(self, kind: str, namespace: str, name: str) -> Answer:
        try:
            return await asyncio.wait_for(self._client.get(named(kind), name, namespace), FETCH_SECONDS), None
        except NotFound:
            return None, None
        except Forbidden as error:
            return None, ApiError(error.message)
        except ApiError as error:
            return None, error
        except TimeoutError:
            return None, ServiceUnavailable(f"timed out waiting for {kind[:-1]} {namespace}/{name}")

    async def matching(self, kind: str, fields: str, uid: str) -> list[dict[str, Any]]:
        """All objects of the kind, which has no namespaces, that the field selector chooses. Raises ApiError."""
        followed = self._used((kind, "", fields), uid)
        try:
            await asyncio.wait_for(followed.informer.synced(), FETCH_SECONDS)
        except TimeoutError as error:
            raise ServiceUnavailable(f"timed out waiting for {kind} with {fields}") from error
        finally:
            followed.users[uid] = FAILED  # any of them that changes is news
        return list(followed.informer.items())

    def _used(self, key: Key, uid: str) -> _Followed:
        """What is followed by `key`; the pod `uid` is a user of it from now on."""
        followed = self._followed.get(key)
        if followed is None:
            followed = self._follow(key)
        followed.users.setdefault(uid, None)
        return followed

    def _follow(self, key: Key) -> _Followed:
        if self._group is None:
            raise ServiceUnavailable("the node agent is stopping")
        kind, namespace, fields = key
        informer = Informer(self._client, named(kind), namespace, fields=fields)
        task = self._group.create_task(informer.run(), name=f"follow {kind} {namespace} {fields}")
        followed = _Followed(informer, task)
        informer.subscribe(lambda event, old, new: self._heard(followed, None if event == "DELETED" else new))
        self._followed[key] = followed
        return followed

    def _heard(self, followed: _Followed, obj: dict[str, Any] | None) -> None:
        stale = {uid for uid, given in followed.users.items() if given is not None and given != _revision(obj)}
        if stale:
            self._changed(stale)

    def release(self, uid: str) -> None:
        """The pod is gone: end the watches only it needed."""
        for key in list(self._followed):
            followed = self._followed[key]
            followed.users.pop(uid, None)
            if not followed.users:
                followed.task.cancel()
                del self._followed[key]


def _revision(obj: dict[str, Any] | None) -> str:
    return "" if obj is None else str(obj["metadata"].get("resourceVersion", FAILED))
