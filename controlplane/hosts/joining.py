"""A host becomes a node of a cluster that is there: it learns whom to believe, then asks for its certificates.

Owns the way from a server's address, a token and the hash of the cluster's authority to the node's credentials.
Promises that nothing is believed that the hash does not vouch for, that nothing is written to the host before the
credentials are there, and that whatever goes wrong is told with its fix: server not reachable, wrong or expired token,
wrong hash, a clock that is off, a name that is taken. Called by `install agent`.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from controlplane.cli.settings import SHARED, Settings
from controlplane.client import certificates
from controlplane.client.certificates import Wanted
from controlplane.client.config import ClientConfig
from controlplane.client.rest import Client, Unreachable
from controlplane.hosts import membership
from controlplane.machinery import files, objects
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import ApiError, Finding, Forbidden, NotFound, Unauthorized
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named
from controlplane.pki import leaves
from controlplane.pki.authority import Pair
from netsetup.ledger import Ledger

TOKEN = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")
HASH = re.compile(r"sha256:[0-9a-f]{64}")
Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Joined:
    settings: Settings
    ca: bytes
    pairs: list[tuple[Wanted, Pair]]


def asked(args: argparse.Namespace) -> Settings:
    """What the flags ask for, before the cluster was asked. Raises Finding for flags that cannot work."""
    url = urlsplit(args.server)
    if url.scheme != "https" or not url.hostname:
        raise Finding(f'"{args.server}" is no server', "it is reached over TLS", "--server https://192.168.56.10:6443")
    if not TOKEN.fullmatch(args.token):
        raise Finding("that is no token", "a token has the form abcdef.0123456789abcdef",
                      "on the server: pelamis token create")
    if not HASH.fullmatch(args.ca_cert_hash):
        raise Finding("that is no hash of the cluster's authority", "without it, anybody could claim to be the cluster",
                      "on the server: pelamis token create, and copy all of what it prints")
    return Settings("", "", server=server_of(args.server))


def server_of(text: str) -> str:
    """The URL with its port."""
    url = urlsplit(text)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"https://{host}:{url.port or 6443}"


def believed(paths: Paths) -> bool:
    """Whether this node has a certificate of its own that still holds; without one, only a token helps."""
    return leaves.end(files.read(paths.pki / "node.crt") or b"") > SYSTEM.now()


async def join(args: argparse.Namespace, kept: Settings | None = None) -> Joined:
    """The node's settings and credentials; one that was a node before keeps its name. Raises Finding."""
    from controlplane.hosts import commands
    server = asked(args).server
    ca = await _authority(server, args.ca_cert_hash)
    async with Client(ClientConfig(server, ca=ca, token=args.token), user_agent="pelamis-join") as client:
        info = await _told(client, server)
        address = route_to(server)
        base = commands.node_settings(args, address)
        known = {k: v for k, v in info.items() if k in SHARED}
        made = kept or Settings(base.node_name, base.node_ip, runtime=base.runtime, server=server, **known)
        identity, *others = certificates.of_node(made.node_name, made.node_ip)
        pairs = [(identity, await certificates.obtain(client, identity))]
    config = ClientConfig(server, ca=ca, certificate=pairs[0][1].certificate, key=pairs[0][1].key)
    async with Client(config, user_agent="pelamis-join") as client:
        await _name_is_free(client, made.node_name)
        for wanted in others:
            pairs.append((wanted, await certificates.obtain(client, wanted)))
    return Joined(made, ca, pairs)


def keep(paths: Paths, joined: Joined) -> None:
    """Write the credentials; the folder is in the ledger first."""
    ledger = Ledger(paths.ledger)
    ledger.share_directory(paths.etc)
    files.write(paths.pki / "ca.crt", joined.ca, files.PUBLIC)
    for wanted, pair in joined.pairs:
        certificates.store(paths, joined.settings.server, joined.ca, wanted, pair)


def route_to(server: str) -> str:
    """The address this host reaches the server from: the right one of several network cards."""
    import socket
    url = urlsplit(server)
    try:
        found = socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[4])  # sends nothing: the kernel chooses a route
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Finding(f"{server} cannot be reached", str(error), "check the address, and the network between") from None


async def _authority(server: str, wanted: str) -> bytes:
    """The authority the server shows, believed only when its hash is the wanted one."""
    async with Client(ClientConfig(server, insecure=True), user_agent="pelamis-join") as client:
        info = await _info(client, server)
    clusters = json.loads(info["data"]["kubeconfig"])["clusters"]
    ca = base64.b64decode(clusters[0]["cluster"]["certificate-authority-data"])
    if membership.ca_hash(ca) != wanted:
        raise Finding(f"{server} is not the cluster you mean", "the hash of its authority is another",
                      "on the server: pelamis token create, and copy all of what it prints")
    return ca


async def _told(client: Client, server: str) -> Obj:
    """What the cluster says of itself, asked with the token over a verified connection."""
    return json.loads((await _info(client, server))["data"].get("pelamis", "{}"))


async def _info(client: Client, server: str) -> Obj:
    try:
        return await client.get(named("configmaps"), membership.INFO, "kube-public")
    except Unreachable as error:
        raise unreachable(server, str(error)) from None
    except Unauthorized:
        raise Finding("the server does not know this token", "it is wrong, or it has expired",
                      "on the server: pelamis token create") from None
    except (NotFound, Forbidden) as error:
        raise Finding(f"{server} does not say what cluster it is", str(error),
                      "install it with: pelamis install server") from None


def unreachable(server: str, said: str) -> Finding:
    """What to tell of a server that no connection could be made with."""
    if "not yet valid" in said or "has expired" in said:
        return Finding("the certificate of the server is not valid at the time this host has", said,
                       "set this host's clock: timedatectl set-ntp true; date")
    if "certificate is not valid for" in said or "IP address mismatch" in said or "Hostname mismatch" in said:
        return Finding(f"the server's certificate does not name {server}", said,
                       "on the server: systemctl start pelamis-prepare")
    if "certificate verify failed" in said:
        return Finding(f"{server} is another cluster's", said, "give the address of the cluster you mean")
    return Finding(f"{server} cannot be reached", said, "check the address, and that port 6443 is open on the way")


async def _name_is_free(client: Client, name: str) -> None:
    try:
        node = await client.get(named("nodes"), name)
    except NotFound:
        return
    except ApiError as error:
        raise Finding("the server does not let this host look for its own node", str(error)) from None
    machine = (files.read(Path("/etc/machine-id")) or b"").decode().strip()
    known = ((node.get("status") or {}).get("nodeInfo") or {}).get("machineID", "")
    ready = (objects.condition(node, "Ready") or {}).get("status")
    if ready == "True" and known != machine:
        raise Finding(f"the cluster has a node called {name} already, and it is ready",
                      "two hosts of one name would take each other's pods",
                      "hostnamectl set-hostname another-name, or give --node-name")


async def ready(paths: Paths, node: str, since: float = 0.0) -> None:
    """Wait until this node is ready, as the cluster sees it, by a report made after `since`. Raises Finding."""
    from controlplane.cli import patience
    from controlplane.client.config import load
    async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-join") as client:
        await patience.node_takes_pods(client, node, since)
