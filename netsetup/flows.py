"""The kernel's list of connections: forget those that lead to nobody.

Owns the netlink messages that list and delete tracked connections. What is to go is described by a `Match`; of IPv4 one
message deletes all of it in the kernel. Its filter compares IPv6 addresses the wrong way round (it takes every address
but the one that is named), and kernels before 5.8 have none: there the list is read, as far as protocol and port narrow
it, and each entry is deleted by name. A client's packets that come after a deletion are a new connection to the
Service: the endpoint they reach knows nothing of it and says so, instead of silence until a time-out.

Called by the CNI daemon when a pod's link is gone, and by the service proxy, which also asks who is connected to what.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from netsetup.nftables import NETLINK_NETFILTER
from netsetup.rtnetlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    framed,
    nested,
    packed,
)

IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 0x101, 0x102  # subsystem 1, messages 1 and 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE, CTA_FILTER = 1, 2, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 2, 1, 3
FILTER_SRC, FILTER_DST, FILTER_PROTO, FILTER_DST_PORT = 1, 2, 8, 32
NO_FILTER = (errno.EINVAL, errno.EOPNOTSUPP)
FEW = 8  # addresses up to which asking for each by name costs less than reading a full table
MANY = 10_000  # connections that are read where haste matters more than all of them: about 0.1 s
TIMEOUT = 5.0  # seconds: walking a full table takes some ten milliseconds


@dataclass(frozen=True, slots=True)
class Match:
    """Which connections; "" and 0 stand for any. `protocol` is a number, and with it goes the original `port`.

    `source` and `destination` are those of the first packet, `endpoint` is who answers."""

    family: int
    protocol: int = 0
    port: int = 0
    source: str = ""
    destination: str = ""
    endpoint: str = ""

    def takes(self, entry: dict[int, bytes]) -> bool:
        """Whether a listed connection is one of these."""
        if not (self.protocol or self.source or self.destination or self.endpoint):
            return True
        source, destination = (3, 4) if self.family == 6 else (1, 2)
        original, reply = (attributes(entry.get(kind, b""), 0) for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
        ends, answers = attributes(original.get(CTA_TUPLE_IP, b""), 0), attributes(reply.get(CTA_TUPLE_IP, b""), 0)
        place = attributes(original.get(CTA_TUPLE_PROTO, b""), 0)
        return all(found == packed(wanted) for wanted, found in (
            (self.source, ends.get(source)), (self.destination, ends.get(destination)),
            (self.endpoint, answers.get(source))) if wanted) and (not self.protocol or (
                place.get(CTA_PROTO_NUM) == bytes([self.protocol])
                and (not self.port or place.get(CTA_PROTO_DST_PORT) == struct.pack(">H", self.port))))


def forget(match: Match, keep: Collection[str] = ()) -> None:
    """Delete all of these connections, but for those that an address of `keep` answers. Raises OSError."""
    kept = {packed(address) for address in keep}
    with _opened() as link:
        if match.family == 4 and not kept:
            try:
                _delete(link, _message(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, match.family, _filter(match, True)))
                return
            except OSError as error:
                if error.errno not in NO_FILTER:
                    raise
        for entry in list(_listed(link, match)):
            if kept and _ends(entry, CTA_TUPLE_REPLY, match.family)[0] in kept:
                continue
            body = b"".join(attribute(kind | (0x8000 if kind == CTA_TUPLE_ORIG else 0), entry[kind])
                            for kind in (CTA_TUPLE_ORIG, CTA_ZONE) if kind in entry)
            _delete(link, _message(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, match.family, body))


def forget_address(address: str) -> None:
    """Delete all connections to and from `address`. Raises OSError."""
    family = 6 if ":" in address else 4
    for match in (Match(family, source=address), Match(family, endpoint=address)):
        forget(match)


def answering(addresses: Collection[str], family: int) -> set[str]:
    """Those of `addresses` that answer any connection. Raises OSError.

    A few are asked for by name; for many the whole list is read once."""
    with _opened() as link:
        if len(addresses) <= FEW and family == 4:
            found = set()
            for address in addresses:
                if list(_listed(link, Match(family, endpoint=address))):
                    found.add(address)
            return found
        wanted = {packed(address): address for address in addresses}
        return {wanted[raw] for entry in _listed(link, Match(family))
                if (raw := _ends(entry, CTA_TUPLE_REPLY, family)[0]) in wanted}


def translated(family: int) -> set[bytes]:
    """The packed addresses that answer in the place of another, of the first `MANY` connections. Raises OSError."""
    with _opened() as link:
        both = [(_ends(entry, CTA_TUPLE_ORIG, family)[1], _ends(entry, CTA_TUPLE_REPLY, family)[0])
                for entry in islice(_listed(link, Match(family)), MANY)]
    return {answers for asked, answers in both if answers != asked}


def _ends(entry: dict[int, bytes], way: int, family: int) -> tuple[bytes, bytes]:
    """The packed source and destination of a connection, as it was asked for or as it is answered; b"" untold."""
    told = attributes(attributes(entry.get(way, b""), 0).get(CTA_TUPLE_IP, b""), 0)
    source, destination = (3, 4) if family == 6 else (1, 2)
    return told.get(source, b""), told.get(destination, b"")


def _opened() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    link.settimeout(TIMEOUT)
    link.bind((0, 0))
    return link


def _message(kind: int, flags: int, family: int, body: bytes) -> bytes:
    domain = socket.AF_INET6 if family == 6 else socket.AF_INET
    return struct.pack("=IHHIIBBH", 20 + len(body), kind, NLM_F_REQUEST | flags, 1, 0, domain, 0, 0) + body


def _filter(match: Match, addresses: bool) -> bytes:
    """What the kernel is to compare; addresses only where it does that rightly."""
    flags = reply_flags = 0
    ends, place = b"", b""
    if addresses and match.source:
        ends, flags = attribute(1, packed(match.source)), FILTER_SRC
    if addresses and match.destination:
        ends, flags = ends + attribute(2, packed(match.destination)), flags | FILTER_DST
    if match.protocol:
        place, flags = attribute(CTA_PROTO_NUM, bytes([match.protocol])), flags | FILTER_PROTO
        if match.port:
            place, flags = place + attribute(CTA_PROTO_DST_PORT, struct.pack(">H", match.port)), flags | FILTER_DST_PORT
    body = b""
    if flags:
        body = nested(CTA_TUPLE_ORIG, *([nested(CTA_TUPLE_IP, ends)] if ends else []),
                      *([nested(CTA_TUPLE_PROTO, place)] if place else []))
    if addresses and match.endpoint:
        body += nested(CTA_TUPLE_REPLY, nested(CTA_TUPLE_IP, attribute(1, packed(match.endpoint))),
                       *([nested(CTA_TUPLE_PROTO, attribute(CTA_PROTO_NUM, bytes([match.protocol])))]
                         if match.protocol else []))
        reply_flags = FILTER_SRC
    return body + nested(CTA_FILTER, attribute(1, flags), attribute(2, reply_flags)) if flags or reply_flags else b""


def _delete(link: socket.socket, message: bytes) -> None:
    link.send(message)
    number = -struct.unpack_from("=i", link.recv(65536), 16)[0]
    if number and number != errno.ENOENT:
        raise OSError(number, os.strerror(number), "conntrack delete")


def _listed(link: socket.socket, match: Match) -> Iterator[dict[int, bytes]]:
    """The attributes of each connection that matches."""
    link.send(_message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, match.family, _filter(match, match.family == 4)))
    while True:
        for kind, _, _, body in framed(link.recv(1 << 18)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, os.strerror(number), "conntrack list")
            entry = attributes(body, 4)
            if match.takes(entry):
                yield entry
