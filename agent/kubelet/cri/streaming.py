"""Exec, attach and port-forward: a raw tunnel from a client to the runtime's streaming server.

Owns the hand-over of an HTTP connection to plain bytes. The request's head goes on unchanged but for its path, the
runtime's answer comes back verbatim, then bytes flow both ways until either side ends. Hence every protocol works that
the runtime knows (SPDY, WebSocket) with its half-closes and exit codes, and what it refuses is refused with its own
status, so clients fall back. Never looks into frames. Called by `serve`.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

MAX_HEAD = 64 << 10  # of the runtime's answer
MAX_BODY = 64 << 10  # of a refusal
CONNECT_SECONDS = 10.0
CHUNK = 64 << 10
SWITCHING = 101

# What belongs to this hop or would leak the caller's credentials to the runtime.
_DROPPED = {b"host", b"authorization", b"content-length", b"transfer-encoding"}


class Handed(web.Response):
    """Stands for an answer that was already written to the connection by hand."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def head(request: web.BaseRequest, url: str) -> bytes:
    """The request's head as the runtime gets it."""
    target = urlsplit(url)
    path = target.path + (f"?{target.query}" if target.query else "")
    lines = [f"{request.method} {path} HTTP/1.1".encode(), b"Host: " + target.netloc.encode()]
    lines += [name + b": " + value for name, value in request.raw_headers if name.lower() not in _DROPPED]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def tunnel(request: web.BaseRequest, url: str) -> web.StreamResponse:
    """Connect `request`'s client with the runtime's `url` until one of them ends. Raises OSError, TimeoutError."""
    target = urlsplit(url)
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(target.hostname, target.port, limit=MAX_HEAD)
        writer.write(head(request, url))
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
    try:
        status = int(answer.split(b" ", 2)[1])
        if status != SWITCHING:
            return await _refusal(status, answer, reader)
        client = _take_over(request)
        if client is None:
            return Handed()
        client[1].write(answer)
        await _pump_both(client, (reader, writer))
        return Handed()
    finally:
        writer.close()


async def _refusal(status: int, answer: bytes, reader: asyncio.StreamReader) -> web.Response:
    """The runtime's refusal as an ordinary response."""
    headers = {}
    for line in answer.split(b"\r\n")[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "")
    body = await reader.readexactly(min(int(length), MAX_BODY)) if length.isdigit() else b""
    return web.Response(status=status, body=body, headers={"Content-Type": headers.get("content-type", "text/plain")})


def _take_over(request: web.BaseRequest) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """The client's connection as streams; aiohttp no longer sees its bytes. None when the client is gone already.

    Free of races: a client sends nothing after its head until it has read the answer."""
    transport = request.transport
    if transport is None:
        return None
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    request.protocol.close()  # no further request is read from it after this one
    transport.resume_reading()  # type: ignore[attr-defined]
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)  # type: ignore[arg-type]


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _pump_both(client: Streams, runtime: Streams) -> None:
    """Both ways until the runtime has ended, or the client went away; a client's half-close is passed on."""
    sending = asyncio.create_task(_pump(client[0], runtime[1]))
    receiving = asyncio.create_task(_pump(runtime[0], client[1]))
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        encrypted = client[1].get_extra_info("ssl_object") is not None  # TLS has no half-close: the client is gone
        if sending.done() and not receiving.done() and not encrypted and runtime[1].can_write_eof():
            runtime[1].write_eof()
            await receiving
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
        client[1].close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
    except (ConnectionError, TimeoutError):
        pass  # whoever is gone needs no bytes
