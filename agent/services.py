"""What Services are on this node: the service proxy, the cluster's DNS and the network policies, which share informers.

Owns their client, which is known by an identity of its own (kube-proxy's), and who hears of what: rules that somebody
flushed are repaired in all of them, and the kubelet waits here until policies hold. Called by `agent.__main__` where
`--proxy-kubeconfig` is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

from agent.conflists import Conflists
from agent.dns.dns import Dns
from agent.kubelet.config import Options
from agent.proxy.policies import Policies
from agent.proxy.proxy import Proxy
from controlplane.client import config
from controlplane.client.rest import Client
from netsetup.cni.daemon import Daemon
from netsetup.ledger import Ledger


class Services:
    """`clients` are the agent's by their kubeconfig; ours is among them while it is open."""

    def __init__(self, options: Options, kubeconfig: Path, network: Daemon, conflists: Conflists, ledger: Ledger,
                 clients: dict[Path, Client]) -> None:
        self._options, self._kubeconfig, self._clients = options, kubeconfig, clients
        self._network, self._conflists, self._ledger = network, conflists, ledger
        self._policies: asyncio.Future[Policies] = asyncio.get_running_loop().create_future()

    async def isolated(self, pod: dict[str, Any], addresses: Collection[str]) -> None:
        """As `Policies.isolated`; also before `run` has begun."""
        await (await asyncio.shield(self._policies)).isolated(pod, addresses)

    async def run(self) -> None:
        """Until cancelled. The rules stay."""
        async with Client(config.load(self._kubeconfig), user_agent="kube-proxy") as client:
            self._clients[self._kubeconfig] = client
            await self._serve(client)

    async def _serve(self, client: Client) -> None:
        options, pod_ranges = self._options, self._options.cluster_cidr.split(",")

        async def repair() -> None:
            await self._network.repair()
            await dns.repair()
            await policies.repair()

        proxy = Proxy(client, options.name, options.cluster_cidr, self._ledger, options.proxy_mode, repair=repair,
                      aside=self._conflists.foreign)
        self._conflists.subscribe(proxy.look_at_routes)
        dns = Dns(client, proxy.services, proxy.slices, options.cluster_domain,
                  (*options.service_cidr.split(","), *pod_ranges), self._ledger)
        policies = Policies(client, options.name, dns.namespaces, proxy.services, self._ledger,
                            families=tuple(6 if ":" in cidr else 4 for cidr in pod_ranges))
        self._policies.set_result(policies)
        async with asyncio.TaskGroup() as group:
            group.create_task(proxy.run(), name="Proxy")
            group.create_task(dns.run(), name="Dns")
            group.create_task(policies.run(), name="Policies")
