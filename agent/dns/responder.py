"""From a question's bytes to a reply's bytes.

Owns the decision who answers: the zone for the cluster's names, at once and from a small cache of finished replies that
any change of the cluster empties; the forwarder for all other names. Counts what it does. Replies with several records
come in a new order each time, so that clients which take the first spread over all; names of an address keep theirs.

Called by `server` for each message, over UDP and TCP alike.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import dnslib

from agent.dns import names, wire, zone
from agent.dns.forward import Forwarder
from agent.dns.wire import Question
from controlplane.machinery.clock import SYSTEM, Clock

FINISHED_LIMIT = 4096  # replies about the cluster, of a hundred bytes each
CHAIN_LIMIT = 8  # external names that lead to external names
IN, CLASS_ANY = 1, 255
TRANSFERS = (251, 252)  # IXFR, AXFR: the zone is not given away whole
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


class Responder:
    """`quick` answers without waiting or says None; then `slow` does."""

    def __init__(self, own: zone.Zone, forwarder: Forwarder, clock: Clock = SYSTEM) -> None:
        self.zone, self.forwarder, self._clock = own, forwarder, clock
        self._finished: dict[tuple[bytes, int], bytes] = {}
        self.serial = int(clock.now())
        self.requests: Counter[tuple[str, str]] = Counter()  # (protocol, kind)
        self.responses: Counter[str] = Counter()  # by rcode

    def changed(self) -> None:
        """Something in the cluster is different: finished replies no longer count."""
        self._finished.clear()
        self.serial = max(self.serial + 1, int(self._clock.now())) & 0xFFFFFFFF

    def quick(self, data: bytes, stream: bool) -> bytes | None:
        """The reply, b"" for none at all, None when somebody else must be asked."""
        limit = 65535 if stream else 0
        ready = self._finished.get((data[2:], limit))
        if ready is not None:
            self._count(stream, ready)
            return data[:2] + ready
        try:
            asked = wire.question(data)
        except wire.MalformedError as error:
            self.responses["FORMERR"] += bool(error.reply)
            return error.reply
        refused = _refused(asked)
        if refused is not None:
            return self._done(asked, stream, wire.refusal(asked, refused))
        answer = self.zone.lookup(asked.name, asked.kind)
        if answer is None:
            kept = self.forwarder.kept(asked, stream)
            return None if kept is None else self._done(asked, stream, wire.fitted(kept, asked, limit or asked.size))
        if answer.follow:
            return None
        if len(answer.answers) > 1 and asked.kind != zone.PTR:
            self._clock.random.shuffle(answer.answers)
        reply = wire.reply(asked, answer, self.zone.domain, self.serial, limit or asked.size)
        if len(answer.answers) <= 1:
            if len(self._finished) >= FINISHED_LIMIT:
                self._finished.clear()
            self._finished[data[2:], limit] = reply[2:]
        return self._done(asked, stream, reply)

    async def slow(self, data: bytes, stream: bool) -> bytes:
        """As `quick`, for what it left: ask other servers."""
        asked = wire.question(data)
        limit = 65535 if stream else asked.size
        answer = self.zone.lookup(asked.name, asked.kind)
        if answer is None:
            reply = wire.fitted(await self.forwarder.resolve(asked, stream), asked, limit)
        else:
            reply = wire.reply(asked, await self._followed(answer, asked, stream), self.zone.domain, self.serial, limit)
        return self._done(asked, stream, reply)

    async def _followed(self, answer: zone.Answer, asked: Question, stream: bool) -> zone.Answer:
        """An external name's CNAME together with what it leads to."""
        for _ in range(CHAIN_LIMIT):
            if not answer.follow:
                return answer
            target = names.labels(answer.follow)
            more = self.zone.lookup(target, asked.kind)
            if more is None:
                outside = wire.Question(0, wire.RD, target, asked.kind, IN, _raw(target, asked.kind))
                reply = await self.forwarder.resolve(outside, stream)
                if wire.cut(reply):  # a client that sees the alias alone would take it for all there is
                    longer = await self.forwarder.resolve(outside, stream=True)
                    reply = reply if longer[3] & 15 else longer
                more = _parsed(reply)
            answer = zone.Answer(more.rcode, answer.answers + more.answers, follow=more.follow)
        return zone.Answer(wire.SERVFAIL, answer.answers)

    def _done(self, asked: Question, stream: bool, reply: bytes) -> bytes:
        self.requests["tcp" if stream else "udp", dnslib.QTYPE.forward.get(asked.kind, "other")] += 1
        self.responses[RCODES.get(reply[3] & 15, "other")] += 1
        return reply

    def _count(self, stream: bool, ready: bytes) -> None:
        self.requests["tcp" if stream else "udp", "cached"] += 1
        self.responses[RCODES.get(ready[1] & 15, "other")] += 1


def _refused(asked: Question) -> int | None:
    if asked.opcode:
        return wire.NOTIMP
    if asked.version:
        return wire.BADVERS
    if asked.klass not in (IN, CLASS_ANY) or asked.kind in TRANSFERS:
        return wire.REFUSED
    return None


def _raw(name: names.Labels, kind: int) -> bytes:
    """A question's section."""
    labels = [part.encode("latin-1") for part in name]
    return b"".join(bytes([len(p)]) + p for p in labels) + b"\0" + kind.to_bytes(2, "big") + IN.to_bytes(2, "big")


def _parsed(reply: bytes) -> zone.Answer:
    """The addresses and aliases in another server's reply."""
    try:
        message = dnslib.DNSRecord.parse(reply)
    except dnslib.DNSError:
        return zone.Answer(wire.SERVFAIL)
    found: list[Any] = [zone.Record(str(rr.rname).rstrip("."), rr.rtype, str(rr.rdata).rstrip("."))
                        for rr in message.rr if rr.rtype in (zone.A, zone.AAAA, zone.CNAME)]
    return zone.Answer(message.header.rcode, found)
