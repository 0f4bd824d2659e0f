"""A node that is there already is taken over, its lease renewed, and every range of pods it is given handed on."""

import asyncio

from agent.kubelet.host import nodestatus
from agent.kubelet.host.node import LEASE_NAMESPACE, LEASES, NODES, NodeAgent
from agent.kubelet.host.nodestatus import Health, Host
from controlplane.client.config import ClientConfig
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import NotFound
from tests.unit.apiserver.harness import serving

HOST = Host("n1", ("10.0.0.1",), 2, 4 << 30, 100 << 30, runtime_version="containerd://1.6.20")
SECONDS = 15.0


class Runtime:
    async def status(self):
        return {"RuntimeReady": (True, "", ""), "NetworkReady": (True, "", "")}


class Images:
    async def list(self):
        return []


def test_the_lease_is_renewed_when_the_watch_is_faster_than_the_registration():
    async def assigned(cidr):
        pass

    async def main():
        async with serving() as api, Client(ClientConfig(api.url)) as client:
            await client.create(NODES, nodestatus.node(HOST, SYSTEM.timestamp(), Health()))
            nodes = Informer(client, NODES)
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                watching = group.create_task(nodes.run())
                await nodes.synced()
                node = NodeAgent(HOST, client, Runtime(), Images(), SYSTEM, nodes, assigned)
                working = group.create_task(node.run())
                while True:
                    try:
                        lease = await client.get(LEASES, "n1", LEASE_NAMESPACE)
                        break
                    except NotFound:
                        await asyncio.sleep(0.02)
                assert lease["spec"]["holderIdentity"] == "n1" and node.registered.is_set()
                working.cancel()
                watching.cancel()
    asyncio.run(main())


def test_a_node_that_is_made_anew_may_be_given_another_range():
    ranges = asyncio.Queue()

    async def main():
        async with serving() as api, Client(ClientConfig(api.url)) as client:
            nodes = Informer(client, NODES)
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                watching = group.create_task(nodes.run())
                await nodes.synced()
                node = NodeAgent(HOST, client, Runtime(), Images(), SYSTEM, nodes, ranges.put)
                working = group.create_task(node.run())
                await node.registered.wait()
                for cidr in ("10.244.0.0/24", "10.244.7.0/24"):
                    await client.patch(NODES, "n1", {"spec": {"podCIDR": cidr}})
                    assert await ranges.get() == cidr
                    before = (await client.get(NODES, "n1"))["metadata"]["uid"]
                    await client.delete(NODES, "n1")
                    while nodes.get("", "n1") is None or nodes.get("", "n1")["metadata"]["uid"] == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                working.cancel()
                watching.cancel()
    asyncio.run(main())
