"""Custom resources are owned, own, and go with their namespace like everything else."""

import asyncio

from controlplane.client.discovery import Kinds
from controlplane.controllers.garbage import Garbage
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import Resource, named
from tests.unit.apiserver.definitions import definition
from tests.unit.controllers.cluster import SECONDS, cluster

DEFINITIONS = named("customresourcedefinitions.apiextensions.k8s.io")
CONFIGMAPS, NAMESPACES = named("configmaps"), named("namespaces")
FOOS = Resource("ex.io", "v1", "foos", "Foo", custom=True, list_kind="FooList")


async def gone(client, resource, name, namespace=""):
    """Wait, by a watch, until an object does not exist."""
    async with asyncio.timeout(SECONDS):
        items, revision = await client.list(resource, namespace, fields=f"metadata.name={name}")
        if not items:
            return
        async for kind, _ in client.watch(resource, namespace, fields=f"metadata.name={name}", revision=revision):
            if kind == "DELETED":
                return


async def followed(c):
    """Wait until the garbage collector knows the new kind."""
    collector = next(one for one in c.manager.controllers if isinstance(one, Garbage))
    known = asyncio.Event()
    Kinds(c.manager.informers).subscribe(lambda resource, served: known.set() if served else None)
    async with asyncio.timeout(SECONDS):
        await known.wait()
        while FOOS not in collector.followed:
            await asyncio.sleep(0)
        await collector.followed[FOOS].synced()


async def made(client, obj, resource=FOOS):
    """Create as soon as the kind is served."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await client.create(resource, obj)
            except NotFound:
                await asyncio.sleep(0)


def foo(name, namespace="default"):
    return {"apiVersion": "ex.io/v1", "kind": "Foo", "metadata": {"name": name, "namespace": namespace}, "spec": {}}


def owned(name, owner):
    meta = owner["metadata"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": name, "namespace": "default", "ownerReferences": [
            {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}]}}


def test_custom_owners_and_their_namespace():
    async def main():
        async with cluster(kubelet=False) as c:
            client = c.client
            await client.create(DEFINITIONS, definition())
            owner = await made(client, foo("a"))
            await client.create(CONFIGMAPS, owned("dependent", owner))
            await followed(c)
            await client.delete(FOOS, "a", "default")
            await gone(client, CONFIGMAPS, "dependent", "default")
            await client.create(NAMESPACES, {"metadata": {"name": "n"}})
            await made(client, foo("b", "n"))
            await client.delete(NAMESPACES, "n")
            await gone(client, NAMESPACES, "n")
            assert (await client.list(FOOS))[0] == []
            owner = await made(client, foo("c"))
            await client.create(CONFIGMAPS, owned("last", owner))
            await client.delete(DEFINITIONS, "foos.ex.io")
            await gone(client, CONFIGMAPS, "last", "default")
            await gone(client, DEFINITIONS, "foos.ex.io")
            try:
                await client.list(FOOS)
            except ApiError as error:
                assert error.http_code == 404
    asyncio.run(main())
