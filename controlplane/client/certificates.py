"""Certificates of a node from the cluster's own authority, asked for when it joins and again long before they end.

Owns which certificates a node needs and where it keeps them. Promises that a private key never leaves this host, that
a request nobody signs ends in a Finding, and that files are replaced whole. `of_node` and `due` are pure. Called by
`hosts.joining` with the bootstrap token, and by the agent with what it got then.

Upstream: k8s.io/client-go/util/certificate.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.client.rest import Client
from controlplane.machinery import files
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named
from controlplane.pki import kubeconfigs, leaves
from controlplane.pki.authority import Pair

REQUESTS = named("certificatesigningrequests.certificates.k8s.io")
SIGN_SECONDS = 60.0  # the controllers approve and sign within a second; they may just be starting
SIGNERS = "kubernetes.io/"
CLIENT_USES = ("digital signature", "client auth")
SERVER_USES = ("digital signature", "server auth")
PROXY = "system:kube-proxy"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One certificate: `file` is its base name below `Paths.pki`, and the kubeconfig's where `config` is set."""

    file: str
    signer: str
    common_name: str
    organizations: tuple[str, ...] = ()
    usages: tuple[str, ...] = CLIENT_USES
    sans: tuple[str, ...] = ()
    config: bool = True


def of_node(name: str, address: str) -> tuple[Wanted, Wanted, Wanted]:
    """A node's identity, what its own API is served with, and its service proxy's identity."""
    user = f"system:node:{name}"
    return (Wanted("node", SIGNERS + "kube-apiserver-client-kubelet", user, (leaves.NODES,)),
            Wanted("kubelet", SIGNERS + "kubelet-serving", user, (leaves.NODES,), SERVER_USES, (name, address), False),
            Wanted("kube-proxy", SIGNERS + "kube-apiserver-client", PROXY))


def due(wanted: Iterable[Wanted], stored: dict[str, bytes], now: float) -> list[Wanted]:
    """Which have to be asked for again: absent, in the last third of their life, or without a name they need."""
    return [w for w in wanted if w.file not in stored or now >= leaves.renewal_time(stored[w.file])
            or not set(w.sans) <= leaves.names(stored[w.file])]


async def obtain(client: Client, wanted: Wanted) -> Pair:
    """A new key and its certificate, signed by the cluster. Raises Finding when nobody signs."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    from controlplane.pki.authority import general_name, key_pem, new_key, subject
    key = new_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(wanted.common_name, wanted.organizations))
    if wanted.sans:
        names = x509.SubjectAlternativeName([general_name(s) for s in wanted.sans])
        builder = builder.add_extension(names, critical=False)
    text = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    request = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
               "metadata": {"generateName": "csr-"},
               "spec": {"request": base64.b64encode(text).decode(), "signerName": wanted.signer,
                        "usages": list(wanted.usages)}}
    made = await client.create(REQUESTS, request)
    return Pair(await _signed(client, made, wanted), key_pem(key))


async def _signed(client: Client, made: dict[str, Any], wanted: Wanted) -> bytes:
    name, revision = made["metadata"]["name"], made["metadata"]["resourceVersion"]
    try:
        async with asyncio.timeout(SIGN_SECONDS):
            while True:
                events = client.watch(REQUESTS, fields=f"metadata.name={name}", revision=revision)
                async for kind, obj in events:
                    if kind == "BOOKMARK":
                        continue
                    status = obj.get("status") or {}
                    if status.get("certificate"):
                        return base64.b64decode(status["certificate"])
                    for condition in status.get("conditions") or ():
                        if condition["type"] in ("Denied", "Failed"):
                            raise Finding(f"the certificate for {wanted.common_name} was refused",
                                          condition.get("message", ""), f"kubectl describe csr {name}")
    except TimeoutError:
        raise Finding(f"nobody signed the certificate for {wanted.common_name}",
                      f"request {name} waits: the controllers do not run, or may not approve it",
                      f"on the server: pelamis status; kubectl certificate approve {name}") from None


def store(paths: Paths, server: str, ca: bytes, wanted: Wanted, pair: Pair) -> None:
    """Put a certificate, its key and its kubeconfig where the agent reads them."""
    files.write(paths.pki / f"{wanted.file}.key", pair.key)
    files.write(paths.pki / f"{wanted.file}.crt", pair.certificate, files.PUBLIC)
    if wanted.config:
        files.write(paths.kubeconfig(wanted.file), kubeconfigs.render(server, wanted.common_name, ca, pair))


def stored(paths: Paths, wanted: Iterable[Wanted]) -> dict[str, bytes]:
    """The certificates that are there, by the base name of their file."""
    found = {w.file: files.read(paths.pki / f"{w.file}.crt") for w in wanted}
    return {file: text for file, text in found.items() if text}
