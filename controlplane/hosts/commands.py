"""What the host commands of the command line share: the flags of a node, and the objects they work on."""

from __future__ import annotations

import argparse
from pathlib import Path

from controlplane.cli import preflight, settings
from controlplane.cli.settings import Settings
from controlplane.hosts.layout import Layout
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths


def node_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--node-name", default="", help="the node's name (default: the host name)")
    add("--node-ip", default="", help="the address others reach this node at (default: that of the way out)")
    add("--container-runtime-endpoint", default="", metavar="SOCKET",
        help="use this container runtime, which is checked and left as it is (default: an own instance of containerd)")


def bundle_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, metavar="FOLDER",
                        help="take packages and images from this unpacked bundle: no network is needed")


def server_flags(parser: argparse.ArgumentParser) -> None:
    known = Settings("", "")
    add = parser.add_argument
    add("--service-cidr", default=known.service_range, metavar="CIDR[,CIDR]",
        help=f"addresses of Services (default {known.service_range}); two ranges for IPv4 and IPv6")
    add("--cluster-cidr", default=known.cluster_range, metavar="CIDR[,CIDR]",
        help=f"addresses of pods (default {known.cluster_range}); two ranges for IPv4 and IPv6")
    add("--proxy-mode", choices=("iptables", "nftables"), default=known.proxy_mode,
        help=f"how Services are put into the kernel (default {known.proxy_mode})")
    add("--cloud-provider", choices=("external",), default="", help="external: a cloud-controller-manager tells "
        "what machines the nodes are (default: nobody does)")
    add("--cluster-domain", default=known.cluster_domain, help=f"the DNS domain (default {known.cluster_domain})")
    add("--scheduler-config", type=Path, metavar="FILE",
        help="a KubeSchedulerConfiguration, kept as /etc/pelamis/scheduler.yaml")


def join_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--server", required=True, metavar="URL", help="the API server, such as https://192.168.56.10:6443")
    add("--token", required=True, help="what `pelamis token create` printed on the server")
    add("--ca-cert-hash", required=True, metavar="sha256:…", help="the hash it printed with it")


def node_settings(args: argparse.Namespace, address: str = "") -> Settings:
    """The settings the flags ask for. `address` is what the node is known by unless --node-ip says otherwise."""
    made = Settings(args.node_name or settings.default_node_name(), preflight.node_ip(
        args.node_ip or address, settings.family_of(getattr(args, "cluster_cidr", ""))),
                    runtime=args.container_runtime_endpoint.removeprefix("unix://"))
    if not settings.NODE_NAME.fullmatch(made.node_name):
        raise Finding(f'"{made.node_name}" cannot name a node', "a name has lower case letters, digits, '-' and '.'",
                      "give another --node-name")
    return made


def layout(version: str = "") -> Layout:
    """The layout of this host; without a version, of the one that is installed."""
    paths = Paths.from_environment()
    return Layout(paths, version or Layout(paths).installed)


def fresh_layout() -> Layout:
    """The layout of the version this program is."""
    from controlplane.hosts import product
    return layout(product.version())


def needs_install(found: Layout) -> None:
    """Raises Finding when nothing is installed on this host."""
    if not found.version or not found.settings.exists():
        raise Finding("nothing is installed on this host", f"{found.current} is not there", "./pelamis install server")
