"""The apiserver's options, under upstream's flag names.

Owns the flags, their defaults and the checks that need no I/O. It never opens a file or a socket. Called by `__main__`
and by tests, which build `Options` directly.
"""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from controlplane.apiserver.authentication import authflags
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

AUTHORIZATION_MODES = ("AlwaysAllow", "AlwaysDeny", "Node", "RBAC")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Options:
    """All settings of one apiserver. Paths are None when a feature is off; without `tls_cert_file` it serves plain
    HTTP, which `parse` never does."""

    secure_port: int = 6443
    bind_address: str = "0.0.0.0"
    advertise_address: str = ""
    service_cluster_ip_range: str = "10.96.0.0/16"
    service_node_port_range: tuple[int, int] = (30000, 32767)  # both ends belong to it
    tls_cert_file: Path | None = None
    tls_private_key_file: Path | None = None
    client_ca_file: Path | None = None
    token_auth_file: Path | None = None
    anonymous_auth: bool = True
    kubelet_client_certificate: Path | None = None
    kubelet_client_key: Path | None = None
    kubelet_certificate_authority: Path | None = None
    service_account_key_file: Path | None = None
    service_account_signing_key_file: Path | None = None
    service_account_issuer: str = "https://kubernetes.default.svc"
    requestheader_client_ca_file: Path | None = None
    requestheader_allowed_names: tuple[str, ...] = ()
    requestheader_username_headers: tuple[str, ...] = ("X-Remote-User",)
    requestheader_uid_headers: tuple[str, ...] = ()
    requestheader_group_headers: tuple[str, ...] = ("X-Remote-Group",)
    requestheader_extra_headers_prefix: tuple[str, ...] = ("X-Remote-Extra-",)
    proxy_client_cert_file: Path | None = None
    proxy_client_key_file: Path | None = None
    enable_bootstrap_token_auth: bool = False
    oidc_issuer_url: str = ""
    oidc_client_id: str = ""
    oidc_username_claim: str = "sub"
    oidc_username_prefix: str = ""  # "" = the issuer and "#" (nothing for email), "-" = nothing
    oidc_groups_claim: str = ""
    oidc_groups_prefix: str = ""
    oidc_ca_file: Path | None = None
    oidc_signing_algs: tuple[str, ...] = ("RS256",)
    oidc_required_claims: tuple[tuple[str, str], ...] = ()
    storage: str = "sqlite"
    storage_path: Path | None = None
    authorization_mode: tuple[str, ...] = ("AlwaysAllow",)
    max_requests_inflight: int = 400
    max_mutating_requests_inflight: int = 200
    audit_policy_file: Path | None = None
    audit_log_path: str = ""  # "" = no audit log, "-" = standard output
    audit_log_maxsize: int = 0  # megabytes; 0 = the default of 100
    audit_log_maxbackup: int = 0  # files; 0 = the default of 10
    audit_log_maxage: int = 0  # days; 0 = for as long as the other limits let them
    change_log_path: str = ""  # "" = none, "-" = standard output

    @property
    def service_networks(self) -> list[Network]:
        """The ranges of Service addresses, one of each family; the first gives the default family."""
        return [ipaddress.ip_network(text) for text in self.service_cluster_ip_range.split(",")]

    @property
    def kubernetes_service_ip(self) -> str:
        """The first address of the service range: `default/kubernetes`."""
        return str(self.service_networks[0].network_address + 1)


def _port_range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    first, last = int(low), int(high if dash else low)
    if not 1 <= first <= last <= 65535:
        raise ValueError(text)
    return first, last


def parser() -> argparse.ArgumentParser:
    """Every flag, for the command line and for the file that explains them."""
    made = argparse.ArgumentParser(prog="pelamis apiserver", description="Serve the Kubernetes API.")
    add = made.add_argument
    add("--secure-port", type=int, default=6443, help="TLS port (default 6443)")
    add("--bind-address", default="0.0.0.0", help="address to listen on")
    add("--advertise-address", default="", help="address other members of the cluster reach this server at")
    add("--service-cluster-ip-range", default="10.96.0.0/16",
        help="range of Service addresses; two, separated by a comma, for two address families")
    add("--service-node-port-range", default="30000-32767", help="ports for Services of type NodePort")
    for name, text in (("tls-cert-file", "the server's certificate (PEM)"),
                       ("tls-private-key-file", "its key"),
                       ("client-ca-file", "CA of client certificates"),
                       ("token-auth-file", "CSV of static tokens: token,user,uid[,\"group,…\"]"),
                       ("kubelet-client-certificate", "certificate shown to kubelets"),
                       ("kubelet-client-key", "its key"),
                       ("kubelet-certificate-authority", "CA of the kubelets' certificates"),
                       ("service-account-key-file", "public key that verifies service-account tokens"),
                       ("service-account-signing-key-file", "private key that signs them"),
                       ("audit-policy-file", "what the audit log records: a Policy of audit.k8s.io/v1 (YAML)"),
                       ("storage-path", "the SQLite file")):
        add("--" + name, type=Path, default=None, help=text)
    add("--service-account-issuer", default="https://kubernetes.default.svc", help="the `iss` of tokens")
    add("--storage", choices=("memory", "sqlite"), default="sqlite", help="where objects live; memory forgets")
    add("--authorization-mode", default="Node,RBAC", help="comma-separated: " + ", ".join(AUTHORIZATION_MODES))
    for name, number, text in (("max-requests-inflight", 400, "seats for requests, together with the next"),
                               ("max-mutating-requests-inflight", 200, "more seats"),
                               ("audit-log-maxsize", 0, "megabytes of one audit log (default 100)"),
                               ("audit-log-maxbackup", 0, "old audit logs kept (default 10)"),
                               ("audit-log-maxage", 0, "days old audit logs are kept (default: no such limit)")):
        add("--" + name, type=int, default=number, help=text)
    add("--audit-log-path", default="", help='where audit events go, "-" for standard output')
    add("--change-log-path", default="", help="where one plain sentence per change goes")
    add("--anonymous-auth", default="true", choices=("true", "false"), help="let requests without credentials in")
    authflags.add(made)
    return made


def _check_ranges(text: str) -> None:
    try:
        networks = [ipaddress.ip_network(part) for part in text.split(",")]
    except ValueError as error:
        raise Finding(f"--service-cluster-ip-range: {error}", "", "give a network such as 10.96.0.0/16, or one of each "
                      "family such as 10.96.0.0/16,fd00:96::/112") from None
    if len({network.version for network in networks}) < len(networks):
        raise Finding(f"--service-cluster-ip-range {text} has two ranges of one address family",
                      "a Service has at most one address of each", "give one IPv4 and one IPv6 network")
    for network in networks:
        if not 4 <= network.max_prefixlen - network.prefixlen <= 20:
            raise Finding(f"--service-cluster-ip-range {network} has an unusable size", "Services need between 16 and "
                          "2^20 addresses", "use a prefix from /12 to /28, such as 10.96.0.0/16; of IPv6 from /108 to "
                          "/124")


def parse(arguments: list[str], paths: Paths | None = None) -> Options:
    """Options of a command line. Raises Finding for what cannot work; argparse exits on unknown flags."""
    paths = paths or Paths.from_environment()
    given = vars(parser().parse_args(arguments))
    try:
        given["service_node_port_range"] = _port_range(given["service_node_port_range"])
    except ValueError:
        raise Finding(f'--service-node-port-range {given["service_node_port_range"]!r} is no range of ports', "",
                      "give it as 30000-32767") from None
    _check_ranges(given["service_cluster_ip_range"])
    modes = tuple(m for m in given["authorization_mode"].split(",") if m)
    if unknown := [m for m in modes if m not in AUTHORIZATION_MODES]:
        raise Finding(f"--authorization-mode knows no {unknown[0]}", "",
                      "use any of " + ", ".join(AUTHORIZATION_MODES))
    given["authorization_mode"] = modes
    authflags.finish(given)
    given["anonymous_auth"] = given["anonymous_auth"] == "true"
    for flag in ("tls_cert_file", "tls_private_key_file"):
        if given[flag] is None:
            raise Finding(f"--{flag.replace('_', '-')} is missing", "the API is served over TLS only",
                          "give the server's certificate and key; `pelamis up` makes both")
    if given["audit_log_path"] and given["audit_policy_file"] is None:
        raise Finding("--audit-log-path needs --audit-policy-file", "without a policy nothing is recorded",
                      "give a Policy of audit.k8s.io/v1 with at least one rule")
    if given["max_requests_inflight"] + given["max_mutating_requests_inflight"] < 1:
        raise Finding("the server has no seats for requests", "", "give --max-requests-inflight at least 1")
    if given["storage"] == "sqlite" and given["storage_path"] is None:
        given["storage_path"] = paths.store
    return Options(**given)
