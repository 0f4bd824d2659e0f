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
from typing import Any

from agent.proxy.model import Endpoint, ServiceKey, ServicePort
from agent.proxy.nftchains import PORTS, REJECT, Chains, Rules, sets
from agent.proxy.rules import chain_hash
from netsetup.nftables import INDEX, Value
from netsetup.rtnetlink import packed

Element = tuple[str, bytes]  # set, key
Elements = dict[str, dict[bytes, Value]]  # of each set
DROP = ""
BALANCING, LEADING = ("lb", "np"), ("ext", "split")  # the first words of shared chains
VERDICTS = [name for name, spec in sets(4).items() if spec.verdicts]  # the sets whose elements lead to chains
NUMBERED = [name for name, spec in sets(4).items() if spec.key[-1] == INDEX]  # of endpoints, each found by a number


@dataclass(slots=True)
class Piece:
    """What one service adds. `remembered`: sets of clients, with their time-out in seconds.

    In the sets of `NUMBERED` endpoints, an address has one value: all of its endpoints, one after another."""

    elements: Elements = field(default_factory=dict)
    chains: dict[str, Rules] = field(default_factory=dict)
    remembered: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class MapChange:
    """One transaction: elements to remove, then to add (one that changes is in both), chains to write or delete."""

    add: Elements = field(default_factory=dict)
    remove: dict[str, list[bytes]] = field(default_factory=dict)
    chains: dict[str, Rules] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    remembered: dict[str, int] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.add or self.remove or self.chains or self.dead)


_ABSENT: Any = object()
_NOTHING = Piece()
_EMPTY: Mapping[bytes, Any] = {}


@lru_cache(maxsize=1024)  # services have few different ports
def place(protocol: str, port: int) -> bytes:
    """A node port's key, and the second half of every other."""
    return struct.pack("=B3x", PORTS[protocol]) + struct.pack(">H2x", port)


def data(*endpoints: Endpoint) -> bytes:
    """Where connections go, one after another."""
    return b"".join([packed(address) + _number(port) for address, port, _ in endpoints])


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
        self.piece.elements.setdefault(name, {})[key] = value

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
        if endpoints and not self.port.affinity:  # whose chains name them
            self.put(name, key, data(*endpoints))

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
    """Every service's piece, and the elements they make together.

    Two services may put in the same element: the value of the first one counts, until it takes it back."""

    def __init__(self, pods: str, family: int = 4) -> None:
        self.chains = Chains(family, pods)
        self._new: dict[ServiceKey, Piece] = {}  # what nobody was told of yet
        self._pieces: dict[ServiceKey, Piece] = {}
        self._elements: Elements = {name: {} for name in sets(family)}
        self._rivals: dict[Element, list[ServiceKey]] = {}  # who else puts in an element, beside the first
        self._shared: set[str] = set()

    def update(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> None:
        """Take the new ports of some services, () for gone."""
        self._new |= {key: piece(ports, self.chains) for key, ports in services.items()}

    def change(self) -> MapChange:
        """What the updates since the last answer (this one's or that of `everything`) change in the kernel."""
        change = MapChange()
        before: Elements = {name: {} for name in self._elements}  # of elements that may change: what they were
        for key, new in self._new.items():
            old = self._pieces.get(key, _NOTHING)
            for name in old.elements.keys() | new.elements.keys():
                self._exchange(key, name, old.elements.get(name, _EMPTY), new.elements.get(name, _EMPTY), before[name])
            if old.chains or new.chains:
                _change_chains(change, old, new)
            self._take(key, new)
        self._new = {}
        for name, earlier in before.items():
            for one, was in earlier.items():
                self._compare(name, one, was, change)
        self._need(change)
        for name in change.forgotten & change.remembered.keys():  # another time-out: the chains that use it go along
            change.chains |= {n: r for p in self._pieces.values() for n, r in p.chains.items() if name in p.remembered}
        return change

    def everything(self) -> MapChange:
        """All that is to be there, for an empty table."""
        for key, new in self._new.items():
            self._take(key, new)
        self._elements = {name: {} for name in self._elements}
        self._new, self._rivals, self._shared = {}, {}, set()
        change = MapChange()
        for key, made in self._pieces.items():
            for name, part in made.elements.items():
                self._enter(key, name, part)
            change.chains |= made.chains
            change.remembered |= made.remembered
        change.add = {name: self._spread(name, found) for name, found in self._elements.items() if found}
        self._need(change)
        return change

    def _take(self, key: ServiceKey, new: Piece) -> None:
        if new.elements:
            self._pieces[key] = new
        else:
            self._pieces.pop(key, None)

    def _exchange(self, key: ServiceKey, name: str, old: Mapping[bytes, Value], new: Mapping[bytes, Value],
                  before: dict[bytes, Value]) -> None:
        """A service puts something else into a set than it did."""
        elements = self._elements[name]
        gone = [one for one, value in old.items() if new.get(one, _ABSENT) != value]
        come = {one: value for one, value in new.items() if old.get(one, _ABSENT) != value}
        for one in (*gone, *come):
            before.setdefault(one, elements.get(one, _ABSENT))
        for one in gone:
            rivals = self._rivals.get((name, one))
            if not rivals:
                del elements[one]
                continue
            if key in rivals:
                rivals.remove(key)
            else:
                elements[one] = self._pieces[rivals.pop(0)].elements[name][one]
            if not rivals:
                del self._rivals[name, one]
        self._enter(key, name, come)

    def _enter(self, key: ServiceKey, name: str, new: Mapping[bytes, Value]) -> None:
        elements = self._elements[name]
        if elements.keys().isdisjoint(new):
            elements.update(new)
            return
        for one, value in new.items():
            if one in elements:
                self._rivals.setdefault((name, one), []).append(key)
            else:
                elements[one] = value

    def _compare(self, name: str, one: bytes, was: Value, change: MapChange) -> None:
        """What came of an element that may have changed."""
        now = self._elements[name].get(one, _ABSENT)
        if was == now:
            return
        old, new = (self._spread(name, {one: value} if value is not _ABSENT else {}) for value in (was, now))
        if gone := [key for key, value in old.items() if new.get(key, _ABSENT) != value]:
            change.remove.setdefault(name, []).extend(gone)
        if fresh := {key: value for key, value in new.items() if old.get(key, _ABSENT) != value}:
            change.add.setdefault(name, {}).update(fresh)

    def _spread(self, name: str, found: dict[bytes, Value]) -> dict[bytes, Value]:
        """Elements as the kernel has them: endpoints are one each, found by a number after their service's key."""
        if name not in NUMBERED:
            return found
        size = self.chains.size + 4
        return {key + index(number): ends[number * size:(number + 1) * size]
                for key, ends in found.items() if isinstance(ends, bytes) for number in range(len(ends) // size)}

    def _need(self, change: MapChange) -> None:
        """The shared chains that elements lead to, made when the first one does; they are few and stay."""
        due = [value for name in VERDICTS for value in set(change.add.get(name, _EMPTY).values())]
        while due:
            name = due.pop()
            if name not in self._shared and is_shared(name):
                due += leads_to(name)
                self._shared.add(name)
                change.chains[name] = self.chains.shared(name)


def _change_chains(change: MapChange, old: Piece, new: Piece) -> None:
    """The chains of a service's own, and the clients they remember."""
    change.chains |= {n: rules for n, rules in new.chains.items() if old.chains.get(n) != rules}
    change.dead |= old.chains.keys() - new.chains.keys()
    change.remembered |= {n: t for n, t in new.remembered.items() if old.remembered.get(n) != t}
    change.forgotten |= {n for n, t in old.remembered.items() if new.remembered.get(n) != t}
