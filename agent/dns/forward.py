"""Ask other servers, and keep what they say for a while.

Owns the questions in flight and the kept replies, both bounded. Each question goes out from a socket of its own, so
from a port nobody can guess, under a number nobody can guess; equal questions at the same time go out once. A server
that is silent, fails or breaks off in its reply is passed over for the next, and the one that last answered is asked
first. Replies are kept as long as their times allow, at most half a minute; that a name does not exist is kept too,
shorter. Never asked about the cluster's own names.

Called by `server`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import Any

from agent.dns import upstreams, wire
from agent.dns.upstreams import Server, Upstreams
from agent.dns.wire import Question
from controlplane.machinery.clock import SYSTEM, Clock

KEEP_SECONDS, KEEP_NEGATIVE = 30, 5  # a name that is new in the world is seen here within seconds
KEPT_LIMIT = 2048  # replies of some hundred bytes each
FLIGHT_LIMIT = 512  # questions at once: each is a socket, and a process has 1024 descriptors on careless hosts
SERVER_SECONDS = 1.8  # two servers get their chance within the five seconds a client waits
MESSAGE_LIMIT = 65535


class _Exchange(asyncio.DatagramProtocol):
    """One question over UDP; datagrams that do not answer it are ignored."""

    def __init__(self, asked: Question, number: int) -> None:
        self._asked, self._number = asked, number.to_bytes(2, "big")
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _: Any) -> None:
        if data[:2] == self._number and wire.answers(data, self._asked) and not self.reply.done():
            self.reply.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


class Forwarder:
    """`resolve` gives whole replies, ready to send but for the client's size."""

    def __init__(self, servers: Upstreams, clock: Clock = SYSTEM) -> None:
        self._upstreams, self._clock = servers, clock
        self._kept: OrderedDict[Any, tuple[float, float, bytes, tuple[int, ...]]] = OrderedDict()
        self._flying: dict[Any, asyncio.Future[bytes]] = {}
        self._good: dict[tuple[Server, ...], Server] = {}
        self.hits = self.misses = self.failures = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def resolve(self, asked: Question, stream: bool) -> bytes:
        """The reply; SERVFAIL when nobody gave one. `stream`: ask over TCP, as the client did."""
        kept = self.kept(asked, stream)
        if kept is not None:
            return kept
        self.misses += 1
        key = (*asked.key, stream)
        flying = self._flying.get(key)
        if flying is not None:
            data = await asyncio.shield(flying)
        elif len(self._flying) >= FLIGHT_LIMIT:
            return wire.refusal(asked, wire.SERVFAIL)
        else:
            data = await self._fly(asked, stream, key)
        return wire.aged(data, asked.id, 0, (), asked.raw) if data else wire.refusal(asked, wire.SERVFAIL)

    def kept(self, asked: Question, stream: bool = False) -> bytes | None:
        """A reply kept from before, aged by the time it was kept."""
        key = (*asked.key, stream)
        found = self._kept.get(key)
        if found is None:
            return None
        since, until, data, places = found
        now = self._clock.monotonic()
        if now >= until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return wire.aged(data, asked.id, int(now - since), places, asked.raw)

    async def _fly(self, asked: Question, stream: bool, key: Any) -> bytes:
        """Ask, and let everybody who waits for the same have it; b"" when there is no reply."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._flying[key] = future
        data = b""
        try:
            data = await self._ask_all(asked, stream)
            self._keep(key, asked, data)
        finally:
            del self._flying[key]
            future.set_result(data)
        return data

    def _keep(self, key: Any, asked: Question, data: bytes) -> None:
        if not data:
            return
        seconds, places = wire.lifetime(data, asked, KEEP_SECONDS, KEEP_NEGATIVE)
        if seconds <= 0:
            return
        now = self._clock.monotonic()
        self._kept[key] = (now, now + seconds, data, places)
        while len(self._kept) > KEPT_LIMIT:
            self._kept.popitem(last=False)

    async def _ask_all(self, asked: Question, stream: bool) -> bytes:
        servers = self._upstreams.for_name(asked.name)
        first = self._good.get(servers)
        last = b""
        for server in sorted(servers, key=lambda s: s != first):
            try:
                async with asyncio.timeout(SERVER_SECONDS):
                    data = await (self._by_stream if stream else self._by_packet)(server, asked)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                data = b""
            if not data or not wire.whole(data, asked):
                self.failures += 1
                continue
            last = data
            if data[3] & 15 not in (wire.SERVFAIL, wire.REFUSED, wire.NOTIMP):
                if len(self._good) > upstreams.SERVER_LIMIT * 16:
                    self._good.clear()  # lists of servers come and go with the host's networks
                self._good[servers] = server
                break
        return last

    async def _by_packet(self, server: Server, asked: Question) -> bytes:
        number = secrets.randbits(16)
        transport, exchange = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Exchange(asked, number), remote_addr=server)
        try:
            transport.sendto(wire.query(asked, number))
            return await exchange.reply
        finally:
            transport.close()

    async def _by_stream(self, server: Server, asked: Question) -> bytes:
        number = secrets.randbits(16)
        reader, writer = await asyncio.open_connection(*server, limit=MESSAGE_LIMIT + 2)
        try:
            message = wire.query(asked, number)
            writer.write(len(message).to_bytes(2, "big") + message)
            length = int.from_bytes(await reader.readexactly(2), "big")
            data = await reader.readexactly(length)
        finally:
            writer.close()
        if data[:2] != number.to_bytes(2, "big") or not wire.answers(data, asked):
            raise OSError("a reply to another question")
        return data
