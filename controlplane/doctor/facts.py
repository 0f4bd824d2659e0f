"""What `doctor` knows of a host and of its cluster: facts without judgement, so that the checks are pure.

A value nobody could find out is None (or empty), and no check speaks of it. Filled by `gather` and `cluster`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Disk:
    """Of the file system a folder is on; bytes and inodes, `inodes` 0 where it does not count them."""

    path: str
    free: int
    total: int
    inodes_free: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """A network card with its IPv4 addresses."""

    name: str
    addresses: tuple[str, ...]
    mtu: int


@dataclass(frozen=True, slots=True)
class Host:
    """This host, whether or not anything of ours runs on it."""

    distribution: str = ""  # "debian", "ubuntu" …
    cgroups: str = ""  # "v2", "hybrid", "v1", "" for none
    controllers: tuple[str, ...] = ()
    swap: tuple[str, ...] = ()
    swappiness: int | None = None
    modules_missing: tuple[str, ...] = ()
    clock_synchronised: bool | None = None
    now: float = 0.0
    disks: tuple[Disk, ...] = ()
    resolvers: tuple[str, ...] = ()  # of the file that pods get
    resolver_file: str = ""
    cards: tuple[Card, ...] = ()
    default_address: str = ""
    listeners: dict[int, str] = field(default_factory=dict)  # of the ports a node needs: the process
    iptables: str = ""  # "nf_tables" or "legacy"
    legacy_tables: tuple[str, ...] = ()
    firewalls: tuple[str, ...] = ()  # active services: ufw, firewalld
    dropping: tuple[str, ...] = ()  # chains of others with a policy of drop: "ip filter FORWARD"
    others: tuple[str, ...] = ()  # other runtimes and Kubernetes: "docker", "k3s" …
    rp_filter: int | None = None
    userns_restricted: bool = False  # by AppArmor, for whoever is not root


@dataclass(frozen=True, slots=True)
class Certificate:
    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node: what it says of itself, and whether a packet of full size reaches it."""

    name: str
    address: str
    ready: str = ""
    reason: str = ""
    version: str = ""
    reached: bool | None = None
    full_size: bool | None = None
    kubelet: bool | None = None  # whether it takes connections


@dataclass(frozen=True, slots=True)
class Node:
    """This host as a node. `name` is empty when nothing is installed."""

    name: str = ""
    address: str = ""
    server: str = ""
    services: tuple[tuple[str, str, str], ...] = ()  # component, state, reason
    certificates: tuple[Certificate, ...] = ()
    store_problems: tuple[str, ...] = ()
    store_size: int = 0
    store_free: int = 0
    snapshots: int | None = None
    newest_snapshot: float = 0.0
    stale_sandboxes: tuple[str, ...] = ()
    runtime_error: str = ""
    api_error: str = ""
    skew: float | None = None  # seconds the server's clock is ahead of this host's
    server_version: str = ""
    version: str = ""
    peers: tuple[Peer, ...] = ()
