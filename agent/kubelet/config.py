"""The agent's flags, named as the kubelet's where both have one, and what follows from them on this host.

Owns parsing and the defaults. Pure but for reading the host's name, its resolv.conf and its main address. Called by
`agent.__main__`.
"""

from __future__ import annotations

import argparse
import socket
from dataclasses import dataclass
from pathlib import Path

from agent.kubelet.host import registration
from agent.kubelet.host.registration import Registration
from agent.kubelet.hosts import parse_resolv
from agent.kubelet.model import DNS
from agent.kubelet.pressure import keeping
from agent.kubelet.pressure.keeping import Keeping
from controlplane.machinery.paths import Paths
from netsetup import addresses

RESOLV_FILES = ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf")  # systemd's stub does not work inside a pod


@dataclass(frozen=True, slots=True)
class Options:
    kubeconfig: Path
    proxy_kubeconfig: Path | None
    name: str
    node_ip: str
    node_ips: tuple[str, ...]  # of IPv4, and where pods have IPv6 too, of that
    socket: str
    root: Path
    pod_cidr: str
    cluster_cidr: str
    service_cidr: str
    proxy_mode: str
    cluster_dns: tuple[str, ...]
    cluster_domain: str
    port: int
    client_ca: Path
    certificate: Path
    key: Path
    cgroup_root: str
    systemd: bool | None
    manifests: Path | None
    sysctls: tuple[str, ...]
    providers: Path | None
    provider_folder: Path
    rotate: bool
    cloud: str | None  # the provider ID of this machine in a cloud, "" where only the cloud knows it; None: no cloud
    keeping: Keeping
    registration: Registration
    verbose: bool


def parser(paths: Paths) -> argparse.ArgumentParser:
    """Every flag, for the command line and for the file that explains them."""
    flags = argparse.ArgumentParser("agent", description="The node agent: kubelet, pod network and service proxy.")
    add = flags.add_argument
    add("--kubeconfig", type=Path, default=paths.kubeconfig("node"), help="how to reach the API server as this node")
    add("--proxy-kubeconfig", type=Path, help="the same for the service proxy; without it no service rules are made")
    add("--hostname-override", default="", help="the node's name (default: the host's)")
    add("--node-ip", default="", help="the node's address (default: that of the default route)")
    add("--container-runtime-endpoint", default=f"unix://{paths.containerd_socket}")
    add("--root-dir", type=Path, default=paths.kubelet, help="folder of volumes and pod files")
    add("--pod-cidr", default="", help="the pods' range (default: what the API gives this node)")
    add("--cluster-cidr", default="10.244.0.0/16", help="the range of all pods, which is not masqueraded")
    add("--service-cluster-ip-range", default="10.96.0.0/16", help="the services' range, whose reverse names are ours")
    add("--proxy-mode", choices=("iptables", "nftables"), default="iptables", help="how service rules are written")
    add("--cluster-dns", default="", help="addresses of the cluster's DNS, separated by commas")
    add("--cluster-domain", default="cluster.local")
    add("--port", type=int, default=10250, help="port of the kubelet's own API")
    add("--client-ca-file", type=Path, default=paths.pki / "ca.crt")
    add("--tls-cert-file", type=Path, default=paths.pki / "kubelet.crt")
    add("--tls-private-key-file", type=Path, default=paths.pki / "kubelet.key")
    add("--cgroup-root", default="kubepods", help="the control group above all pods")
    add("--cgroup-driver", choices=("cgroupfs", "systemd"), help="default: as the runtime is configured")
    add("--pod-manifest-path", type=Path, help="folder of static pods, which run without the API server")
    add("--allowed-unsafe-sysctls", default="", help="kernel parameters pods may set beyond the safe ones: names or "
        "prefixes ending in *, separated by commas")
    add("--cloud-provider", choices=("", "external"), default="", help="external: a cloud-controller-manager tells "
        "what this machine is, and no pod comes before")
    add("--provider-id", default="", help="what the cloud calls this machine")
    add("--rotate-certificates", action="store_true", help="ask the API server for new certificates long before "
        "those of this node expire")
    registration.add_flags(flags)
    keeping.add_flags(flags)
    add("--image-credential-provider-config", type=Path, help="a CredentialProviderConfig: programs that know the "
        "credentials of registries")
    add("--image-credential-provider-bin-dir", type=Path, default=Path("/usr/local/libexec/kubelet"),
        help="folder of these programs")
    add("-v", "--verbose", action="store_true", help="log what helps to find faults, too")
    return flags


def parse(arguments: list[str], paths: Paths) -> Options:
    """Flags to Options. Exits with a usage message on a wrong flag; raises Finding when no address is to be had."""
    given = parser(paths).parse_args(arguments)
    alone = 6 if all(":" in cidr for cidr in given.cluster_cidr.split(",")) else 4
    driver, node_ip = given.cgroup_driver, given.node_ip or addresses.node_address(alone)
    six = addresses.global_address6(node_ip) if "," in given.cluster_cidr else ""
    return Options(
        kubeconfig=given.kubeconfig, proxy_kubeconfig=given.proxy_kubeconfig,
        name=given.hostname_override or socket.gethostname().lower(), node_ip=node_ip,
        node_ips=(node_ip, six) if six else (node_ip,),
        socket=given.container_runtime_endpoint.removeprefix("unix://"), root=given.root_dir, pod_cidr=given.pod_cidr,
        cluster_cidr=given.cluster_cidr, service_cidr=given.service_cluster_ip_range,
        proxy_mode=given.proxy_mode,
        cluster_dns=tuple(a for a in given.cluster_dns.split(",") if a),
        cluster_domain=given.cluster_domain, port=given.port, client_ca=given.client_ca_file,
        certificate=given.tls_cert_file, key=given.tls_private_key_file, cgroup_root=given.cgroup_root.strip("/"),
        systemd=None if driver is None else driver == "systemd", manifests=given.pod_manifest_path,
        sysctls=tuple(s for s in given.allowed_unsafe_sysctls.split(",") if s),
        providers=given.image_credential_provider_config, provider_folder=given.image_credential_provider_bin_dir,
        rotate=given.rotate_certificates, cloud=given.provider_id if given.cloud_provider else None,
        keeping=keeping.of(given), registration=registration.of(given), verbose=given.verbose)


def apparmor() -> bool:
    """Whether the kernel enforces AppArmor and the runtime could load profiles."""
    try:
        enabled = Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False
    return enabled and Path("/sys/kernel/security/apparmor").exists() and Path("/sbin/apparmor_parser").exists()


def resolvers() -> DNS:
    """The node's resolvers as pods may use them."""
    for path in RESOLV_FILES:
        try:
            found = parse_resolv(Path(path).read_text(errors="replace"))
        except OSError:
            continue
        if found.servers:
            return found
    return DNS()
