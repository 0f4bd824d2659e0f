"""What a cluster keeps ready for hosts that want to join: where it is, whom to believe, and tokens that end soon.

Owns the ConfigMap kube-public/cluster-info, the roles of hosts that are not yet nodes and of nodes that renew their
certificates, and bootstrap tokens. `wanted`, `ca_hash` and `secret` are pure. Called by `install server` and the
command `token`.

Upstream: cmd/kubeadm/app/phases/bootstraptoken.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from controlplane.cli.settings import SHARED, Settings
from controlplane.client.rest import Client
from controlplane.machinery.clock import SYSTEM, Clock, rfc3339
from controlplane.machinery.errors import AlreadyExists
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named

Obj = dict[str, Any]
RBAC = "rbac.authorization.k8s.io"
JOINERS, NODES = "system:bootstrappers", "system:nodes"
INFO = "cluster-info"
SECRETS = named("secrets")
TOKEN_TYPE, TOKEN_PREFIX, TOKEN_SPACE = "bootstrap.kubernetes.io/token", "bootstrap-token-", "kube-system"
ID_LENGTH, SECRET_LENGTH = 6, 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# ClusterRole → the group that holds it: what upstream's names stand for.
_HOLDERS = {"system:node-bootstrapper": JOINERS,
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient": JOINERS,
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": NODES,
            "pelamis:node-certificates": NODES}


def ca_hash(pem: bytes) -> str:
    """`sha256:…` of the authority's public key, as kubeadm writes it."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    key = x509.load_pem_x509_certificate(pem).public_key()
    return "sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def wanted(settings: Settings, ca: bytes, version: str) -> list[tuple[str, Obj]]:
    """(resource, object), in the order to make them."""
    server = settings.url
    import base64
    kubeconfig = {"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": {
        "server": server, "certificate-authority-data": base64.b64encode(ca).decode()}}], "contexts": [], "users": []}
    shared = {k: v for k, v in asdict(settings).items() if k in SHARED}
    info = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": INFO, "namespace": "kube-public"},
            "data": {"kubeconfig": json.dumps(kubeconfig), "pelamis": json.dumps({**shared, "version": version})}}
    certificates = [{"apiGroups": ["certificates.k8s.io"], "verbs": ["create"], "resources": [
        "certificatesigningrequests/selfnodeserver", "certificatesigningrequests/nodeproxyclient"]}]
    read = [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [INFO], "verbs": ["get"]}]
    found: list[tuple[str, Obj]] = [
        ("configmaps", info),
        (f"roles.{RBAC}", _role("Role", "pelamis:cluster-info", read, "kube-public")),
        (f"rolebindings.{RBAC}", _binding("Role", "pelamis:cluster-info", [
            ("User", "system:anonymous"), ("Group", JOINERS), ("Group", NODES)], "kube-public")),
        (f"clusterroles.{RBAC}", _role("ClusterRole", "pelamis:node-certificates", certificates))]
    return found + [(f"clusterrolebindings.{RBAC}", _binding("ClusterRole", role, [("Group", group)]))
                    for role, group in _HOLDERS.items()]


def _role(kind: str, name: str, rules: list[Obj], namespace: str = "") -> Obj:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": {"name": name, **place}, "rules": rules}


def _binding(kind: str, role: str, holders: list[tuple[str, str]], namespace: str = "") -> Obj:
    place = {"namespace": namespace} if namespace else {}
    name = role if role.startswith("pelamis:") else "pelamis:" + role.rsplit(":", 1)[-1]
    return {"apiVersion": f"{RBAC}/v1", "kind": f"{kind}Binding", "metadata": {"name": name, **place},
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": k, "name": n} for k, n in holders]}


async def welcome(client: Client, paths: Paths, settings: Settings, version: str) -> None:
    """Make these objects, or make them right."""
    for name, obj in wanted(settings, (paths.pki / "ca.crt").read_bytes(), version):
        resource, meta = named(name), obj["metadata"]
        try:
            await client.create(resource, obj, meta.get("namespace", ""))
        except AlreadyExists:
            await client.patch(resource, meta["name"], {k: v for k, v in obj.items() if k != "metadata"},
                               meta.get("namespace", ""), kind="merge")


# --- tokens ----------------------------------------------------------------------------------------------------------

def secret(identifier: str, word: str, expires: float, description: str) -> Obj:
    """The Secret that makes a token hold; `expires` is wall seconds, 0 for never."""
    data = {"token-id": identifier, "token-secret": word, "usage-bootstrap-authentication": "true",
            "description": description}
    if expires:
        data["expiration"] = rfc3339(expires)
    return {"apiVersion": "v1", "kind": "Secret", "type": TOKEN_TYPE, "stringData": data,
            "metadata": {"name": TOKEN_PREFIX + identifier, "namespace": TOKEN_SPACE}}


async def create_token(client: Client, seconds: float, description: str, clock: Clock = SYSTEM) -> str:
    """A new token `<id>.<secret>`."""
    import secrets
    identifier, word = ("".join(secrets.choice(_LETTERS) for _ in range(n)) for n in (ID_LENGTH, SECRET_LENGTH))
    expires = clock.now() + seconds if seconds else 0.0
    await client.create(SECRETS, secret(identifier, word, expires, description), TOKEN_SPACE)
    return f"{identifier}.{word}"


async def tokens(client: Client) -> list[Obj]:
    """The Secrets of all tokens, data decoded into `stringData`."""
    import base64
    found, _ = await client.list(SECRETS, TOKEN_SPACE, fields=f"type={TOKEN_TYPE}")
    return [{**s, "stringData": {k: base64.b64decode(v).decode() for k, v in (s.get("data") or {}).items()}}
            for s in found]


def command(paths: Paths, settings: Settings, token: str, program: Path | str = "./pelamis") -> str:
    """What to run on a host that is to join."""
    return (f"{program} install agent --server {settings.url} --token {token} "
            f"--ca-cert-hash {ca_hash((paths.pki / 'ca.crt').read_bytes())}")
