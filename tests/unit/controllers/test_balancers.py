"""Pools of addresses while things change around them: who has an address keeps it."""

import asyncio
from contextlib import asynccontextmanager

from controlplane.client.informer import Informer
from controlplane.cloud.lab import CONFIG
from controlplane.machinery import objects
from controlplane.machinery.resources import named

from .cluster import cluster

SERVICES, NODES, CONFIGS = named("services"), named("nodes"), named("configmaps")


@asynccontextmanager
async def following(c, events):
    """Wake whoever waits when an event is told."""
    events.subscribe(lambda *_: c.changed.set())
    task = asyncio.create_task(events.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_pool_that_cannot_be_takes_nothing_from_anybody():
    async def main():
        async with cluster() as c:
            events = Informer(c.client, named("events"))

            async def balanced(name):
                await c.client.create(SERVICES, {
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
                    "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})

            async def pool(text):
                await c.client.patch(CONFIGS, CONFIG[1], {"data": {"lab": text}}, CONFIG[0], "merge")

            async def node(name, address):
                await c.client.create(NODES, {
                    "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                    "status": {"addresses": [{"type": "InternalIP", "address": address}]}})

            def given(name):
                service = c.of("services").get("default", name) or {}
                return [entry["ip"] for entry in objects.get(service, "status.loadBalancer.ingress", ())]

            def told(text, reason="InvalidPool"):
                return any(text in event["message"] for event in events.items() if event["reason"] == reason)

            async with following(c, events):
                await node("n1", "192.168.56.10")
                await c.until(lambda: c.of("nodes").get("", "n1"))
                await c.client.create(CONFIGS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
                    "name": CONFIG[1], "namespace": CONFIG[0]}, "data": {"lab": "192.168.56.200-192.168.56.202"}})
                await balanced("first")
                await c.until(lambda: given("first") == ["192.168.56.200"])
                seen = []
                c.of("services").subscribe(lambda *_: seen.append(given("first")))
                for text, why in (("192.168.56.0/24", "collides with node n1"), ("lots", "names no addresses"),
                                  ("10.244.7.1-10.244.7.9", "collides with the pods' range")):
                    await pool(text)
                    await c.until(lambda why=why: told(why))
                await balanced("second")
                await pool("192.168.56.200-192.168.56.202")
                await c.until(lambda: given("second") == ["192.168.56.201"])
                await node("n2", "192.168.56.202")  # one whose DHCP server knows nothing of the pool
                await c.until(lambda: told("collides with node n2"))
                await balanced("third")
                await c.client.delete(NODES, "n2")
                await c.until(lambda: given("third") == ["192.168.56.202"])
                assert given("second") == ["192.168.56.201"]
                assert seen and all(one == ["192.168.56.200"] for one in seen)
                await pool("")
                await c.until(lambda: not given("first") and not given("second") and not given("third"))
                await c.until(lambda: told("there is no pool of addresses any more", "SyncLoadBalancerFailed"))
                await pool("192.168.56.200")
                await c.until(lambda: given("first"))
                await c.client.patch(SERVICES, "first", {"spec": {"type": "ClusterIP"}}, "default", "merge")
                await c.until(lambda: told("Deleted load balancer", "DeletedLoadBalancer"))
    asyncio.run(main())
