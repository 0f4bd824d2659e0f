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

from controlplane.machinery.errors import Finding

DNS_INDEX = 10  # of the DNS address in the range
NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Settings:
    node_name: str
    node_ip: str
    service_range: str = "10.96.0.0/16"
    cluster_range: str = "10.244.0.0/16"
    cluster_domain: str = "cluster.local"

    @property
    def dns_ip(self) -> str:
        """The cluster's DNS: the tenth address of the services' range, as everywhere."""
        return str(ipaddress.ip_network(self.service_range)[DNS_INDEX])


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
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(settings), indent=1) + "\n")
    fresh.replace(path)
