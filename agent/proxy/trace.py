"""Follow one packet through rules in iptables-save syntax, along every branch that chance could take.

Pure. Owns the meaning of the matches and targets that our rules are made of; a rule of somebody else's with a match it
does not know is told of by `UnknownMatchError`, or with a trail noted there and passed over. The packet is the first of
a connection. `ends` goes the whole way: mangle and nat before routing, mangle and filter, nat after it.

Called by `pelamis trace` on a host's real rules, and by tests on generated ones.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Callable
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


@dataclass(frozen=True)
class End:
    """What may become of a new connection.

    `outcome`: `endpoint`, `endpoint masqueraded`, `pass`, `REJECT` or `DROP`; `at`: address and port it was on its way
    to by then; `by`: the chain and rule that refused it, when a trail was kept."""

    outcome: str
    at: str
    by: str = ""


def endpoint(address: str, port: int) -> str:
    """As DNAT writes it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


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


def _within(address: str, network: str) -> bool:
    """`network` as iptables-save prints it: with a length, or with a mask of any bits."""
    base, _, mask = network.partition("/")
    if mask and not mask.isdigit():
        return int(ipaddress.ip_address(address)) & int(ipaddress.ip_address(mask)) == int(ipaddress.ip_address(base))
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


def _in_span(port: int, span: str) -> bool:
    first, _, last = span.partition(":")
    return int(first) <= port <= int(last or first)


def _is_marked(mark: int, wanted: str) -> bool:
    value, mask = (int(part, 16) for part in wanted.split("/"))
    return mark & mask == value


_QUESTIONS: dict[str, Callable[[Packet, str], bool]] = {
    "-s": lambda packet, network: _within(packet.src, network),
    "-d": lambda packet, network: _within(packet.dst, network),
    "-p": lambda packet, protocol: packet.protocol == protocol,
    "--dport": lambda packet, span: _in_span(packet.dport, span),
    "--dst-type": lambda packet, _: packet.to_node,
    "--src-type": lambda packet, _: packet.from_node,
    "--mark": lambda packet, wanted: _is_marked(packet.mark, wanted),
    "--ctstate": lambda packet, states: bool({"NEW", *(["DNAT"] if packet.natted else [])} & set(states.split(","))),
}
_WITH_VALUE = ("-m", "--comment", "--name", "--nfacct-name", "--mode", "--probability", "--seconds", "--mask")
_ALONE = ("--set", "--reap", "--rsource", "--random-fully")
_UNSEEN = "--rcheck"  # asks for a client that was there before: the tracer's never was


def _matches(tokens: list[str], packet: Packet) -> tuple[bool, bool, int]:
    """(matches, by chance, where the target begins)"""
    chance, negate, rest = "--probability" in tokens, False, iter(enumerate(tokens))
    for at, token in rest:
        if token in ("-j", "-g"):
            return True, chance, at
        if token == _UNSEEN:
            break
        if token == "!" or token in _ALONE:
            negate = token == "!"
            continue
        _, value = next(rest, (at, ""))
        if token in _QUESTIONS:
            if _QUESTIONS[token](packet, value) == negate:
                break
            negate = False
        elif token not in _WITH_VALUE:
            raise UnknownMatchError(f"{token} in {' '.join(tokens)}")
    else:
        return True, chance, len(tokens)
    return False, chance, len(tokens)


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
            if matches:
                if trail is not None:
                    trail.append((chain, shlex.join(tokens), "by chance" if chance else ""))
                back, ended = _sent(chains, tokens[at + 1:], packet, trail)
                on |= back
                verdicts |= ended
        packets = on
    return packets, verdicts


def _sent(chains: dict[str, list[list[str]]], to: list[str], packet: Packet,
          trail: Trail | None) -> tuple[set[Packet], set[tuple[str, Packet]]]:
    """As `walk`, of what a rule's target makes of a packet. `to`: the target and its options."""
    target, *options = to or [""]
    if not target:
        return {packet}, set()
    if target == "MARK":
        value, mask = (int(part, 16) for part in options[1].split("/"))
        return {replace(packet, mark=(packet.mark & ~mask) ^ value)}, set()
    if target == "DNAT":
        return set(), {("DNAT", replace(packet, natted=options[1]))}
    if target in chains:
        back, ended = walk(chains, target, {packet}, trail)
        returned = {(verdict, one) for verdict, one in ended if verdict == "RETURN"}
        return back | {one for _, one in returned}, ended - returned
    return set(), {(target, packet)}


def outcomes(tables: Tables, packet: Packet, trail: Trail | None = None) -> set[str]:
    return {end.outcome for end in ends(tables, packet, trail)}


def ends(tables: Tables, packet: Packet, trail: Trail | None = None) -> set[End]:
    """Every end that chance could lead to."""
    first = "OUTPUT" if packet.from_node else "PREROUTING"
    back, ended = walk(tables.get("nat", {}), first, {packet}, trail)
    found: set[End] = set()
    for after in sorted(back | {p for _, p in ended}, key=lambda one: one.natted):
        moved = after
        if after.natted:
            address, _, port = after.natted.rpartition(":")
            to_node = address.strip("[]") in packet.node_addresses
            moved = replace(after, dst=address.strip("[]"), dport=int(port), to_node=to_node)
        at = endpoint(moved.dst, moved.dport)
        hook = "OUTPUT" if packet.from_node else "INPUT" if moved.to_node else "FORWARD"
        refused = _refusals(tables, hook, moved, trail)
        if packet.from_node and moved.to_node:
            refused |= _refusals(tables, "INPUT", moved, trail)
        if refused:
            found |= {End(verdict, at, by) for verdict, by in refused}
            continue
        masked = any(v == "MASQUERADE" for v, _ in walk(tables.get("nat", {}), "POSTROUTING", {moved}, trail)[1])
        found.add(End((after.natted or "pass") + (" masqueraded" if masked else ""), at))
    return found


def _refusals(tables: Tables, hook: str, packet: Packet, trail: Trail | None) -> set[tuple[str, str]]:
    """DROP or REJECT of the first table that refuses, with the last rule that matched."""
    for name in ("mangle", "filter"):
        ended = walk(tables.get(name, {}), hook, {packet}, trail)[1]
        refused = {verdict for verdict, _ in ended} - {"ACCEPT", "RETURN"}
        if refused:
            return {(verdict, "  ".join(trail[-1][:2]) if trail else "") for verdict in refused}
    return set()
