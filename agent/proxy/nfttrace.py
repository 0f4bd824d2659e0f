"""Follow one packet through the nf_tables table, along every branch that chance could take.

Pure. Owns the meaning of the expressions that our chains are made of: a small machine with registers, which runs rules
in the kernel's own encoding on the elements of the maps. The packet is the first of a connection, of a client not seen
before. `trace` does the same for rules in iptables-save syntax; both give the same outcomes.

Called by `pelamis trace` on a host's real table, and by tests on generated ones.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from agent.proxy.nftchains import BASE, MARK, PORTS
from agent.proxy.trace import Packet, Trail
from netsetup import nftexpr as nft
from netsetup.nftables import Hook, Value
from netsetup.rtnetlink import attributes, packed

FIRST = 8  # register
Tables = Mapping[str, Mapping[bytes, Value]]


@dataclass(slots=True)
class State:
    """A packet on its way through one rule."""

    packet: Packet
    registers: bytearray = field(default_factory=lambda: bytearray(64))

    def get(self, register: int, length: int) -> bytes:
        at = _place(register)
        return bytes(self.registers[at:at + length])

    def put(self, register: int, value: bytes) -> None:
        at = _place(register)
        padded = value + bytes(-len(value) & 3)
        self.registers[at:at + len(padded)] = padded


def _place(register: int) -> int:
    """Where a register begins. The kernel calls those of sixteen bytes 1 to 4, which hold four of ours each."""
    return (register - 1) * 16 if register < FIRST else (register - FIRST) * 4


def expressions(rule: bytes) -> Iterator[tuple[str, dict[int, bytes]]]:
    """(name, attributes) of each expression of a rule."""
    at = 0
    while at + 4 <= len(rule):
        length, _ = struct.unpack_from("=HH", rule, at)
        parts = attributes(rule[at + 4:at + length], 0)
        yield parts[1].rstrip(b"\0").decode(), attributes(parts.get(2, b""), 0)
        at += (length + 3) & ~3


def _number(raw: bytes) -> int:
    return int(struct.unpack(">I", raw)[0])


_CODES = {nft.JUMP: "JUMP", nft.GOTO: "GOTO", nft.RETURN: "RETURN", nft.DROP: "DROP", nft.ACCEPT: "ACCEPT"}


def _verdict(data: bytes) -> tuple[str, str]:
    parts = attributes(data, 0)
    return _CODES[struct.unpack(">i", parts[1])[0]], parts.get(2, b"").rstrip(b"\0").decode()


def _field(packet: Packet, base: int, offset: int) -> bytes:
    """What a rule reads of a packet's head: its addresses and the port it is for."""
    if base == nft.TRANSPORT:
        return struct.pack(">H", packet.dport)
    return packed(packet.src if offset in (8, 12) else packet.dst)


@dataclass(frozen=True, slots=True)
class Table:
    """Chains with their rules, and sets with their elements, as the kernel or a planner has them."""

    chains: Mapping[str, tuple[bytes, ...]]
    sets: Tables

    def outcomes(self, packet: Packet, trail: Trail | None = None) -> set[str]:
        """As `trace.outcomes`: `endpoint`, `endpoint masqueraded`, `pass`, `REJECT` or `DROP`."""
        hook = 3 if packet.from_node else 0
        found: set[str] = set()
        for verdict, after in self._hooks("filter", hook, -110, packet, trail):
            if verdict in ("DROP", "REJECT"):
                found.add(verdict)
                continue
            for _, moved in self._hooks("nat", hook, -100, after, trail):
                found |= self._after(moved, trail)
        return found

    def _after(self, packet: Packet, trail: Trail | None) -> set[str]:
        moved = packet
        if packet.natted:
            address, _, port = packet.natted.rpartition(":")
            moved = replace(packet, dst=address.strip("[]"), dport=int(port),
                            to_node=address.strip("[]") in packet.node_addresses)
        ways = [3] if moved.from_node else [1] if moved.to_node else [2]
        if moved.from_node and moved.to_node:
            ways.append(1)
        for way in ways:
            refused = {v for v, _ in self._hooks("filter", way, 0, moved, trail)} & {"DROP", "REJECT"}
            if refused:
                return refused
        masked = any(v == "MASQUERADE" for v, _ in self._hooks("nat", 4, 100, moved, trail))
        return {(packet.natted or "pass") + (" masqueraded" if masked else "")}

    def _hooks(self, kind: str, hook: int, priority: int, packet: Packet, trail: Trail | None) -> set[
            tuple[str, Packet]]:
        found = {("ACCEPT", packet)}
        for name, base in BASE.items():
            if base == Hook(kind, hook, priority):
                found = {end for _, one in found for end in self.walk(name, one, trail)}
        return {(verdict if verdict != "RETURN" else "ACCEPT", one) for verdict, one in found}

    def walk(self, chain: str, packet: Packet, trail: Trail | None = None) -> set[tuple[str, Packet]]:
        """What may become of the packet: (`RETURN` when it comes back, or another verdict, the packet then)."""
        here: set[Packet] = {packet}
        ended: set[tuple[str, Packet]] = set()
        for number, rule in enumerate(self.chains.get(chain, ())):
            on: set[Packet] = set()
            for one in here:
                for verdict, after in self._rule(list(expressions(rule)), State(one), trail, f"{chain} {number + 1}"):
                    if verdict:
                        ended.add((verdict, after))
                    else:
                        on.add(after)
            here = on
        return ended | {("RETURN", one) for one in here}

    def _rule(self, left: list[tuple[str, dict[int, bytes]]], state: State, trail: Trail | None,
              where: str) -> list[tuple[str, Packet]]:
        """Run the rest of a rule; "" as the verdict means: go on with the next rule."""
        for index, (name, given) in enumerate(left):
            if name == "numgen":
                found = []
                for value in range(_number(given[2])):
                    other = State(state.packet, bytearray(state.registers))
                    other.put(_number(given[1]), struct.pack("=I", value))
                    found += self._rule(left[index + 1:], other, trail, where)
                return found
            if name == "lookup":
                known, verdict = self._lookup(given, state)
                if not known:
                    return [("", state.packet)]
                if verdict:
                    return self._decide(verdict, state, trail, where)
            elif name == "immediate" and _number(given[1]) == 0:
                return self._decide(_verdict(attributes(given[2], 0)[2]), state, trail, where)
            elif name in ("nat", "masq", "reject"):
                return self._end(name, given, state, trail, where)
            elif not self._step(name, given, state):
                return [("", state.packet)]
        return [("", state.packet)]

    def _lookup(self, given: dict[int, bytes], state: State) -> tuple[bool, tuple[str, str] | None]:
        """Whether the set has the key, and the verdict when it is a map to verdicts."""
        elements = self.sets.get(given[1].rstrip(b"\0").decode(), {})
        length = next((len(key) for key in elements), 0)
        key = state.get(_number(given[2]), length)
        if not elements or key not in elements:
            return False, None
        value = elements[key]
        if isinstance(value, str):
            return True, ("GOTO", value) if value else ("DROP", "")
        if value is not None:
            state.put(_number(given[3]), value)
        return True, None

    def _decide(self, verdict: tuple[str, str], state: State, trail: Trail | None,
                where: str) -> list[tuple[str, Packet]]:
        kind, chain = verdict
        if trail is not None:
            trail.append((where, f"{kind.lower()} {chain}".strip(), ""))
        if kind not in ("GOTO", "JUMP"):
            return [(kind, state.packet)]
        ends = self.walk(chain, state.packet, trail)
        back = "RETURN" if kind == "GOTO" else ""  # who was sent on does not come back here
        return [(back if v == "RETURN" else v, p) for v, p in ends]

    def _end(self, name: str, given: dict[int, bytes], state: State, trail: Trail | None,
             where: str) -> list[tuple[str, Packet]]:
        packet, verdict = state.packet, {"masq": "MASQUERADE", "reject": "REJECT"}.get(name, "DNAT")
        if name == "nat":
            size = 16 if _number(given[2]) == 10 else 4
            address = ipaddress.ip_address(state.get(_number(given[3]), size))
            port = struct.unpack(">H", state.get(_number(given[5]), 2))[0]
            packet = replace(packet, natted=f"[{address}]:{port}" if size == 16 else f"{address}:{port}")
        if trail is not None:
            trail.append((where, f"{verdict.lower()} {packet.natted if name == 'nat' else ''}".strip(), ""))
        return [(verdict, packet)]

    def _step(self, name: str, given: dict[int, bytes], state: State) -> bool:
        """One expression without a verdict; False when it does not match."""
        packet = state.packet
        if name == "payload":
            state.put(_number(given[1]), _field(packet, _number(given[2]), _number(given[3])))
        elif name == "meta" and 3 in given:
            state.packet = replace(packet, mark=struct.unpack("=I", state.get(_number(given[3]), 4))[0] & MARK)
        elif name == "meta":
            mark = _number(given[2]) == nft.MARK
            state.put(_number(given[1]), struct.pack("=I", packet.mark) if mark else bytes([PORTS[packet.protocol]]))
        elif name == "ct":
            status = _number(given[2]) == nft.CT_STATUS
            held = nft.NEW if not status else nft.DST_NAT if packet.natted else 0
            state.put(_number(given[1]), struct.pack("=I", held))
        elif name == "fib":
            own = packet.from_node if _number(given[3]) == nft.SOURCE else packet.to_node
            state.put(_number(given[1]), struct.pack("=I", nft.RTN_LOCAL if own else 1))
        elif name == "bitwise":
            size = _number(given[3])
            mask, flip = (attributes(given[at], 0)[1] for at in (4, 5))
            value = state.get(_number(given[1]), size)
            state.put(_number(given[2]), bytes((v & m) ^ x for v, m, x in zip(value, mask, flip)))
        elif name == "cmp":
            wanted = attributes(given[3], 0)[1]
            return (state.get(_number(given[1]), len(wanted)) == wanted) == (_number(given[2]) == nft.EQUAL)
        elif name == "immediate":
            state.put(_number(given[1]), attributes(given[2], 0)[1])
        return True
