"""Follow one packet through rules in iptables-save syntax, along every branch that chance could take.

Pure. Owns the meaning of the matches and targets that our rules are made of; a rule of somebody else's with a match it
does not know is told of by `UnknownMatchError`, or with a trail noted there and passed over. The packet is the first of
a connection. `outcomes` goes the whole way: mangle and nat before routing, mangle and filter, nat after it.

Called by `pelamis trace` on a host's real rules, and by tests on generated ones.
"""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass, replace

Trail = list[tuple[str, str, str]]  # chain, rule, what it did to the packet
Tables = dict[str, dict[str, list[list[str]]]]


class UnknownMatchError(ValueError):
    """A rule with a match that this tracer does not know."""


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, as it is on its way."""

    src: str
    dst: str
    protocol: str = "tcp"
    dport: int = 80
    from_node: bool = False  # made by a process of this node
    to_node: bool = False  # the destination is one of this node's addresses
    mark: int = 0
    natted: str = ""
    node_addresses: frozenset[str] = frozenset()


def parse(text: str) -> Tables:
    tables: Tables = {}
    chains: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            chains[line[1:].split()[0]] = []
        elif line.startswith("-A "):
            _, chain, *tokens = shlex.split(line)
            chains.setdefault(chain, []).append(tokens)
        elif line.startswith("-I "):
            _, chain, _, *tokens = shlex.split(line)
            chains.setdefault(chain, []).insert(0, tokens)
    return tables


def _matches(tokens: list[str], packet: Packet) -> tuple[bool, bool, int]:
    """(matches, by chance, where the target begins)"""
    negate = chance = False
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token in ("-j", "-g"):
            return True, chance, at
        at += 1
        if token == "!":
            negate = True
            continue
        value = tokens[at] if at < len(tokens) else ""
        fine: bool | None = None
        if token in ("-s", "-d"):
            fine = ipaddress.ip_address(packet.src if token == "-s" else packet.dst) in ipaddress.ip_network(value)
        elif token == "-p":
            fine = packet.protocol == value
        elif token == "--dport":
            first, _, last = value.partition(":")
            fine = int(first) <= packet.dport <= int(last or first)
        elif token == "--dst-type":
            fine = packet.to_node
        elif token == "--src-type":
            fine = packet.from_node
        elif token == "--mark":
            wanted, mask = (int(x, 16) for x in value.split("/"))
            fine = packet.mark & mask == wanted
        elif token == "--ctstate":
            fine = bool({"NEW", *(["DNAT"] if packet.natted else [])} & set(value.split(",")))
        elif token == "--rcheck":
            fine = False  # a client not seen before
            at -= 1
        elif token == "--probability":
            chance = True
        elif token in ("--set", "--reap", "--rsource", "--random-fully"):
            at -= 1
        elif token not in ("-m", "--comment", "--name", "--nfacct-name", "--mode", "--seconds", "--mask"):
            raise UnknownMatchError(f"{token} in {' '.join(tokens)}")
        at += 1
        if fine is not None and fine == negate:
            return False, chance, len(tokens)
        negate = False
    return True, chance, len(tokens)


def walk(chains: dict[str, list[list[str]]], chain: str, packets: set[Packet],
         trail: Trail | None = None) -> tuple[set[Packet], set[tuple[str, Packet]]]:
    """(packets that come back from the chain, verdicts of the others). `trail` gets each rule that matches."""
    verdicts: set[tuple[str, Packet]] = set()
    for tokens in chains.get(chain, []):
        on: set[Packet] = set()
        for packet in packets:
            try:
                matches, chance, at = _matches(tokens, packet)
            except UnknownMatchError:
                if trail is None:
                    raise
                matches, chance, at = False, False, 0
                trail.append((chain, " ".join(tokens), "not understood, passed over"))
            if not matches or chance:
                on.add(packet)
            if not matches:
                continue
            target, *options = tokens[at + 1:] or [""]
            if trail is not None:
                trail.append((chain, shlex.join(tokens), "by chance" if chance else ""))
            if target == "MARK":
                value, mask = (int(x, 16) for x in options[1].split("/"))
                on.add(replace(packet, mark=(packet.mark & ~mask) ^ value))
            elif target == "RETURN":
                verdicts.add(("RETURN", packet))
            elif target in chains:
                back, ended = walk(chains, target, {packet}, trail)
                on |= back
                on |= {p for v, p in ended if v == "RETURN"}
                verdicts |= {(v, p) for v, p in ended if v != "RETURN"}
            elif target == "DNAT":
                verdicts.add(("DNAT", replace(packet, natted=options[1])))
            elif target:
                verdicts.add((target, packet))
            else:
                on.add(packet)
        packets = on
    return packets, verdicts


def outcomes(tables: Tables, packet: Packet, trail: Trail | None = None) -> set[str]:
    """What may become of a new connection: `endpoint`, `endpoint masqueraded`, `pass`, `REJECT` or `DROP`."""
    first = "OUTPUT" if packet.from_node else "PREROUTING"
    back, ended = walk(tables.get("nat", {}), first, {packet}, trail)
    found: set[str] = set()
    for after in back | {p for _, p in ended}:
        moved = after
        if after.natted:
            address, _, port = after.natted.rpartition(":")
            to_node = address in packet.node_addresses
            moved = replace(after, dst=address.strip("[]"), dport=int(port), to_node=to_node)
        hook = "OUTPUT" if packet.from_node else "INPUT" if moved.to_node else "FORWARD"
        verdict = _verdicts(tables, ("mangle", "filter"), hook, moved, trail)
        if packet.from_node and moved.to_node:
            verdict |= _verdicts(tables, ("mangle", "filter"), "INPUT", moved, trail)
        if verdict:
            found |= verdict
            continue
        masked = any(v == "MASQUERADE" for v, _ in walk(tables.get("nat", {}), "POSTROUTING", {moved}, trail)[1])
        found.add((after.natted or "pass") + (" masqueraded" if masked else ""))
    return found


def _verdicts(tables: Tables, names: tuple[str, ...], hook: str, packet: Packet, trail: Trail | None) -> set[str]:
    """DROP or REJECT of the tables passed in this order."""
    for name in names:
        ended = walk(tables.get(name, {}), hook, {packet}, trail)[1]
        refused = {verdict for verdict, _ in ended} - {"ACCEPT", "RETURN"}
        if refused:
            return refused
    return set()
