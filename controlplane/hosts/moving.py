"""An agent follows its server to another address: it is told the address, looks whether its own cluster answers there,
and only then takes it.

Promises that nothing changes when another cluster, or nobody, answers: the authority this node trusts must vouch for
whoever does. Called by `pelamis prepare --server`.
"""

from __future__ import annotations

from dataclasses import replace

from controlplane.cli import settings
from controlplane.cli.settings import Settings
from controlplane.client import certificates
from controlplane.client.config import load
from controlplane.client.rest import Client
from controlplane.hosts import joining
from controlplane.hosts.layout import Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.resources import named
from controlplane.pki.authority import Pair


async def follow(layout: Layout, kept: Settings, server: str, services: Services) -> Settings:
    """The settings with the server's new address, which the agent uses from now on. Raises Finding."""
    if not kept.server:
        raise Finding("this host is the server", "it knows its own address", "systemctl start pelamis-prepare")
    now, paths = replace(kept, server=joining.server_of(server)), layout.paths
    config = replace(load(paths.kubeconfig("node")), server=now.server)
    async with Client(config, user_agent="pelamis-prepare") as client:
        try:
            await client.get(named("nodes"), kept.node_name)
        except joining.Unreachable as error:
            raise joining.unreachable(now.server, str(error)) from None
        except ApiError as error:
            raise Finding(f"{now.server} does not know this node", str(error),
                          "give the address of the cluster this host is a node of") from None
    for wanted in certificates.of_node(kept.node_name, kept.node_ip):
        files = (paths.pki / f"{wanted.file}.{end}" for end in ("crt", "key"))
        certificates.store(paths, now.server, config.ca, wanted, Pair(*(file.read_bytes() for file in files)))
    settings.save(layout.settings, now)
    services.control("try-restart", unit("agent"))
    return now
