"""Objects for pods: asked for once however many pods want one, and news only for those whose state of it is older."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent.kubelet.volumes.objects import Objects
from controlplane.machinery.errors import ApiError, Forbidden
from controlplane.machinery.resources import named
from tests.node.fakeapi import FakeApi

MAPS = named("configmaps")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - each turn lets all others run
            await asyncio.sleep(0)


def run(body: Any) -> None:
    async def main() -> None:
        api, told = FakeApi(), list[set[str]]()
        objects = Objects(api, told.append)  # type: ignore[arg-type]
        running = asyncio.create_task(objects.run())
        await until(lambda: objects._group is not None)
        try:
            await body(api, objects, told)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    asyncio.run(main())


def made(value: str) -> dict[str, Any]:
    return {"metadata": {"name": "m", "namespace": "ns"}, "data": {"k": value}}


def test_pods_that_ask_together_ask_once_and_hear_of_changes_only() -> None:
    async def body(api: FakeApi, objects: Objects, told: list[set[str]]) -> None:
        await api.create(MAPS, made("1"), "ns")
        found = await asyncio.gather(*(objects.get("configmaps", "ns", "m", uid) for uid in "abc"))
        assert {each["data"]["k"] for each in found if each} == {"1"} and api.calls.count("GET configmaps/m") == 1
        informer = objects._followed["configmaps", "ns", "metadata.name=m"].informer
        await until(lambda: informer.has_synced)
        assert told == []  # what the watch began with is what they have
        changed = dict(found[0] or {}) | {"data": {"k": "2"}}
        await api.update(MAPS, changed)
        await until(lambda: bool(told))
        assert told == [{"a", "b", "c"}]
        again = await objects.get("configmaps", "ns", "m", "a")
        assert again is not None and again["data"]["k"] == "2"
        objects.release("c")
        await api.delete(MAPS, "m", "ns", grace=0)
        await until(lambda: len(told) == 2)
        assert told[1] == {"a", "b"} and await objects.get("configmaps", "ns", "m", "a") is None
        await api.create(MAPS, made("3"), "ns")  # it is missed until it is there
        await until(lambda: len(told) == 3)
    run(body)


def test_a_pod_that_could_not_ask_hears_of_whatever_comes() -> None:
    async def body(api: FakeApi, objects: Objects, told: list[set[str]]) -> None:
        async def refused(*arguments: Any, **more: Any) -> Any:
            raise Forbidden("no")
        api.get = refused  # type: ignore[method-assign]
        with pytest.raises(ApiError, match="no"):
            await objects.get("configmaps", "ns", "m", "a")
        await api.create(MAPS, made("1"), "ns")
        await until(lambda: told == [{"a"}])
    run(body)
