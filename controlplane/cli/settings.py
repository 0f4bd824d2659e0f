"""What this node is, decided at the first `up` and kept: its name, address and ranges.

A second `up` reads it back, so that a changed host name or address is noticed and named instead of silently making
another node. Kept in `/etc/pelamis/node.json`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from controlplane.machinery import files
from controlplane.machinery.errors import Finding

DNS_INDEX = 10  # of the DNS address in the range
SHARED = ("service_range", "cluster_range", "cluster_domain", "proxy_mode", "cloud_provider")  # by all nodes
NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Settings:
    node_name: str
    node_ip: str
    service_range: str = "10.96.0.0/16"
    cluster_range: str = "10.244.0.0/16"
    cluster_domain: str = "cluster.local"
    proxy_mode: str = "iptables"
    server: str = ""  # URL of the API server of a node that joined; "" = this node runs the control plane
    runtime: str = ""  # socket of a container runtime that was there before us; "" = our own containerd
    cloud_provider: str = ""  # "external": a cloud-controller-manager tells what machines are; "": nobody does

    @property
    def dns_ip(self) -> str:
        """The cluster's DNS: the tenth address of the services' range, as everywhere."""
        return str(ipaddress.ip_network(self.service_range.split(",")[0])[DNS_INDEX])

    @property
    def family(self) -> int:
        """Of the node's own address: 6 only where pods have IPv6 alone."""
        return family_of(self.cluster_range)

    @property
    def url(self) -> str:
        """Of the API server, if it is on this node."""
        return f"https://{f'[{self.node_ip}]' if ':' in self.node_ip else self.node_ip}:6443"


def family_of(ranges: str) -> int:
    """The family of a node's address, by the ranges of pods; "" stands for the default ones."""
    return 6 if all(":" in part for part in ranges.split(",")) else 4


def check_ranges(settings: Settings) -> None:
    """Raises Finding for ranges that cannot work together or with the node's own address."""
    known: list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]] = []
    for flag, text in (("--service-cidr", settings.service_range), ("--cluster-cidr", settings.cluster_range)):
        try:
            networks = [ipaddress.ip_network(part) for part in text.split(",")]
        except ValueError as error:
            raise Finding(f"{flag} {text}: {error}", "", "give a network such as 10.96.0.0/16, or one of each family "
                          "such as 10.96.0.0/16,fd00:96::/112") from None
        if len({network.version for network in networks}) < len(networks):
            raise Finding(f"{flag} {text} has two networks of one address family", "there is at most one of each",
                          "give one IPv4 and one IPv6 network")
        known += [(flag, network) for network in networks]
    services, pods = ({network.version for flag, network in known if flag == one}
                      for one in ("--service-cidr", "--cluster-cidr"))
    node = ipaddress.ip_address(settings.node_ip)
    if services != pods:
        raise Finding(f"--service-cidr {settings.service_range} and --cluster-cidr {settings.cluster_range} differ in "
                      "their address families", "a Service could not lead to its pods", "give both, or both of each")
    if node.version not in pods:
        raise Finding(f"this node's address {node} is not of the pods' address family", "nodes would not reach each "
                      "other's pods", "give an address of the other family to --node-ip, or other ranges")
    for index, (flag, network) in enumerate(known):
        if node in network:
            raise Finding(f"{flag} {network} contains this node's own address {node}",
                          "packets to the host's network would be taken for the cluster's", "choose another range")
        for other_flag, other in known[:index]:
            if network.version == other.version and network.overlaps(other):
                raise Finding(f"{flag} {network} overlaps {other_flag} {other}", "an address must mean one thing",
                              "choose ranges apart from each other")


def default_node_name() -> str:
    """The host name in lower case. Raises Finding when it cannot name a node."""
    name = socket.gethostname().lower()
    if not NODE_NAME.fullmatch(name) or len(name) > 63:
        raise Finding(f'the host name "{name}" cannot name a node',
                      "a node name has lower case letters, digits, '-' and '.', at most 63 characters",
                      "hostnamectl set-hostname lab-1, or give --node-name")
    return name


def load(path: Path) -> Settings | None:
    """The kept settings; None before the first `up`. Raises Finding when the file is damaged."""
    try:
        return Settings(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise Finding(f"{path} is damaged", str(error), f"rm {path}, then run the command again") from None


def save(path: Path, settings: Settings) -> None:
    files.write(path, (json.dumps(asdict(settings), indent=1) + "\n").encode(), files.PUBLIC)
