"""Follow one packet through rules in iptables-save syntax, along every branch that chance could take."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass, replace

Tables = dict[str, dict[str, list[list[str]]]]


@dataclass(frozen=True)
class Packet:
    src: str
    dst: str
    protocol: str = "tcp"
    dport: int = 80
    from_node: bool = False  # made by a process of this node
    to_node: bool = False  # the destination is one of this node's addresses
    mark: int = 0
    natted: str = ""


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
            fine = packet.dport == int(value)
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
            raise AssertionError(f"the tracer does not know {token} in {tokens}")
        at += 1
        if fine is not None and fine == negate:
            return False, chance, len(tokens)
        negate = False
    return True, chance, len(tokens)


def walk(chains: dict[str, list[list[str]]], chain: str, packets: set[Packet]) -> tuple[set[Packet], set[tuple]]:
    """(packets that come back from the chain, verdicts of the others)"""
    verdicts: set[tuple] = set()
    for tokens in chains.get(chain, []):
        on: set[Packet] = set()
        for packet in packets:
            matches, chance, at = _matches(tokens, packet)
            if not matches or chance:
                on.add(packet)
            if not matches:
                continue
            target, *options = tokens[at + 1:] or [""]
            if target == "MARK":
                value, mask = (int(x, 16) for x in options[1].split("/"))
                on.add(replace(packet, mark=(packet.mark & ~mask) ^ value))
            elif target == "RETURN":
                verdicts.add(("RETURN", packet))
            elif target in chains:
                back, ended = walk(chains, target, {packet})
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


def outcomes(tables: Tables, packet: Packet) -> set[str]:
    """What may become of a new connection: `endpoint`, `endpoint masqueraded`, `pass`, `REJECT` or `DROP`."""
    back, ended = walk(tables["nat"], "OUTPUT" if packet.from_node else "PREROUTING", {packet})
    found = set()
    for after in back | {p for _, p in ended}:
        moved = after
        if after.natted:
            address, _, port = after.natted.rpartition(":")
            moved = replace(after, dst=address, dport=int(port), to_node=False)
        hook = "OUTPUT" if packet.from_node else "INPUT" if moved.to_node else "FORWARD"
        verdict = {v for v, _ in walk(tables["filter"], hook, {moved})[1]} - {"ACCEPT", "RETURN"}
        sent = walk(tables["nat"], "POSTROUTING", {moved})[1]
        masked = any(v == "MASQUERADE" for v, _ in sent)
        found |= verdict or {(after.natted or "pass") + (" masqueraded" if masked else "")}
    return found
