"""A node that is there already is taken over, and its lease renewed, whoever tells of it first."""

import asyncio

from agent.kubelet import nodestatus
from agent.kubelet.node import LEASE_NAMESPACE, LEASES, NODES, NodeAgent
from agent.kubelet.nodestatus import Health, Host
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
