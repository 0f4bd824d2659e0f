"""DNS messages as bytes.

Owns reading of questions (they come from anybody: everything is bounded and nothing is trusted), the making of replies
and the few things a forwarder must know of other servers' replies: whether it answers this question, how long it may be
kept, and where its times to live stand. Replies are fitted to what the client can take, as many records as fit.

Pure. Called by `server` and `forward`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import dnslib

from agent.dns import zone
from agent.dns.names import Labels

FORMERR, SERVFAIL, NOTIMP, REFUSED, BADVERS = 1, 2, 4, 5, 16
HEADER = 12
OPT = 41
UDP_LIMIT = 512  # bytes, of a client that says nothing
EDNS_LIMIT = 1232  # bytes: what crosses every IPv6 path without fragments, whatever larger size a client offers
TTL = 5  # seconds: how long a client may be wrong about the cluster
SOA_TIMES = (7200, 1800, 86400, TTL)  # refresh, retry, expire, minimum
QR, TC, RD, RA, AA = 0x8000, 0x0200, 0x0100, 0x0080, 0x0400
DO = 0x8000
POINTER = 0xC0


class MalformedError(ValueError):
    """These bytes are no question. `reply` is what the sender is told, b"" for nothing."""

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__("not a DNS question")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Question:
    """`name` in lower case; `raw` the question's section as it came. `size`: what fits into a UDP reply."""

    id: int
    flags: int
    name: Labels
    kind: int
    klass: int
    raw: bytes
    edns: bool = False
    dnssec: bool = False
    size: int = UDP_LIMIT
    version: int = 0

    @property
    def opcode(self) -> int:
        return (self.flags >> 11) & 15

    @property
    def key(self) -> tuple[Labels, int, int, bool, bool]:
        """What a kept reply is found by."""
        return self.name, self.kind, self.klass, self.edns, self.dnssec


def question(data: bytes) -> Question:
    """Read a question. Raises MalformedError."""
    if len(data) < HEADER:
        raise MalformedError
    number, flags, questions, answers, authority, additional = struct.unpack_from(">6H", data)
    if flags & QR:
        raise MalformedError  # a reply: answering it could go round for ever
    complaint = struct.pack(">6H", number, QR | (flags & 0x7900) | FORMERR, 0, 0, 0, 0)
    if questions != 1:
        raise MalformedError(complaint)
    labels, at = [], HEADER
    try:
        while length := data[at]:
            if length & POINTER:
                raise MalformedError(complaint)
            labels.append(data[at + 1:at + 1 + length].decode("latin-1").lower())
            at += length + 1
            if at - HEADER > 254:
                raise MalformedError(complaint)
        kind, klass = struct.unpack_from(">HH", data, at + 1)
        at += 5
        edns, dnssec, size, version = _edns(data, at, answers + authority + additional)
    except (IndexError, struct.error):
        raise MalformedError(complaint) from None
    return Question(number, flags, tuple(labels), kind, klass, bytes(data[HEADER:at]), edns, dnssec, size, version)


def _edns(data: bytes, at: int, records: int) -> tuple[bool, bool, int, int]:
    for kind, size, ttl, _, _ in _records(data, at, records):
        if kind == OPT:
            return True, bool(ttl & DO), max(UDP_LIMIT, min(size, EDNS_LIMIT)), (ttl >> 16) & 0xFF
    return False, False, UDP_LIMIT, 0


def _records(data: bytes, at: int, count: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(type, class, time to live, where that stands, end) of each. Raises IndexError or struct.error at a cut one."""
    for _ in range(count):
        while length := data[at]:
            if length & POINTER:
                at += 1
                break
            at += length + 1
        kind, klass, ttl, length = struct.unpack_from(">HHIH", data, at + 1)
        place, at = at + 5, at + 11 + length
        if at > len(data):
            raise IndexError
        yield kind, klass, ttl, place, at


def refusal(asked: Question, rcode: int) -> bytes:
    """A reply that holds nothing but an error."""
    opt = _opt(asked, rcode) if asked.edns else b""
    return struct.pack(">6H", asked.id, QR | RA | (asked.flags & 0x7900) | (rcode & 15), 1, 0, 0,
                       1 if opt else 0) + asked.raw + opt


def _opt(asked: Question, rcode: int = 0) -> bytes:
    return b"\0" + struct.pack(">HHIH", OPT, EDNS_LIMIT, (rcode >> 4) << 24 | (DO if asked.dnssec else 0), 0)


def reply(asked: Question, answer: zone.Answer, domain: str, serial: int, limit: int) -> bytes:
    """The reply to a question about the cluster, at most `limit` bytes: truncated, with what fits, if it is longer."""
    count, extra = len(answer.answers), len(answer.additional)
    while True:
        data = _reply(asked, answer, domain, serial, count, extra)
        if len(data) <= limit or (not count and not extra):
            return data
        if extra:
            extra = 0  # additional records are a favour: leaving them out is no truncation
        else:
            count //= 2


def _reply(asked: Question, answer: zone.Answer, domain: str, serial: int, count: int, extra: int) -> bytes:
    buffer = dnslib.DNSBuffer()
    cut = count < len(answer.answers)
    authority = [] if answer.answers else [zone.Record(domain, zone.SOA, domain)]
    flags = QR | AA | RA | (TC if cut else 0) | (asked.flags & (RD | 0x0010)) | answer.rcode
    buffer.append(struct.pack(">6H", asked.id, flags, 1, count, len(authority), extra + asked.edns))
    own = ".".join(asked.name)
    label = dnslib.DNSLabel(_as_asked(asked.raw))
    buffer.encode_name(label)
    buffer.append(asked.raw[-4:])
    for record in (*answer.answers[:count], *authority, *answer.additional[:extra]):
        dnslib.RR(label if record.name == own else record.name, record.type, ttl=TTL,
                  rdata=_data(record, serial)).pack(buffer)
    return bytes(buffer.data) + (_opt(asked) if asked.edns else b"")


def _as_asked(raw: bytes) -> tuple[bytes, ...]:
    """The labels in the case they were asked in, which some clients check."""
    found, at = [], 0
    while length := raw[at]:
        found.append(raw[at + 1:at + 1 + length])
        at += length + 1
    return tuple(found)


def _data(record: zone.Record, serial: int) -> dnslib.RD:
    match record.type:
        case zone.A:
            return dnslib.A(record.data)
        case zone.AAAA:
            return dnslib.AAAA(record.data)
        case zone.SRV:
            port, weight, target = record.data
            return dnslib.SRV(zone.SRV_PRIORITY, weight, port, target)
        case zone.CNAME:
            return dnslib.CNAME(record.data)
        case zone.PTR:
            return dnslib.PTR(record.data)
        case zone.NS:
            return dnslib.NS(record.data)
        case zone.TXT:
            return dnslib.TXT(record.data)
        case zone.SOA:
            return dnslib.SOA(f"ns.dns.{record.data}", f"hostmaster.{record.data}", (serial, *SOA_TIMES))
    raise ValueError(f"no data of type {record.type}")


def answers(data: bytes, asked: Question) -> bool:
    """Whether `data` is a reply to this question, but for its number."""
    end = HEADER + len(asked.raw)
    if len(data) < end or not data[2] & 0x80 or data[4:6] != b"\0\1":
        return False
    return data[HEADER:end].lower() == asked.raw.lower()


def cut(data: bytes) -> bool:
    """Whether a reply says itself that it is not all."""
    return bool(data[2] & TC >> 8)


def whole(data: bytes, asked: Question) -> bool:
    """Whether a reply to this question holds the records it promises; one that is cut need not."""
    try:
        return cut(data) or all(_records(data, HEADER + len(asked.raw), sum(struct.unpack_from(">3H", data, 6))))
    except (IndexError, struct.error):
        return False


def lifetime(data: bytes, asked: Question, longest: int, negative: int) -> tuple[int, tuple[int, ...]]:
    """(seconds a reply may be kept, where its times to live stand). 0 seconds for what must not be kept.

    Negative replies are kept as long as their SOA says, at most `negative` seconds. `data`: a whole reply."""
    flags, _, count, authority, additional = struct.unpack_from(">5H", data, 2)
    rcode = flags & 15
    if flags & TC or rcode not in (zone.NOERROR, zone.NXDOMAIN):
        return 0, ()
    places, least, soa = [], longest, None
    for index, (kind, _, ttl, place, end) in enumerate(
            _records(data, HEADER + len(asked.raw), count + authority + additional)):
        if kind != OPT:
            places.append(place)
            least = min(least, ttl)
        if kind == zone.SOA and count <= index < count + authority:
            soa = min(ttl, struct.unpack_from(">I", data, end - 4)[0])
    if rcode == zone.NXDOMAIN or not count:
        return (min(soa, negative), tuple(places)) if soa is not None else (0, ())
    return least, tuple(places)


def aged(data: bytes, number: int, seconds: int, places: tuple[int, ...], raw: bytes) -> bytes:
    """A kept reply for another client: its number, its spelling of the question, and what is left of each time."""
    made = bytearray(data)
    struct.pack_into(">H", made, 0, number)
    made[HEADER:HEADER + len(raw)] = raw
    for place in places:
        left = struct.unpack_from(">I", made, place)[0] - seconds
        struct.pack_into(">I", made, place, max(left, 0))
    return bytes(made)


def fitted(data: bytes, asked: Question, limit: int) -> bytes:
    """Another server's reply for a UDP client: one that is too long becomes an empty, truncated one."""
    if len(data) <= limit:
        return data
    flags = struct.unpack_from(">H", data, 2)[0] | TC
    return struct.pack(">6H", asked.id, flags, 1, 0, 0, 1 if asked.edns else 0) + asked.raw + (
        _opt(asked) if asked.edns else b"")


def query(asked: Question, number: int) -> bytes:
    """The question for another server: recursive, with EDNS as the client's."""
    flags = RD | (asked.flags & 0x0030)  # the client's wishes about DNSSEC: checking disabled, authentic data
    return struct.pack(">6H", number, flags, 1, 0, 0, 1 if asked.edns else 0) + asked.raw + (
        _opt(asked) if asked.edns else b"")
