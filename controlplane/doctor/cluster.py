"""Reads the facts of this host as a node: services, certificates, store, runtime, and the cluster as it sees it.

Promises to say of each part that does not answer why, to ask nothing for longer than ASK_SECONDS, to change nothing.
Called by `doctor` and `support`.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from controlplane.cli import settings
from controlplane.cli.settings import Settings
from controlplane.doctor import gather
from controlplane.doctor.checks import KUBELET
from controlplane.doctor.echo import echo
from controlplane.doctor.facts import Certificate, Node, Peer
from controlplane.hosts import running
from controlplane.machinery import objects
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named

ASK_SECONDS = 10.0
ECHO_SECONDS = 1.0  # nodes of one cluster are near each other
LITTLE, COMMON_MTU = 64, 1500  # bytes of a packet
MOST_PEERS = 20  # asked: a doctor is no load test


def node(paths: Paths) -> Node:
    """The facts; an empty Node when nothing is installed here."""
    kept = settings.load(paths.etc / "node.json")
    if kept is None:
        return Node()
    found = Node(name=kept.node_name, address=kept.node_ip, server=kept.server, services=_services(paths),
                 certificates=_certificates(paths))
    if not kept.server:
        found = _with_store(found, paths)
    return asyncio.run(_with_cluster(found, paths, kept))


def _services(paths: Paths) -> tuple[tuple[str, str, str], ...]:
    return tuple((r["name"], r["state"], r["reason"]) for r in running.processes(paths) or ())


def _certificates(paths: Paths) -> tuple[Certificate, ...]:
    from cryptography import x509
    found = []
    for file in sorted(paths.pki.rglob("*.crt")):
        parsed = x509.load_pem_x509_certificate(file.read_bytes())
        found.append(Certificate(str(file), parsed.not_valid_before_utc.timestamp(),
                                 parsed.not_valid_after_utc.timestamp()))
    return tuple(found)


def _with_store(found: Node, paths: Paths) -> Node:
    from controlplane.store import backup
    if not paths.store.exists():
        return found
    health = backup.health(paths.store, thorough=False)
    snapshots = backup.listed(paths.lib / "snapshots")
    return replace(found, store_problems=health.problems, store_size=health.size, store_free=health.free,
                   snapshots=len(snapshots), newest_snapshot=snapshots[0].time if snapshots else 0.0)


async def _with_cluster(found: Node, paths: Paths, kept: Settings) -> Node:
    from controlplane.client.config import load
    from controlplane.client.rest import Client
    config = load(paths.admin_kubeconfig if paths.admin_kubeconfig.exists() else paths.kubeconfig("node"))
    known: set[str] | None = None
    try:
        async with asyncio.timeout(ASK_SECONDS), Client(config, user_agent="pelamis-doctor") as client:
            own = await client.get(named("nodes"), kept.node_name)
            pods, _ = await client.list(named("pods"), fields=f"spec.nodeName={kept.node_name}")
            known = {objects.uid(p) for p in pods} | {
                objects.annotations(p).get("kubernetes.io/config.mirror", "") for p in pods}
            nodes = (await client.list(named("nodes")))[0] if paths.admin_kubeconfig.exists() else [own]
            found = replace(found, version=_version(own), server_version="" if kept.server else _version(own),
                            peers=tuple(_peer(n) for n in nodes))
    except (ApiError, Finding, TimeoutError) as error:
        found = replace(found, api_error=str(error) or f"no answer within {ASK_SECONDS:.0f} s")
    found = await _with_runtime(found, paths, kept, known)
    found = replace(found, skew=await asyncio.to_thread(_skew, config.server))
    return replace(found, peers=tuple([await _reached(p, found) for p in found.peers[:MOST_PEERS]]))


def _skew(server: str) -> float | None:
    """Seconds the server's clock is ahead of ours, by the date of its answer. Its certificate is not looked at: to a
    host whose clock is off it would not be valid, and nothing but the date is taken."""
    url = urlsplit(server)
    connection = http.client.HTTPSConnection(url.hostname or "", url.port or 443, timeout=ASK_SECONDS,
                                             context=ssl._create_unverified_context())
    try:
        connection.request("GET", "/readyz")
        date = connection.getresponse().headers.get("Date")
        return parsedate_to_datetime(date).timestamp() - SYSTEM.now() if date else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _version(obj: dict[str, Any]) -> str:
    return str(((obj.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", ""))


def _peer(obj: dict[str, Any]) -> Peer:
    ready = objects.condition(obj, "Ready") or {}
    addresses = [a["address"] for a in (obj.get("status") or {}).get("addresses") or () if a["type"] == "InternalIP"]
    return Peer(objects.name(obj), addresses[0] if addresses else "", ready.get("status", "Unknown"),
                ready.get("message", ""), _version(obj))


async def _with_runtime(found: Node, paths: Paths, kept: Settings, known: set[str] | None) -> Node:
    from agent.kubelet.cri.runtime import CallError, Runtime
    from cri_proto.client import Connection
    try:
        socket = Path(kept.runtime or paths.containerd_socket)
        async with asyncio.timeout(ASK_SECONDS), Connection(socket) as connection:
            observed = await Runtime(connection).observe()
    except (OSError, CallError, TimeoutError) as error:
        return replace(found, runtime_error=str(error) or f"no answer within {ASK_SECONDS:.0f} s")
    if known is None:
        return found
    stale = [f"{p.namespace}/{p.name}" for uid, p in observed.items() if uid not in known and p.sandboxes]
    return replace(found, stale_sandboxes=tuple(sorted(stale)))


async def _reached(peer: Peer, found: Node) -> Peer:
    """Ask a node for an echo of a small packet, and of one that fills the card's own size and must not be cut; and
    whether its kubelet takes connections."""
    if not peer.address or peer.name == found.name:
        return peer
    cards = await asyncio.to_thread(gather.cards)
    mtu = next((c.mtu for c in cards if found.address in c.addresses), COMMON_MTU)
    small = await echo(peer.address, LITTLE, ECHO_SECONDS)
    full = await echo(peer.address, mtu, ECHO_SECONDS) if small else None
    return replace(peer, reached=small, full_size=full, kubelet=await _connects(peer.address, KUBELET))


async def _connects(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(ECHO_SECONDS):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
