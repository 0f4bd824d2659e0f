"""The chains of the nf_tables table: the few every packet may pass, and the shapes services share.

Pure. Owns what the chains do. A service has no chain of its own: a map leads from its address to the chain for its
number of endpoints (`lb-5`), which picks one by chance and looks it up in a map. So the number of chains does not grow
with the number of services. The name of a shared chain says its whole content, and `shared` makes it from the name:

    lb-N, lb-local-N            one of N endpoints of the address; of those on this node
    np-N, np-local-N            the same for a node port
    ext-lb-N, ext-np-N          from outside: masquerade, then as above
    split-lb-N-M, split-np-N-M  policy Local: pods and this node to all N, others to the M here
    split-K                     the same for affinity, where K names the chains of one service port

Called by `maps` and `nftables`.
"""

from __future__ import annotations

import ipaddress
import struct

from netsetup import nftexpr as nft
from netsetup.nftables import INDEX, IPV4, IPV6, PORT, PROTOCOL, Hook, Set

TABLE = "pelamis-proxy"
MARK = 0x4000
REJECT = "reject"
PORTS = {"tcp": 6, "udp": 17, "sctp": 132}
Rules = tuple[bytes, ...]
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
BASE: dict[str, Hook] = {
    "firewall-prerouting": Hook("filter", PREROUTING, -110), "firewall-output": Hook("filter", OUTPUT, -110),
    "nat-prerouting": Hook("nat", PREROUTING, -100), "nat-output": Hook("nat", OUTPUT, -100),
    "nat-postrouting": Hook("nat", POSTROUTING, 100), "filter-input": Hook("filter", INPUT, 0),
    "filter-forward": Hook("filter", FORWARD, 0), "filter-output": Hook("filter", OUTPUT, 0),
}


def sets(family: int) -> dict[str, Set]:
    """Every set and map that is always there."""
    address = IPV6 if family == 6 else IPV4
    target, node = (address, PROTOCOL, PORT), (PROTOCOL, PORT)
    end = (address, PORT)
    return {
        "cluster-ips": Set((address,)), "hairpin": Set((address, address, PROTOCOL, PORT)),
        "services": Set(target, verdicts=True), "node-ports": Set(node, verdicts=True),
        "refused": Set(target, verdicts=True), "refused-node-ports": Set(node, verdicts=True),
        "firewall": Set(target, verdicts=True),
        "endpoints": Set((*target, INDEX), end), "local-endpoints": Set((*target, INDEX), end),
        "node-port-endpoints": Set((*node, INDEX), end), "node-port-local-endpoints": Set((*node, INDEX), end),
    }


class Chains:
    """For one family. `pods`: the range whose traffic is not masqueraded."""

    def __init__(self, family: int, pods: str) -> None:
        self.family, self._pods = family, ipaddress.ip_network(pods)
        self.size = 16 if family == 6 else 4

    # -- pieces of rules ------------------------------------------------------------------------------------------

    def source(self, register: int = nft.REG) -> bytes:
        return nft.address(nft.SOURCE, self.size, register)

    def destination(self, register: int = nft.REG) -> bytes:
        return nft.address(nft.DESTINATION, self.size, register)

    def _within(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network, how: int) -> bytes:
        return (nft.bitwise(nft.REG, network.netmask.packed, bytes(self.size))
                + nft.compare(how, nft.REG, network.network_address.packed))

    def _port(self, register: int) -> bytes:
        return nft.meta(nft.L4PROTO, register) + nft.payload(nft.TRANSPORT, 2, 2, register + 1)

    def _target(self) -> tuple[bytes, int]:
        """Address, protocol and port; the register after them."""
        after = nft.REG + self.size // 4
        return self.destination() + self._port(after), after + 2

    def _mark(self) -> bytes:
        keep, flip = struct.pack("=I", 0xFFFFFFFF & ~MARK), struct.pack("=I", MARK)
        return nft.meta(nft.MARK, nft.REG) + nft.bitwise(nft.REG, keep, flip) + nft.set_mark(nft.REG)

    def _is(self, expression: bytes, value: int) -> bytes:
        return expression + nft.compare(nft.EQUAL, nft.REG, struct.pack("=I", value))

    def _bits(self, expression: bytes, mask: int, how: int = nft.UNEQUAL) -> bytes:
        """Whether any bit of `mask` is set (or with EQUAL: none)."""
        return (expression + nft.bitwise(nft.REG, struct.pack("=I", mask), bytes(4))
                + nft.compare(how, nft.REG, bytes(4)))

    # -- chains ---------------------------------------------------------------------------------------------------

    def base(self) -> dict[str, Rules]:
        """The chains that are always there."""
        new = self._bits(nft.ct(nft.CT_STATE, nft.REG), nft.NEW)
        target, _ = self._target()
        to_node = self._is(nft.fib_type(nft.DESTINATION, nft.REG), nft.RTN_LOCAL)
        firewall = (new + target + nft.lookup("firewall", nft.REG, 0),)
        refused = new + target + nft.lookup("refused", nft.REG, 0)
        stray = new + self.destination() + nft.lookup("cluster-ips", nft.REG) + nft.decide(nft.GOTO, REJECT)
        jump = (nft.decide(nft.JUMP, "services"),)
        return {
            REJECT: (self._is_protocol("tcp") + nft.reset(), nft.reject(self.family)),
            "services": (
                self.destination() + nft.lookup("cluster-ips", nft.REG) + self.source()
                + self._within(self._pods, nft.UNEQUAL) + self._mark(),
                target + nft.lookup("services", nft.REG, 0),
                to_node + self._port(nft.REG) + nft.lookup("node-ports", nft.REG, 0)),
            "firewall-prerouting": firewall, "firewall-output": firewall,
            "nat-prerouting": jump, "nat-output": jump, "nat-postrouting": self._postrouting(),
            "filter-input": (*self._martians(), new + to_node + self._port(nft.REG)
                             + nft.lookup("refused-node-ports", nft.REG, 0), refused),
            "filter-forward": (self._bits(nft.ct(nft.CT_STATE, nft.REG), nft.INVALID) + nft.decide(nft.DROP),
                               refused, stray),
            "filter-output": (new + to_node + self._port(nft.REG) + nft.lookup("refused-node-ports", nft.REG, 0),
                              refused, stray),
        }

    def _is_protocol(self, name: str) -> bytes:
        return nft.meta(nft.L4PROTO, nft.REG) + nft.compare(nft.EQUAL, nft.REG, bytes([PORTS[name]]))

    def _postrouting(self) -> Rules:
        words = self.size // 4
        return (
            self._bits(nft.ct(nft.CT_STATUS, nft.REG), nft.DST_NAT) + self.source()
            + self.destination(nft.REG + words) + self._port(nft.REG + 2 * words) + nft.lookup("hairpin", nft.REG)
            + nft.masquerade(),
            self._bits(nft.meta(nft.MARK, nft.REG), MARK, nft.EQUAL) + nft.decide(nft.RETURN),
            nft.meta(nft.MARK, nft.REG) + nft.bitwise(nft.REG, b"\xff" * 4, struct.pack("=I", MARK))
            + nft.set_mark(nft.REG) + nft.masquerade())

    def _martians(self) -> Rules:
        """Node ports answer on 127.0.0.1, for which the kernel routes it; nobody outside may use that."""
        if self.family == 6:
            return ()
        loopback = ipaddress.ip_network("127.0.0.0/8")
        return (self.source() + self._within(loopback, nft.UNEQUAL) + self.destination()
                + self._within(loopback, nft.EQUAL)
                + self._bits(nft.ct(nft.CT_STATE, nft.REG), nft.ESTABLISHED | nft.RELATED, nft.EQUAL)
                + self._bits(nft.ct(nft.CT_STATUS, nft.REG), nft.DST_NAT, nft.EQUAL) + nft.decide(nft.DROP),)

    def shared(self, name: str) -> Rules:
        """The rules of a shared chain, by its name."""
        kind, *rest = name.split("-")
        if kind == "ext":
            return self._mark(), nft.decide(nft.GOTO, "-".join(rest))
        if kind == "split":
            return self._split(*rest)
        return (self._balance(kind == "np", rest[0] == "local", int(rest[-1])),)

    def _split(self, kind: str, everything: str, here: str) -> Rules:
        local = self._is(nft.fib_type(nft.SOURCE, nft.REG), nft.RTN_LOCAL)
        whole = nft.decide(nft.GOTO, f"{kind}-{everything}")
        found = (self.source() + self._within(self._pods, nft.EQUAL) + whole, local + self._mark(), local + whole)
        return (*found, nft.decide(nft.GOTO, f"{kind}-local-{here}")) if here != "0" else found

    def _balance(self, node_port: bool, local: bool, count: int) -> bytes:
        key, register = (self._port(nft.REG), nft.REG + 2) if node_port else self._target()
        name = ("node-port-" if node_port else "") + ("local-endpoints" if local else "endpoints")
        return (key + nft.random_below(count, register) + nft.lookup(name, nft.REG, nft.REG)
                + nft.dnat(self.family, nft.REG, nft.REG + self.size // 4))

    # -- chains of one service port -------------------------------------------------------------------------------

    def affinity(self, ends: list[str]) -> Rules:
        """Back to the endpoint a client had (`ends`: its chains and sets), else to any."""
        known = [self.source() + nft.lookup(f"had-{end}", nft.REG) + nft.decide(nft.GOTO, f"end-{end}") for end in ends]
        some = [self._is(nft.random_below(len(ends) - index, nft.REG), 0) + nft.decide(nft.GOTO, f"end-{end}")
                for index, end in enumerate(ends[:-1])]
        return (*known, *some, nft.decide(nft.GOTO, f"end-{ends[-1]}"))

    def end(self, end: str, address: bytes, port: int) -> Rules:
        """Remember the client, then go to the endpoint."""
        after = nft.REG + self.size // 4
        return (self.source() + nft.remember(f"had-{end}", nft.REG),
                nft.meta(nft.L4PROTO, after + 1) + nft.immediate(nft.REG, address)
                + nft.immediate(after, struct.pack(">H", port)) + nft.dnat(self.family, nft.REG, after))

    def allowed(self, ranges: tuple[str, ...]) -> Rules:
        """Only these sources go on."""
        return (*(self.source() + self._within(ipaddress.ip_network(r), nft.EQUAL) + nft.decide(nft.ACCEPT)
                  for r in ranges), nft.decide(nft.DROP))
