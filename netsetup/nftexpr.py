"""The expressions of nf_tables rules, as the kernel takes them.

Pure. Owns the encoding of what our rules are made of, one function per expression, named as `nft` names it. A rule is
the bytes of its expressions one after another. Registers are those of 32 bits, from 8 on; a value longer than four
bytes fills the next ones too. Everything here can be printed by `nft list ruleset`.

Called by `agent.proxy.nftchains`; sent by `nftables`. Constants are named as in linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct

from netsetup.rtnetlink import attribute, nested

REG = 8  # the first register of 32 bits
JUMP, GOTO, RETURN, DROP, ACCEPT = -3, -4, -5, 0, 1
EQUAL, UNEQUAL = 0, 1
L4PROTO, MARK = 16, 3  # keys of meta
CT_STATE, CT_STATUS = 0, 2
INVALID, ESTABLISHED, RELATED, NEW = 1, 2, 4, 8  # connection states
DST_NAT = 1 << 5  # a connection's status
NETWORK, TRANSPORT = 1, 2  # bases of payload
RTN_LOCAL = 2
SOURCE, DESTINATION = 1, 2  # whose address; flags of fib
FULLY_RANDOM = 16  # NF_NAT_RANGE_PROTO_RANDOM_FULLY
_UPDATE = 1


def number(kind: int, value: int) -> bytes:
    """An attribute of four bytes, in network order as nf_tables wants all its numbers."""
    return attribute(kind, struct.pack(">I", value))


def expression(name: str, *parts: bytes) -> bytes:
    return nested(1, attribute(1, name), nested(2, *parts))


def payload(base: int, offset: int, length: int, register: int) -> bytes:
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def address(whose: int, size: int, register: int) -> bytes:
    """The source or destination address, of `size` bytes."""
    first = 8 if size == 16 else 12  # the source's place in the header; the destination comes right after it
    return payload(NETWORK, first if whose == SOURCE else first + size, size, register)


def meta(key: int, register: int) -> bytes:
    return expression("meta", number(2, key), number(1, register))


def set_mark(register: int) -> bytes:
    return expression("meta", number(2, MARK), number(3, register))


def ct(key: int, register: int) -> bytes:
    return expression("ct", number(2, key), number(1, register))


def compare(how: int, register: int, value: bytes) -> bytes:
    return expression("cmp", number(1, register), number(2, how), nested(3, attribute(1, value)))


def bitwise(register: int, mask: bytes, flip: bytes) -> bytes:
    """`(value & mask) ^ flip`, in place."""
    return expression("bitwise", number(1, register), number(2, register), number(3, len(mask)),
                      nested(4, attribute(1, mask)), nested(5, attribute(1, flip)))


def lookup(name: str, register: int, result: int | None = None) -> bytes:
    """Go on if the set has the key; of a map put its value into `result`, 0 for its verdict."""
    return expression("lookup", attribute(1, name), number(2, register),
                      *([number(3, result)] if result is not None else []))


def remember(name: str, register: int) -> bytes:
    """`update @name { … }`: put the key into a set, or renew its time-out there."""
    return expression("dynset", attribute(1, name), number(3, _UPDATE), number(4, register))


def random_below(limit: int, register: int) -> bytes:
    return expression("numgen", number(1, register), number(2, limit), number(3, 1), number(4, 0))


def immediate(register: int, value: bytes) -> bytes:
    return expression("immediate", number(1, register), nested(2, attribute(1, value)))


def dnat(family: int, address: int, port: int) -> bytes:
    """To the address and port in these registers. `family`: 4 or 6."""
    return expression("nat", number(1, 1), number(2, 10 if family == 6 else 2), number(3, address), number(5, port))


def masquerade() -> bytes:
    return expression("masq", number(1, FULLY_RANDOM))


def fib_type(whose: int, register: int) -> bytes:
    """The kind of the source or destination address: RTN_LOCAL for one of this host."""
    return expression("fib", number(1, register), number(2, 3), number(3, whose))


def reject(family: int) -> bytes:
    """By ICMP: port unreachable."""
    return expression("reject", number(1, 0), attribute(2, bytes([4 if family == 6 else 3])))


def reset() -> bytes:
    return expression("reject", number(1, 1), attribute(2, b"\0"))


def decide(code: int, chain: str = "") -> bytes:
    return expression("immediate", number(1, 0), nested(2, verdict(code, chain)))


def verdict(code: int, chain: str = "") -> bytes:
    """As the data of an element or an immediate."""
    return nested(2, attribute(1, struct.pack(">i", code)), *([attribute(2, chain)] if chain else []))
