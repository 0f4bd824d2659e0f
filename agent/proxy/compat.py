"""iptables rules as the nf_tables variant of iptables keeps them in the kernel.

Pure. Owns the translation of those forms of rules that are written by the ten thousand: what leads to a service, and
to its endpoints. `knows` tells whether a rule has one of them; the others go by iptables-restore. Sent by ourselves,
a chain needs no process, and the comment is kept beside the rule, where `iptables-save` and `nft list` print it alike
but the kernel need not pass it each time it checks the table: for one changed endpoint among 10,000 services both
together save a quarter of the time. What an installed iptables makes of it can be tried with `specimens`.

Called by `iptables`. Source: what iptables-nft 1.8.9 sends; linux/netfilter/xt_statistic.h, xt_mark.h and nf_nat.h.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from functools import lru_cache

from agent.proxy.nftchains import PORTS
from netsetup import nftexpr as nft
from netsetup.nftables import Rule
from netsetup.rtnetlink import attribute, packed

REG = 1  # the register that iptables uses; of 16 bytes
_FORM = re.compile(
    r'(?:(! )?-s (\S+) )?(?:-d (\S+) )?(?:-p (tcp|udp|sctp) )?(?:-m (?:tcp|udp) --dport (\d+) )?'
    r'(?:-m statistic --mode random --probability (\S+) )?(?:-m comment --comment "([^"\\]*)" )?'
    r'-j (?:(KUBE-\S+)|DNAT --to-destination (\S+)|MARK --set-xmark (\S+)/(\S+))')
_COUNTER = nft.expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))
_MAP_ADDRESS_AND_PORT = 3  # NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED
COMMENT_BYTES = 254  # a longer one has no room beside a rule


def specimens(family: int, target: str) -> tuple[str, ...]:
    """A rule of each form, as iptables-save prints it; some lead to the chain `target`."""
    one, some, end = (("fd00::1/128", "fd00::/64", "[fd00::1]:80") if family == 6 else
                      ("10.0.0.1/32", "10.0.0.0/12", "10.0.0.1:80"))
    low = "::3/::3" if family == 6 else "0.0.0.3/0.0.0.3"
    return (f'-d {one} -p tcp -m tcp --dport 80 -m comment --comment "some words" -j {target}',
            f"-d {low} -j {target}", f"! -s {some} -j {target}", f"-s {one} -j {target}",
            f"-p udp -m udp --dport 53 -j {target}",
            f"-p udp -m statistic --mode random --probability 0.33333333349 -j DNAT --to-destination {end}",
            f"-p sctp -j DNAT --to-destination {end}", "-j MARK --set-xmark 0x0/0x4000")


def knows(rule: str) -> bool:
    found = _FORM.fullmatch(rule)
    return found is not None and len(found[7] or "") <= COMMENT_BYTES


def rule(text: str) -> Rule:
    """What the kernel takes. `text`: a rule that `knows` knows, without its chain."""
    found = _FORM.fullmatch(text)
    assert found is not None, text
    inverted, source, destination, protocol, port, chance, comment, chain, end, value, mask = found.groups()
    parts = []
    if source:
        parts.append(_address(nft.SOURCE, source, nft.UNEQUAL if inverted else nft.EQUAL))
    if destination:
        parts.append(_address(nft.DESTINATION, destination, nft.EQUAL))
    if protocol:
        parts.append(_protocol(protocol))
    if port:
        parts.append(_port(int(port)))
    if chance:
        parts.append(_chance(chance))
    parts.append(_COUNTER)
    if chain:
        parts.append(nft.decide(nft.JUMP, chain))
    elif end:
        parts.append(_dnat(end))
    else:
        parts.append(_wrapped("target", "MARK", struct.pack("=II", int(value, 0), int(mask, 0)), 2))
    return Rule(b"".join(parts), PORTS[protocol] if end else 0, comment or "")


def _wrapped(kind: str, name: str, value: bytes, revision: int) -> bytes:
    """An xtables match or target."""
    return nft.expression(kind, attribute(1, name), nft.number(2, revision), attribute(3, value))


def _address(whose: int, text: str, how: int) -> bytes:
    address, _, prefix = text.partition("/")
    value = packed(address)
    size = len(value)
    load = nft.address(whose, size, REG)
    if prefix != str(8 * size):
        mask = ipaddress.ip_network(f"{'::' if size == 16 else '0.0.0.0'}/{prefix}").netmask.packed \
            if prefix.isdigit() else packed(prefix)
        load += nft.bitwise(REG, mask, bytes(size))
    return load + nft.compare(how, REG, value)


@lru_cache(maxsize=8)
def _protocol(name: str) -> bytes:
    return nft.meta(nft.L4PROTO, REG) + nft.compare(nft.EQUAL, REG, bytes([PORTS[name]]))


@lru_cache(maxsize=1024)
def _port(port: int) -> bytes:
    return nft.payload(nft.TRANSPORT, 2, 2, REG) + nft.compare(nft.EQUAL, REG, struct.pack(">H", port))


@lru_cache(maxsize=1024)
def _chance(text: str) -> bytes:
    """struct xt_statistic_info: random, so many of 2^31."""
    return _wrapped("match", "statistic", struct.pack("=HHI16x", 0, 0, round(float(text) * 2**31)), 0)


_RANGE = struct.Struct("=I16s16s2s2s8x")  # struct nf_nat_range2: from this address and port to the same
_DNAT = _wrapped("target", "DNAT", bytes(_RANGE.size), 2)[:-_RANGE.size]  # what surrounds it is always the same


def _dnat(end: str) -> bytes:
    address, _, port = end.rpartition(":")
    value, number = packed(address.strip("[]")), struct.pack(">H", int(port))
    return _DNAT + _RANGE.pack(_MAP_ADDRESS_AND_PORT, value, value, number, number)
