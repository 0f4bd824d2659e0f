"""The informer tells every change once, whatever the connection does."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from controlplane.client.informer import Informer, Informers
from controlplane.machinery.resources import named
from tests.unit.client.fakeserver import serving, until
from tests.unit.client.test_rest import pod

PODS = named("pods")
PATH = "/api/v1/namespaces/a/pods"


@asynccontextmanager
async def running(informer):
    task = asyncio.create_task(informer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def heard(informer):
    told = []
    informer.subscribe(lambda kind, old, new: told.append((kind, new["metadata"]["name"])))
    return told


def with_uid(name, uid):
    obj = pod(name)
    obj["metadata"] |= {"uid": uid, "managedFields": [{"manager": "m"}]}
    return obj


def test_changes_indexes_and_replay():
    async def main():
        async with serving() as (server, client):
            await server.put(f"{PATH}/x", with_uid("x", "1"))
            informer = Informer(client, PODS, "a", indexes={"node": lambda p: [p.get("spec", {}).get("nodeName", "")]})
            told = heard(informer)
            async with running(informer):
                await informer.synced()
                assert "managedFields" not in informer.get("a", "x")["metadata"]
                await server.put(f"{PATH}/x", with_uid("x", "1") | {"spec": {"nodeName": "n"}})
                await server.put(f"{PATH}/y", with_uid("y", "2"))
                await until(lambda: len(informer) == 2)
                assert [p["metadata"]["name"] for p in informer.by("node", "n")] == ["x"]
                assert informer.by_uid("2")["metadata"]["name"] == "y"
                await server.put(f"{PATH}/y", with_uid("y", "2"), "DELETED")
                await until(lambda: len(informer) == 1)
                assert informer.by_uid("2") is None
            assert told == [("ADDED", "x"), ("MODIFIED", "x"), ("ADDED", "y"), ("DELETED", "y")]
            assert heard(informer) == [("ADDED", "x")]
    asyncio.run(main())


def test_resumes_where_it_was_cut():
    async def main():
        async with serving() as (server, client):
            informer = Informer(client, PODS, "a")
            told = heard(informer)
            async with running(informer):
                await informer.synced()
                await server.put(f"{PATH}/x", with_uid("x", "1"))
                await until(lambda: len(told) == 1)
                await server.cut_watches()
                await server.put(f"{PATH}/y", with_uid("y", "2"))
                await until(lambda: len(told) == 2)
            assert server.watches == 2 and sum("watch" not in url for _, url in server.requests) == 1
    asyncio.run(main())


def test_expired_relists_and_tells_missed_deletions():
    async def main():
        async with serving() as (server, client):
            for name, uid in (("x", "1"), ("y", "2"), ("z", "3")):
                await server.put(f"{PATH}/{name}", with_uid(name, uid))
            informer = Informer(client, PODS, "a")
            told = heard(informer)
            async with running(informer):
                await informer.synced()
            await server.put(f"{PATH}/x", with_uid("x", "1"), "DELETED")  # nobody watches now
            await server.put(f"{PATH}/y", with_uid("y", "new"))  # deleted and made again
            server.compacted = server.revision
            await server.put(f"{PATH}/w", with_uid("w", "4"))
            del told[:]
            async with running(informer):
                await until(lambda: informer.get("a", "w") is not None and informer.get("a", "x") is None)
            assert sorted(told) == [("ADDED", "w"), ("ADDED", "y"), ("DELETED", "x"), ("DELETED", "y")]
    asyncio.run(main())


def test_what_is_no_object_ends_nothing():
    """Another API server behind ours may answer anything."""
    async def main():
        async with serving() as (server, client):
            await server.put(f"{PATH}/x", {"kind": "Pod", "metadata": {}})
            await server.put(f"{PATH}/y", with_uid("y", "2"))
            informer = Informer(client, PODS, "a")
            async with running(informer):
                await until(lambda: informer.failures)
                await server.put(f"{PATH}/x", with_uid("x", "1"))
                await informer.synced()
                assert len(informer) == 2
    asyncio.run(main())


def test_shared_informers_start_late_comers():
    async def main():
        async with serving() as (server, client):
            informers = Informers(client)
            assert informers.of(PODS) is informers.of(PODS, indexes={"x": lambda p: ["1"]})
            task = asyncio.create_task(informers.run())
            await informers.synced()
            late = informers.of(named("services"))
            async with asyncio.timeout(5):
                await late.synced()
            nodes = informers.of(named("nodes"), metadata=True)
            assert informers.of(named("nodes"), metadata=True) is nodes
            with pytest.raises(RuntimeError, match="nodes is followed by its metadata alone"):
                informers.of(named("nodes"))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert sum("watch" not in url for _, url in server.requests) == 2
    asyncio.run(main())
