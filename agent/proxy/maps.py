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
from netsetup.nftables import Value
from netsetup.rtnetlink import packed

Element = tuple[str, bytes]  # set, key
Elements = dict[str, dict[bytes, Value]]  # of each set
DROP = ""
BALANCING, LEADING = ("lb", "np"), ("ext", "split")  # the first words of shared chains
VERDICTS = [name for name, spec in sets(4).items() if spec.verdicts]  # the sets whose elements lead to chains


@dataclass(slots=True)
class Piece:
    """What one service adds. `remembered`: sets of clients, with their time-out in seconds."""

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
        if self.port.affinity or not endpoints:
            return  # its chains name them
        elements = self.piece.elements.setdefault(name, {})
        for number, endpoint in enumerate(endpoints):
            elements[key + index(number)] = data(endpoint)

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
        self._held: dict[str, dict[bytes, ServiceKey]] = {name: {} for name in sets(family)}  # whose value counts
        self._holders: dict[Element, list[ServiceKey]] = {}  # of elements that several services put in
        self._shared: set[str] = set()

    def update(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> MapChange:
        """Take the new ports of some services (() for gone) and tell what that changes in the kernel."""
        change = MapChange()
        before: Elements = {}  # of elements that were there before, or have several services: what it was
        for key, ports in services.items():
            old, new = self._pieces.get(key, _NOTHING), piece(ports, self.chains)
            for name, part in old.elements.items():
                self._leave(key, name, part, new.elements.get(name, _EMPTY), before)
            if ports:
                self._pieces[key] = new
            else:
                self._pieces.pop(key, None)
            for name, part in new.elements.items():
                self._enter(key, name, part, old.elements.get(name, _EMPTY), before, change.add)
            if old.chains or new.chains:
                _change_chains(change, old, new)
        for name, earlier in before.items():
            self._compare(name, earlier, change)
        for value in {value for name in VERDICTS for value in change.add.get(name, _EMPTY).values()}:
            self._need(value, change)
        for name in change.forgotten & change.remembered.keys():  # another time-out: the chains that use it go along
            change.chains |= {n: r for p in self._pieces.values() for n, r in p.chains.items() if name in p.remembered}
        return change

    def everything(self) -> MapChange:
        """All that is to be there, for an empty table."""
        change = MapChange()
        for name in self._shared:
            change.chains[name] = self.chains.shared(name)
        for made in self._pieces.values():
            for name, part in made.elements.items():
                change.add.setdefault(name, {}).update(part)
            change.chains |= made.chains
            change.remembered |= made.remembered
        for name, one in self._holders:
            change.add[name][one] = self._value(name, one)
        return change

    def _value(self, name: str, one: bytes) -> Value:
        holder = self._held[name].get(one)
        return _ABSENT if holder is None else self._pieces[holder].elements[name][one]

    def _leave(self, key: ServiceKey, name: str, old: Mapping[bytes, Value], new: Mapping[bytes, Value],
               before: Elements) -> None:
        """What a service no longer puts into a set."""
        for one in [one for one, value in old.items() if new.get(one, _ABSENT) != value]:
            before.setdefault(name, {}).setdefault(one, self._value(name, one))
            holders = self._holders.get((name, one))
            if holders is None:
                del self._held[name][one]
                continue
            holders.remove(key)
            self._held[name][one] = holders[0]
            if len(holders) == 1:
                del self._holders[name, one]

    def _enter(self, key: ServiceKey, name: str, new: Mapping[bytes, Value], old: Mapping[bytes, Value],
               before: Elements, added: Elements) -> None:
        """What a service puts into a set that it did not before. Some may be another's as well, or were until now."""
        held, fresh = self._held[name], new
        if old:
            fresh = {one: value for one, value in new.items() if old.get(one, _ABSENT) != value}
            if not fresh:
                return
        if name not in before and held.keys().isdisjoint(fresh):
            held.update(dict.fromkeys(fresh, key))
            added.setdefault(name, {}).update(fresh)
            return
        earlier = before.setdefault(name, {})
        for one in fresh:
            first = held.setdefault(one, key)
            if first is key:
                earlier.setdefault(one, _ABSENT)
                continue
            is_new = added.get(name, {}).pop(one, _ABSENT) is not _ABSENT
            earlier.setdefault(one, _ABSENT if is_new else self._value(name, one))
            self._holders.setdefault((name, one), [first]).append(key)

    def _compare(self, name: str, before: Mapping[bytes, Value], change: MapChange) -> None:
        """What came of the elements of one set for which it was not plain."""
        for one, was in before.items():
            now = self._value(name, one)
            if was == now:
                continue
            if was is not _ABSENT:
                change.remove.setdefault(name, []).append(one)
            if now is not _ABSENT:
                change.add.setdefault(name, {})[one] = now

    def _need(self, value: Value, change: MapChange) -> None:
        """The shared chains an element leads to, made when the first one does; they are few and stay."""
        if not isinstance(value, str) or value in self._shared or not is_shared(value):
            return
        for name in leads_to(value):
            self._need(name, change)
        self._shared.add(value)
        change.chains[value] = self.chains.shared(value)


def _change_chains(change: MapChange, old: Piece, new: Piece) -> None:
    """The chains of a service's own, and the clients they remember."""
    change.chains |= {n: rules for n, rules in new.chains.items() if old.chains.get(n) != rules}
    change.dead |= old.chains.keys() - new.chains.keys()
    change.remembered |= {n: t for n, t in new.remembered.items() if old.remembered.get(n) != t}
    change.forgotten |= {n for n, t in old.remembered.items() if new.remembered.get(n) != t}
