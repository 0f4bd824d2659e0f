"""An API in memory with the client's own interface: enough for a kubelet to live on; its patches are the real ones."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

from controlplane.machinery import schema, strategic
from controlplane.machinery.clock import SYSTEM, rfc3339_micro
from controlplane.machinery.errors import AlreadyExists, Conflict, NotFound, ServiceUnavailable
from controlplane.machinery.resources import Resource

Obj = dict[str, Any]


class FakeApi:
    def __init__(self) -> None:
        self.clock = SYSTEM
        self.objects: dict[tuple[str, str, str], Obj] = {}
        self.revision = 1
        self.log: list[tuple[str, str, Obj]] = []
        self.news = asyncio.Condition()
        self.calls: list[str] = []
        self.away = False  # patches fail as if nobody listened
        self.token_seconds = 3600.0  # how long an issued token lasts

    async def _write(self, kind: str, plural: str, obj: Obj) -> Obj:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        key = (plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if kind == "DELETED":
            del self.objects[key]
        else:
            self.objects[key] = obj
        async with self.news:
            self.log.append((kind, plural, copy.deepcopy(obj)))
            self.news.notify_all()
        return copy.deepcopy(obj)

    def _at(self, resource: Resource, name: str, namespace: str) -> Obj:
        try:
            return self.objects[resource.plural, namespace, name]
        except KeyError:
            raise NotFound.of(resource.plural, name) from None

    async def get(self, resource: Resource, name: str, namespace: str = "", **_: Any) -> Obj:
        self.calls.append(f"GET {resource.plural}/{name}")
        return copy.deepcopy(self._at(resource, name, namespace))

    async def pages(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                    **_: Any) -> AsyncIterator[tuple[list[Obj], str]]:
        found = [copy.deepcopy(o) for (plural, ns, name), o in self.objects.items()
                 if plural == resource.plural and self._fits(fields, ns, name, namespace)]
        yield found, str(self.revision)

    @staticmethod
    def _fits(fields: str, ns: str, name: str, namespace: str) -> bool:
        return (not namespace or ns == namespace) and (
            not fields.startswith("metadata.name=") or fields == f"metadata.name={name}")

    async def watch(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                    revision: str = "", **_: Any) -> AsyncIterator[tuple[str, Obj]]:
        at = 0
        while True:
            while at < len(self.log):
                kind, plural, obj = self.log[at]
                at += 1
                meta = obj["metadata"]
                if plural == resource.plural and int(meta["resourceVersion"]) > int(revision) and \
                        self._fits(fields, meta.get("namespace", ""), meta["name"], namespace):
                    yield kind, copy.deepcopy(obj)
            async with self.news:
                await self.news.wait_for(lambda: at < len(self.log))  # noqa: B023

    async def create(self, resource: Resource, obj: Obj, namespace: str = "", subresource: str = "",
                     name: str = "") -> Obj:
        self.calls.append(f"POST {resource.plural}/{subresource}")
        obj = copy.deepcopy(obj)
        if subresource == "token":
            return self._token(obj, name)
        meta = obj["metadata"]
        if resource.namespaced:
            meta.setdefault("namespace", namespace)
        if (resource.plural, meta.get("namespace", ""), meta["name"]) in self.objects:
            raise AlreadyExists.of(resource.plural, meta["name"])
        meta.setdefault("uid", SYSTEM.uid())
        return await self._write("ADDED", resource.plural, obj)

    def _token(self, request: Obj, account: str) -> Obj:
        """Each says who asked for whom, and no two are equal."""
        spec = request["spec"]
        text = f"{account} {spec['boundObjectRef']['name']} {','.join(spec['audiences'])} {SYSTEM.uid()}"
        return {**request, "status": {"token": text, "expirationTimestamp": rfc3339_micro(
            SYSTEM.now() + self.token_seconds)}}

    async def update(self, resource: Resource, obj: Obj, subresource: str = "") -> Obj:
        return await self._write("MODIFIED", resource.plural, copy.deepcopy(obj))

    async def patch(self, resource: Resource, name: str, patch: Obj, namespace: str = "", kind: str = "strategic",
                    subresource: str = "", **_: Any) -> Obj:
        if self.away:
            raise ServiceUnavailable("connection refused")
        self.calls.append(f"PATCH {resource.plural}/{name}/{subresource}")
        old = self._at(resource, name, namespace)
        if patch.get("metadata", {}).get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise Conflict.of(resource.plural, name)
        merged = strategic.merge(old, patch, schema.load().definition(resource.definition))
        return await self._write("MODIFIED", resource.plural, merged)

    async def delete(self, resource: Resource, name: str, namespace: str = "", grace: int | None = None,
                     propagation: str | None = None, uid: str = "", revision: str = "") -> Obj:
        """Graceful for pods, as the API server does it."""
        old = copy.deepcopy(self._at(resource, name, namespace))
        if uid and old["metadata"]["uid"] != uid:
            raise Conflict.of(resource.plural, name)
        self.calls.append(f"DELETE {resource.plural}/{name} grace={grace}")
        if grace == 0:
            return await self._write("DELETED", resource.plural, old)
        old["metadata"]["deletionTimestamp"] = SYSTEM.timestamp()
        old["metadata"]["deletionGracePeriodSeconds"] = grace or old["spec"].get("terminationGracePeriodSeconds", 30)
        return await self._write("MODIFIED", resource.plural, old)

    async def until(self, resource: Resource, name: str, fits: Callable[[Obj | None], bool], limit: float = 60) -> Any:
        """Wait until the object (None when absent) fits; returns it."""
        def now() -> Obj | None:
            return self.objects.get((resource.plural, "default" if resource.namespaced else "", name))
        try:
            async with asyncio.timeout(limit), self.news:
                await self.news.wait_for(lambda: fits(now()))
        except TimeoutError:
            raise AssertionError(f"{name} never got there; now {now()}") from None
        return copy.deepcopy(now())

    def events(self) -> list[str]:
        return [o["reason"] for (plural, _, _), o in self.objects.items() if plural == "events"]
