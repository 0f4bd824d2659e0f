"""Brings the PKI of a control-plane node into being and keeps it fit: `ensure` may run at every start.

Owns the folder `Paths.pki` and the kubeconfigs. Promises: idempotent, and safe to kill at any instruction, since
every file is replaced whole and a pair whose halves do not fit is issued again. A leaf is renewed in the last third
of its life or when it no longer fits (`leaves.fault`); the authority and the service-account key are made once and
never replaced. Called by `pelamis up` before it starts any process, and at least once a day while they run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controlplane.machinery import files
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.paths import Paths
from controlplane.pki import kubeconfigs, leaves
from controlplane.pki.authority import Authority, Pair, key_pem, new_key, public_pem

API_PORT = 6443
PROXIES = "front-proxy"  # folder of the authority of front proxies: whom they vouch for is believed, so it is another
# Leaves that get a kubeconfig. The administrator's names the node's address, so that it works where it is copied to;
# components on this host use the loopback address, which no change of network takes away.
_KUBECONFIGS = ("admin", "controller-manager", "scheduler", "node", "kube-proxy")


@dataclass(frozen=True, slots=True)
class Issued:
    """What one `ensure` wrote: base names of certificates, each with the reason, and names of kubeconfigs."""

    certificates: dict[str, str]
    kubeconfigs: list[str]


def ensure(paths: Paths, node_name: str, node_ip: str, service_range: str = "10.96.0.0/16",
           cluster_domain: str = "cluster.local", *, port: int = API_PORT, clock: Clock = SYSTEM) -> Issued:
    """Every key, certificate and kubeconfig of this node, made or renewed where needed. Raises a Finding when the
    authority's files contradict each other."""
    folder = paths.pki
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority.load(folder, clock) or Authority.create(folder, clock)
    proxies = Authority.load(folder / PROXIES, clock) or Authority.create(folder / PROXIES, clock, "front-proxy-ca")
    _service_account_key(folder)
    written: dict[str, str] = {}
    pairs: dict[str, Pair] = {}
    subjects: dict[str, str] = {}
    for leaf in leaves.wanted(node_name, node_ip, service_range, cluster_domain):
        stored, signer = _load(folder, leaf.file), proxies if leaf.proxy else authority
        why = leaves.fault(leaf, stored, signer.certificate, clock.now())
        if why or stored is None:
            stored = signer.issue(leaf.common_name, leaf.organizations, leaf.usages, leaf.sans)
            files.write(folder / f"{leaf.file}.key", stored.key)
            files.write(folder / f"{leaf.file}.crt", stored.certificate, files.PUBLIC)
            written[leaf.file] = why
        pairs[leaf.file], subjects[leaf.file] = stored, leaf.common_name
    changed = []
    for component in _KUBECONFIGS:
        host = node_ip if component == "admin" else "127.0.0.1"
        server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        text = kubeconfigs.render(server, subjects[component], authority.pem, pairs[component])
        path = paths.kubeconfig(component)
        if files.read(path) != text:
            files.write(path, text)
            changed.append(component)
    return Issued(written, changed)


def _load(folder: Path, file: str) -> Pair | None:
    certificate, key = files.read(folder / f"{file}.crt"), files.read(folder / f"{file}.key")
    return Pair(certificate, key) if certificate and key else None


def _service_account_key(folder: Path) -> None:
    """`sa.key` signs service-account tokens, `sa.pub` is for whoever verifies them."""
    if files.read(folder / "sa.key") is None or files.read(folder / "sa.pub") is None:
        key = new_key()
        files.write(folder / "sa.key", key_pem(key))
        files.write(folder / "sa.pub", public_pem(key), files.PUBLIC)
