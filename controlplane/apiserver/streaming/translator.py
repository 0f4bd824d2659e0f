"""A client's WebSocket joined to a node's SPDY: passes on what `translation` makes of the bytes.

Owns the two connections while they are joined. Promises: the client is answered only when the node has accepted every
stream, since nodes drop what arrives before; neither side is read faster than the other takes it; at the end the
client gets all of the output and the status, and is the one who hangs up, since a connection closed under its hands
would lose what is still on the way. Called by `tunnel`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from controlplane.apiserver.streaming.halves import Half, either, give_back
from controlplane.apiserver.streaming.translation import Translation
from controlplane.machinery.errors import ApiError

READY_SECONDS = 60.0  # the node may first have to reach the container
PING_SECONDS = 5.0  # between two signs of life to a node; upstream's
FINISH_SECONDS = 900.0  # upstream's: for a slow client to read what was sent before the goodbye


class _Client(Half):
    """The client's side, once it was answered."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.from_client(data)

    def eof_received(self) -> bool:
        self.ended.set()
        return False


class _Node(Half):
    """The node's side. `ended` also when it has said all."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self.ready = asyncio.Event()  # or ended

    def data_received(self, data: bytes) -> None:
        self._link.from_node(data)

    def eof_received(self) -> bool:
        self.ended.set()
        self.ready.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self.ready.set()


class _Link:
    """What both sides share."""

    def __init__(self, backend: asyncio.Transport | None, translation: Translation) -> None:
        self._backend = backend
        self._translation = translation
        self._taken: asyncio.Transport | None = None
        self._held = bytearray()  # for a client that was not answered yet
        self.client = _Client(self)
        self.node = _Node(self)

    def answer(self, client: asyncio.Transport, accepted: bytes) -> None:
        """Take the client's connection over, with the head `accepted`."""
        self.client.peer, self.node.peer = self._backend, client
        client.set_protocol(self.client)
        client.resume_reading()  # the former protocol may have paused it
        self._taken = client
        _send(client, accepted + bytes(self._held))
        self._held.clear()

    def from_client(self, data: bytes) -> None:
        try:
            inside, back = self._translation.from_client(data)
        except ValueError:
            self.client.ended.set()
            return
        _send(self._backend, inside)
        if self._taken is not None:
            _send(self._taken, back)
        if self._translation.closed:
            self.client.ended.set()

    def from_node(self, data: bytes) -> None:
        try:
            outside, back = self._translation.from_node(data)
        except ValueError:
            self.node.ended.set()
            self.node.ready.set()
            return
        _send(self._backend, back)
        if self._taken is None:
            self._held += outside
        else:
            _send(self._taken, outside)
        if self._translation.ready or self._translation.over:
            self.node.ready.set()
        if self._translation.over:
            self.node.ended.set()


def _send(transport: asyncio.Transport | None, data: bytes) -> None:
    if data and transport is not None and not transport.is_closing():
        transport.write(data)


async def join(client: asyncio.Transport, former: Any, backend: asyncio.Transport, first: bytes,
               translation: Translation, accepted: bytes) -> None:
    """Until either side has ended. `first` is what the node sent already, `accepted` the head that the client gets.
    Raises ApiError as long as the client was not answered."""
    link = _Link(backend, translation)
    backend.set_protocol(link.node)
    _send(backend, translation.start())
    if translation.ready:
        link.node.ready.set()
    if first:
        link.from_node(first)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await link.node.ready.wait()
    except TimeoutError:
        raise ApiError("error dialing backend: timed out waiting for the streams to be accepted", reason="") from None
    if not translation.ready:
        raise ApiError("error dialing backend: the node ended the connection before it accepted the streams", reason="")
    link.answer(client, accepted)
    pings = asyncio.ensure_future(_pinging(backend, translation))
    try:
        await either(link.client.ended, link.node.ended)
        if not link.client.ended.is_set():
            _send(client, translation.end())
            backend.close()
            await _finished(client, link)
    finally:
        pings.cancel()
        give_back(client, link.client, former)


async def refuse(client: asyncio.Transport, former: Any, translation: Translation, answer: bytes) -> None:
    """Give a client its last bytes, where no node is joined to it."""
    link = _Link(None, translation)
    link.answer(client, answer)
    try:
        await _finished(client, link)
    finally:
        give_back(client, link.client, former)


async def _finished(client: asyncio.Transport, link: _Link) -> None:
    """Until the client has hung up; what it still sends is thrown away."""
    client.resume_reading()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINISH_SECONDS):
            await link.client.ended.wait()


async def _pinging(backend: asyncio.Transport, translation: Translation) -> None:
    while True:
        await asyncio.sleep(PING_SECONDS)
        _send(backend, translation.ping())
