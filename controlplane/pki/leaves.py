"""The certificates a cluster of one node needs, and when one must be issued again.

`wanted(...)` is the list: who each certificate speaks for, for what use, under which names. `fault(...)` says why a
stored pair no longer serves: it is missing, it is within the last third of its life, it names another subject, lacks
a name, or another authority signed it. Both are pure; `cluster` acts on them. File names follow upstream's so that
people find them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.pki.authority import Pair, general_name, subject

MASTERS = "system:masters"
NODES = "system:nodes"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One certificate: `file` is its base name (`apiserver` for apiserver.crt and apiserver.key)."""

    file: str
    common_name: str
    organizations: tuple[str, ...] = ()
    usages: tuple[str, ...] = ("client",)
    sans: tuple[str, ...] = ()
    proxy: bool = False  # issued by the authority of front proxies, which no client certificate comes from


def service_address(service_range: str) -> str:
    """The first usable address of the first range: the ClusterIP of default/kubernetes."""
    return str(ipaddress.ip_network(service_range.split(",")[0])[1])


def wanted(node_name: str, node_ip: str, service_range: str, cluster_domain: str) -> list[Leaf]:
    """Every leaf of the control plane and of the node it runs on."""
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{cluster_domain}",
             "localhost", node_name, "127.0.0.1", "::1", node_ip, service_address(service_range))
    return [
        Leaf("apiserver", "kube-apiserver", usages=("server",), sans=tuple(dict.fromkeys(names))),
        Leaf("apiserver-kubelet-client", "kube-apiserver-kubelet-client", (MASTERS,)),
        Leaf("admin", "kubernetes-admin", (MASTERS,)),
        Leaf("controller-manager", "system:kube-controller-manager"),
        Leaf("scheduler", "system:kube-scheduler"),
        Leaf("kube-proxy", "system:kube-proxy"),
        Leaf("front-proxy-client", "front-proxy-client", proxy=True),
        *node(node_name, node_ip),
    ]


def node(name: str, address: str) -> list[Leaf]:
    """What a node holds: its identity towards the apiserver, and the certificate its own API serves with."""
    return [
        Leaf("node", f"system:node:{name}", (NODES,)),
        Leaf("kubelet", f"system:node:{name}", (NODES,), ("server",),
             tuple(dict.fromkeys((name, address, "localhost", "127.0.0.1")))),
    ]


def fault(leaf: Leaf, stored: Pair | None, ca: x509.Certificate, now: float) -> str:
    """Why `stored` must be replaced; "" when it serves. `now` is wall seconds."""
    if stored is None:
        return "missing"
    try:
        certificate = x509.load_pem_x509_certificate(stored.certificate)
        key = serialization.load_pem_private_key(stored.key, None)
    except (ValueError, TypeError):
        return "unreadable"
    if key.public_key() != certificate.public_key():
        return "its key is another's"
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return "signed by another authority"
    if now > _renewal(certificate):
        return "expires soon"
    if certificate.subject != subject(leaf.common_name, leaf.organizations):
        return "names another subject"
    if missing := {general_name(s) for s in leaf.sans} - _names(certificate):
        return "lacks " + ", ".join(sorted(str(n.value) for n in missing))
    return "" if _usages(certificate) == set(leaf.usages) else "has other usages"


def end(pem: bytes) -> float:
    """Wall seconds from which on nobody believes a certificate; 0 for what is none."""
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError:
        return 0.0


def renewal_time(pem: bytes) -> float:
    """Wall seconds at which a certificate should be issued again."""
    return _renewal(x509.load_pem_x509_certificate(pem))


def names(pem: bytes) -> set[str]:
    """The alternative names of a certificate as text."""
    return {str(name.value) for name in _names(x509.load_pem_x509_certificate(pem))}


def _renewal(certificate: x509.Certificate) -> float:
    """When two thirds of its life are over: months before anybody would notice."""
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return end - (end - start) / 3


def _names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def _usages(certificate: x509.Certificate) -> set[str]:
    try:
        found = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set()
    return {n for n, oid in (("client", ExtendedKeyUsageOID.CLIENT_AUTH), ("server", ExtendedKeyUsageOID.SERVER_AUTH))
            if oid in found}
