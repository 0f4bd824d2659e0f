"""From service ports to the elements of nf_tables maps.

Pure. Owns what a service port puts into the maps of `nftchains`: for each of its addresses and its node port, where a
new connection goes, and the endpoints there are to choose from; or that it is refused. Client affinity and source
ranges need chains of their own, which are made here too. `MapSet` keeps what each service put in and answers with the
elements a change touches: of a changed endpoint, one.

Called by `side`; written out by `nftables`. The other writer's planner is `rules`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from typing import Any

from agent.proxy.model import Endpoint, ServiceKey, ServicePort
from agent.proxy.nftchains import PORTS, REJECT, Chains, Rules
from agent.proxy.rules import chain_hash
from netsetup.nftables import Value
from netsetup.rtnetlink import packed

Element = tuple[str, bytes]  # set, key
DROP = ""
BALANCING, LEADING = ("lb", "np"), ("ext", "split")  # the first words of shared chains


@dataclass(slots=True)
class Piece:
    """What one service adds. `remembered`: sets of clients, with their time-out in seconds."""

    elements: dict[Element, Value] = field(default_factory=dict)
    chains: dict[str, Rules] = field(default_factory=dict)
    remembered: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class MapChange:
    """One transaction: elements to remove, then to add (one that changes is in both), chains to write or delete."""

    add: dict[Element, Value] = field(default_factory=dict)
    remove: list[Element] = field(default_factory=list)
    chains: dict[str, Rules] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    remembered: dict[str, int] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.add or self.remove or self.chains or self.dead)


_ABSENT: Any = object()
_NOTHING = Piece()


def place(protocol: str, port: int) -> bytes:
    """A node port's key, and the second half of every other."""
    return struct.pack("=B3x", PORTS[protocol]) + struct.pack(">H2x", port)


def data(endpoint: Endpoint) -> bytes:
    return packed(endpoint.address) + _number(endpoint.port)


@lru_cache(maxsize=1024)  # of the ports pods listen on; there are few, and this is asked once per endpoint
def _number(port: int) -> bytes:
    return struct.pack(">H2x", port)


@lru_cache(maxsize=4096)
def index(number: int) -> bytes:
    return struct.pack("=I", number)


class _Port:
    """Collects what one service port adds."""

    def __init__(self, port: ServicePort, chains: Chains, piece: Piece) -> None:
        self.port, self.chains, self.piece = port, chains, piece
        self.where = place(port.protocol, port.port)

    @property
    def unique(self) -> str:
        """The names of chains of its own are made from it."""
        return chain_hash(self.port.name + self.port.protocol)

    def put(self, name: str, key: bytes, value: Value = None) -> None:
        self.piece.elements[name, key] = value

    def write(self) -> None:
        port = self.port
        cluster_ip = packed(port.cluster_ip)
        self.put("cluster-ips", cluster_ip)
        if port.internal_endpoints:
            self.put("services", cluster_ip + self.where, self.to("lb", port.internal_local))
            self.endpoints("endpoints", cluster_ip + self.where, port.internal_endpoints)
            self.hairpins(port.internal_endpoints)
        else:
            self.refuse("refused", cluster_ip + self.where)
        if port.external:
            self.external()

    def to(self, kind: str, local: bool = False) -> str:
        """The chain that chooses among the endpoints an address has in its map."""
        count = len(self.port.local if local else self.port.cluster)
        return self.sticky(local) if self.port.affinity else f"{kind}-{count}"

    def sticky(self, local: bool) -> str:
        """The chain of client affinity, with its sets."""
        port, name = self.port, f"{self.unique}-local-1" if local else f"{self.unique}-1"
        ends = []
        for endpoint in port.local if local else port.cluster:
            end = chain_hash(f"{port.name}{port.protocol}{endpoint}")
            self.piece.remembered[f"had-{end}"] = port.affinity
            self.piece.chains[f"end-{end}"] = self.chains.end(end, packed(endpoint.address), endpoint.port)
            ends.append(end)
        self.piece.chains[name] = self.chains.affinity(ends)
        return name

    def endpoints(self, name: str, key: bytes, endpoints: tuple[Endpoint, ...]) -> None:
        if self.port.affinity:
            return  # its chains name them
        elements = self.piece.elements
        for number, endpoint in enumerate(endpoints):
            elements[name, key + index(number)] = data(endpoint)

    def hairpins(self, endpoints: Iterable[Endpoint], remote: bool = False) -> None:
        """A pod that reaches itself through us: only one of this node, or of any node that keeps its address here."""
        for endpoint in endpoints:
            if endpoint.local or remote:
                address = packed(endpoint.address)
                self.put("hairpin", address + address + place(self.port.protocol, endpoint.port))

    def refuse(self, name: str, key: bytes) -> None:
        """Without any endpoint the client is told; without one on this node another node may have one."""
        self.put(name, key, DROP if self.port.cluster else REJECT)

    def external(self) -> None:
        port = self.port
        places = [(packed(ip) + self.where, "services", "refused", "") for ip in (*port.external_ips,
                                                                                  *port.load_balancer_ips)]
        if port.node_port:
            places.append((place(port.protocol, port.node_port), "node-ports", "refused-node-ports", "node-port-"))
        for key, services, refused, prefix in places:
            if not (port.local if port.external_local else port.cluster):
                self.refuse(refused, key)
            if not port.cluster:
                continue
            self.put(services, key, self.from_outside("np" if prefix else "lb"))
            self.endpoints(f"{prefix}endpoints", key, port.cluster)
            if port.external_local:
                self.endpoints(f"{prefix}local-endpoints", key, port.local)
        if port.cluster:
            self.hairpins(port.cluster, port.external_local)
        if port.cluster and port.load_balancer_ips and port.source_ranges:
            name = f"from-{self.unique}"
            self.piece.chains[name] = self.chains.allowed(port.source_ranges)
            for ip in port.load_balancer_ips:
                self.put("firewall", packed(ip) + self.where, name)

    def from_outside(self, kind: str) -> str:
        port = self.port
        if port.affinity:
            kind, name = self.unique, self.sticky(False)
            if port.external_local:
                here = self.sticky(True) if port.local else ""
                split = f"split-{kind}-1-{1 if here else 0}"
                self.piece.chains[split] = self.chains.shared(split)
                return split
            self.piece.chains[f"ext-{name}"] = self.chains.shared(f"ext-{name}")
            return f"ext-{name}"
        if port.external_local:
            return f"split-{kind}-{len(port.cluster)}-{len(port.local)}"
        return f"ext-{kind}-{len(port.cluster)}"


def piece(ports: Iterable[ServicePort], chains: Chains) -> Piece:
    """All of one service."""
    made = Piece()
    for port in ports:
        _Port(port, chains, made).write()
    return made


def is_shared(name: str) -> bool:
    """Whether a chain is no service's own."""
    kind, _, rest = name.partition("-")
    return kind in BALANCING or (kind in LEADING and rest.partition("-")[0] in BALANCING)


def leads_to(name: str) -> list[str]:
    """The shared chains that a shared chain goes to."""
    kind, *rest = name.split("-")
    if kind == "ext":
        return ["-".join(rest)]
    if kind == "split":
        return [f"{rest[0]}-{rest[1]}", *([f"{rest[0]}-local-{rest[2]}"] if rest[2] != "0" else [])]
    return []


class MapSet:
    """Every service's piece, and the elements they make together."""

    def __init__(self, pods: str, family: int = 4) -> None:
        self.chains = Chains(family, pods)
        self._pieces: dict[ServiceKey, Piece] = {}
        self._holders: dict[Element, list[ServiceKey]] = {}  # of elements that several services put in
        self._shared: set[str] = set()
        self.held: dict[Element, tuple[ServiceKey, Value]] = {}  # what the kernel is to hold, and for whom

    def update(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> MapChange:
        """Take the new ports of some services (() for gone) and tell what that changes in the kernel."""
        change = MapChange()
        before: dict[Element, Any] = {}  # of elements that were there before, or have several services: what it was
        held = self.held
        for key, ports in services.items():
            old, new = self._pieces.pop(key, _NOTHING), piece(ports, self.chains)
            if ports:
                self._pieces[key] = new
            for element, value in old.elements.items():
                if new.elements.get(element, _ABSENT) != value:
                    before.setdefault(element, held[element][1])
                    self._release(element, key)
            fresh = {e: v for e, v in new.elements.items() if old.elements.get(e, _ABSENT) != v} if (
                old.elements) else new.elements
            if held.keys().isdisjoint(fresh) and before.keys().isdisjoint(fresh):
                held.update(zip(fresh, zip(repeat(key), fresh.values())))
                change.add.update(fresh)
            else:
                self._share(key, fresh, before, change.add)
            change.chains |= {n: rules for n, rules in new.chains.items() if old.chains.get(n) != rules}
            change.dead |= old.chains.keys() - new.chains.keys()
            change.remembered |= {n: t for n, t in new.remembered.items() if old.remembered.get(n) != t}
            change.forgotten |= {n for n, t in old.remembered.items() if new.remembered.get(n) != t}
        for element, was in before.items():
            now = held[element][1] if element in held else _ABSENT
            if was == now:
                continue
            if was is not _ABSENT:
                change.remove.append(element)
            if now is not _ABSENT:
                change.add[element] = now
        for value in {value for value in change.add.values() if isinstance(value, str)}:
            self._need(value, change)
        for name in change.forgotten & change.remembered.keys():  # another time-out: the chains that use it go along
            change.chains |= {n: r for p in self._pieces.values() for n, r in p.chains.items() if name in p.remembered}
        return change

    def everything(self) -> MapChange:
        """All that is to be there, for an empty table."""
        change = MapChange(add={element: value for element, (_, value) in self.held.items()})
        for name in self._shared:
            change.chains[name] = self.chains.shared(name)
        for made in self._pieces.values():
            change.chains |= made.chains
            change.remembered |= made.remembered
        return change

    def _share(self, key: ServiceKey, fresh: Mapping[Element, Value], before: dict[Element, Any],
               added: dict[Element, Value]) -> None:
        """Elements of which some are another service's as well, or were until now."""
        for element, value in fresh.items():
            if element in self.held:
                first, was = self.held[element]
                before.setdefault(element, was if added.pop(element, _ABSENT) is _ABSENT else _ABSENT)
                self._holders.setdefault(element, [first]).append(key)
            else:
                before.setdefault(element, _ABSENT)
                self.held[element] = key, value

    def _release(self, element: Element, key: ServiceKey) -> None:
        holders = self._holders.get(element)
        if holders is None:
            del self.held[element]
            return
        holders.remove(key)
        self.held[element] = holders[0], self._pieces[holders[0]].elements[element]
        if len(holders) == 1:
            del self._holders[element]

    def _need(self, value: str, change: MapChange) -> None:
        """The shared chains an element leads to, made when the first one does; they are few and stay."""
        if value in self._shared or not is_shared(value):
            return
        for name in leads_to(value):
            self._need(name, change)
        self._shared.add(value)
        change.chains[value] = self.chains.shared(value)
