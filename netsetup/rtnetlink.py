"""Raw rtnetlink: the few messages a pod's wiring needs, encoded by hand and sent in one batch.

Owns the encoding and one socket. A batch is one send and one pass over the acknowledgements, so wiring a pod takes
about a millisecond; a general library takes five to eighteen and forks to enter a namespace. The socket stays bound to
the network namespace it was opened in (see `netns.opened_in`). Not thread safe: one thread at a time per socket.

Called by `links`, `routes`, `addresses` and `undo`. Constants are named as in linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 4, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 7, 15
NDA_DST, NDA_LLADDR, NUD_PERMANENT, NTF_PROXY = 1, 2, 0x80, 8
RT_TABLE_MAIN, RTPROT_KERNEL, RTPROT_STATIC = 254, 2, 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RTN_UNICAST, RTNH_F_ONLINK = 0, 253, 254, 1, 4
SOL_NETLINK, NETLINK_EXT_ACK = 270, 11
NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)  # the last two: prohibited, black holes
BATCH = 64  # messages per send: their acknowledgements must fit the default receive buffer
TIMEOUT = 5.0  # seconds: the kernel answers at once; silence means a broken socket, not a slow one


def attribute(kind: int, value: bytes | int | str) -> bytes:
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) & 3)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(parts))


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def split(prefix: str) -> tuple[str, int]:
    """`10.0.0.0/8` -> (`10.0.0.0`, 8); a bare address is a host prefix."""
    address, _, length = prefix.partition("/")
    return address, int(length) if length else (128 if ":" in address else 32)


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    flags: int
    body: bytes


class Held(NamedTuple):
    """An address of this host: `link` is the number of its link, `flags` and `scope` as in IFA_F_… and RT_SCOPE_…"""

    address: str
    length: int
    flags: int
    scope: int
    link: int


def _link(index: int = 0, up: bool | None = None, attributes: bytes = b"") -> bytes:
    flags, change = (int(up), 1) if up is not None else (0, 0)
    return struct.pack("=BxHiII", 0, 0, index, flags, change) + attributes


def new_veth(host: str, host_mac: bytes, peer: str, peer_mac: bytes, peer_netns: int, mtu: int) -> Message:
    """Both ends in one message: the host end up, the peer made inside the namespace of descriptor `peer_netns`."""
    inside = _link(attributes=attribute(IFLA_IFNAME, peer) + attribute(IFLA_ADDRESS, peer_mac)
                   + attribute(IFLA_MTU, mtu) + attribute(IFLA_NET_NS_FD, peer_netns))
    info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, "veth"),
                  nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, inside)))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL,
                   _link(up=True, attributes=attribute(IFLA_IFNAME, host) + attribute(IFLA_ADDRESS, host_mac)
                         + attribute(IFLA_MTU, mtu) + info))


def new_link(name: str, kind: str, mac: bytes, mtu: int, data: bytes) -> Message:
    """A link of `kind`, up; `data` is its IFLA_INFO_DATA."""
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _link(up=True, attributes=(
        attribute(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, mac) + attribute(IFLA_MTU, mtu)
        + nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind), data))))


def set_up(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, _link(index, up=True))


def delete_link(name: str) -> Message:
    return Message(RTM_DELLINK, 0, _link(attributes=attribute(IFLA_IFNAME, name)))


def _address(prefix: str, index: int, scope: int = RT_SCOPE_UNIVERSE) -> bytes:
    """Of IPv6 without asking around whether somebody has it: it may be used at once."""
    address, length = split(prefix)
    raw = packed(address)
    flags = IFA_F_NODAD if ":" in address else 0
    return (struct.pack("=BBBBi", _family(address), length, flags, scope, index) + attribute(IFA_LOCAL, raw)
            + attribute(IFA_ADDRESS, raw))


def add_address(prefix: str, index: int, scope: int = RT_SCOPE_UNIVERSE) -> Message:
    """`scope` RT_SCOPE_HOST: never chosen as the source of what leaves this host."""
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address(prefix, index, scope))


def delete_address(prefix: str, index: int) -> Message:
    return Message(RTM_DELADDR, 0, _address(prefix, index))


def _route(destination: str, index: int, gateway: str, onlink: bool, protocol: int, source: str) -> bytes:
    address, length = split(destination)
    scope = RT_SCOPE_UNIVERSE if gateway else RT_SCOPE_LINK
    body = struct.pack("=BBBBBBBBI", _family(address), length, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST,
                       RTNH_F_ONLINK if onlink else 0)
    if length:
        body += attribute(RTA_DST, packed(address))
    if gateway:
        body += attribute(RTA_GATEWAY, packed(gateway))
    if source:
        body += attribute(RTA_PREFSRC, packed(source))
    return body + (attribute(RTA_OIF, index) if index else b"")


def set_route(destination: str, index: int = 0, gateway: str = "", onlink: bool = False,
              protocol: int = RTPROT_STATIC, source: str = "") -> Message:
    """Create or replace; without `gateway` the destination is on the link. `source`: of what this host sends there."""
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE,
                   _route(destination, index, gateway, onlink, protocol, source))


def delete_route(destination: str, index: int = 0, gateway: str = "", protocol: int = 0) -> Message:
    address, length = split(destination)
    body = struct.pack("=BBBBBBBBI", _family(address), length, 0, 0, RT_TABLE_MAIN, protocol, 255, 0, 0)
    body += attribute(RTA_DST, packed(address)) if length else b""
    body += attribute(RTA_GATEWAY, packed(gateway)) if gateway else b""
    return Message(RTM_DELROUTE, 0, body + (attribute(RTA_OIF, index) if index else b""))


def permanent_neighbour(address: str, mac: bytes, index: int) -> Message:
    body = struct.pack("=BxHiHBB", _family(address), 0, index, NUD_PERMANENT, 0, 0)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE,
                   body + attribute(NDA_DST, packed(address)) + attribute(NDA_LLADDR, mac))


def _proxy(kind: int, flags: int, address: str, index: int) -> Message:
    body = struct.pack("=BxHiHBB", _family(address), 0, index, 0, NTF_PROXY, 0)
    return Message(kind, flags, body + attribute(NDA_DST, packed(address)))


def set_proxy(address: str, index: int) -> Message:
    """Let the kernel answer on a link for an address that is not this host's."""
    return _proxy(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, address, index)


def delete_proxy(address: str, index: int) -> Message:
    return _proxy(RTM_DELNEIGH, 0, address, index)


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4:offset + length]
        offset += (length + 3) & ~3
    return found


class RtNetlink:
    """A rtnetlink socket of the namespace it was opened in. Use as a context manager or `close` it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self.socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self.socket.settimeout(TIMEOUT)
        self.socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> RtNetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, messages: Iterable[Message], ignore: tuple[int, ...] = ()) -> None:
        """Send all, wait for every acknowledgement; raises the first OSError whose errno is not in `ignore`."""
        waiting = list(messages)
        for start in range(0, len(waiting), BATCH):
            self._send(waiting[start:start + BATCH], ignore)

    def _send(self, messages: list[Message], ignore: tuple[int, ...]) -> None:
        first, data = self._sequence + 1, b""
        for message in messages:
            self._sequence += 1
            data += struct.pack("=IHHII", 16 + len(message.body), message.kind,
                                NLM_F_REQUEST | NLM_F_ACK | message.flags, self._sequence, 0) + message.body
        self.socket.send(data)
        missing, failed = len(messages), None
        while missing:
            for kind, _, sequence, body in framed(self.socket.recv(1 << 16)):
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                missing -= 1
                number = -struct.unpack_from("=i", body)[0]
                if number and number not in ignore and failed is None:
                    what = f"rtnetlink message {messages[sequence - first].kind}"
                    failed = OSError(number, os.strerror(number), what)
        if failed:
            raise failed

    def query(self, kind: int, body: bytes, dump: bool = False) -> list[bytes]:
        """The bodies of the answers. Raises OSError (ENODEV for a link that is not there)."""
        self._sequence += 1
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
        self.socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0) + body)
        found: list[bytes] = []
        while True:
            for answer, _, sequence, content in framed(self.socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_DONE:
                    return found
                if answer == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, os.strerror(number))
                found.append(content)
                if not dump:
                    return found

    def link(self, name: str) -> tuple[int, dict[int, bytes]]:
        """(index, attributes) of a link. Raises OSError ENODEV."""
        body = self.query(RTM_GETLINK, _link(attributes=attribute(IFLA_IFNAME, name)))[0]
        return struct.unpack_from("=i", body, 4)[0], attributes(body, 16)

    def way(self, address: str) -> dict[int, bytes] | None:
        """The attributes of the route that packets to `address` take, None when there is none. Raises OSError."""
        wanted = packed(address)
        body = struct.pack("=BBBBBBBBI", _family(address), 8 * len(wanted), 0, 0, 0, 0, 0, 0, 0)
        try:
            return attributes(self.query(RTM_GETROUTE, body + attribute(RTA_DST, wanted))[0], 12)
        except OSError as error:
            if error.errno not in NO_WAY:
                raise
            return None

    def addresses(self) -> Iterator[Held]:
        """Every address of this namespace, those of IPv4 first."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for answer in self.query(RTM_GETADDR, struct.pack("=BBBBi", family, 0, 0, 0, 0), dump=True):
                _, length, flags, scope, index = struct.unpack_from("=BBBBi", answer)
                parts = attributes(answer, 8)
                if raw := parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS):
                    yield Held(socket.inet_ntop(family, raw), length, flags, scope, index)

    def link_names(self) -> list[str]:
        bodies = self.query(RTM_GETLINK, _link(), dump=True)
        return [attributes(b, 16)[IFLA_IFNAME].rstrip(b"\0").decode() for b in bodies]


def framed(data: bytes) -> Iterable[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and body of each netlink message in what one receive gave."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence = struct.unpack_from("=IHHI", data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16:offset + length]
        offset += (length + 3) & ~3
