"""Custom resources are owned, own, and go with their namespace like everything else."""

import asyncio

from controlplane.client.aggregated import API_SERVICES
from controlplane.client.discovery import Kinds
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError
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


async def served(c):
    """Wait until the kind is."""
    known = asyncio.Event()
    Kinds(c.manager.informers).subscribe(lambda resource, here: known.set() if here else None)
    async with asyncio.timeout(SECONDS):
        await known.wait()


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
            await served(c)
            owner = await client.create(FOOS, foo("a"))
            await client.create(CONFIGMAPS, owned("dependent", owner))
            await client.delete(FOOS, "a", "default")
            await gone(client, CONFIGMAPS, "dependent", "default")
            await client.create(NAMESPACES, {"metadata": {"name": "n"}})
            await client.create(FOOS, foo("b", "n"))
            await client.delete(NAMESPACES, "n")
            await gone(client, NAMESPACES, "n")
            assert (await client.list(FOOS))[0] == []
            owner = await client.create(FOOS, foo("c"))
            await client.create(CONFIGMAPS, owned("last", owner))
            await client.delete(DEFINITIONS, "foos.ex.io")
            await gone(client, CONFIGMAPS, "last", "default")
            await gone(client, DEFINITIONS, "foos.ex.io")
            try:
                await client.list(FOOS)
            except ApiError as error:
                assert error.http_code == 404
    asyncio.run(main())


def test_a_namespace_waits_for_an_api_server_that_is_away():
    """What it may still hold there, nobody can know."""
    async def main():
        async with cluster(kubelet=False) as c:
            client = c.client
            await client.create(API_SERVICES, {"metadata": {"name": "v1.far.io"}, "spec": {
                "group": "far.io", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
                "service": {"name": "away", "namespace": "default"}}})
            await client.create(NAMESPACES, {"metadata": {"name": "n"}})
            await client.delete(NAMESPACES, "n")
            said = None
            async with asyncio.timeout(SECONDS):
                async for _, obj in client.watch(NAMESPACES, fields="metadata.name=n"):
                    said = objects.condition(obj, "NamespaceDeletionDiscoveryFailure")
                    if said is not None:
                        break
            assert (said["status"], said["reason"]) == ("True", "DiscoveryFailed") and "far.io/v1" in said["message"]
            await client.delete(API_SERVICES, "v1.far.io")
            await gone(client, NAMESPACES, "n")
    asyncio.run(main())
