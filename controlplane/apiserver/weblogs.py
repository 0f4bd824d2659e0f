"""Logs over a WebSocket: the one place where this server speaks WebSocket itself.

Owns the handshake and the framing of server-to-client messages for `GET pods/<name>/log` with an upgrade, in the
subprotocols "", `binary.k8s.io` (binary messages) and `base64.binary.k8s.io` (text). An empty message comes first,
then the log as it comes, then a close. What the client sends is not read: its closing ends the connection. Called by
`streams`.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Answer, Hijacked
from controlplane.machinery.errors import BadRequest

if TYPE_CHECKING:
    import asyncio

    import aiohttp

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
TEXT, BINARY, CLOSE = 1, 2, 8
SUBPROTOCOLS = ("binary.k8s.io", "base64.binary.k8s.io")
NORMAL = (1000).to_bytes(2, "big")


def frame(opcode: int, data: bytes) -> bytes:
    """One whole, unmasked message."""
    if len(data) < 126:
        size = bytes((len(data),))
    elif len(data) < 65536:
        size = b"\x7e" + len(data).to_bytes(2, "big")
    else:
        size = b"\x7f" + len(data).to_bytes(8, "big")
    return bytes((0x80 | opcode,)) + size + data


def handshake(key: str, subprotocol: str) -> bytes:
    """The 101 of RFC 6455."""
    accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
             f"Sec-WebSocket-Accept: {accept}"]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def serve(request: Request, log: aiohttp.ClientResponse) -> Answer:
    """Send `log` until it ends or the client goes."""
    async with log:
        key = request.headers.get("Sec-WebSocket-Key", "")
        offered = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if p.strip()]
        chosen = next((p for p in offered if p in SUBPROTOCOLS), "")
        if not key or (offered and not chosen):
            raise BadRequest("unable to upgrade websocket connection: unsupported subprotocol")
        assert request.raw is not None
        transport: asyncio.Transport = request.raw.transport  # type: ignore[assignment]
        protocol = request.raw.protocol
        text = chosen.startswith("base64")
        transport.write(handshake(key, chosen) + frame(TEXT if text else BINARY, b""))
        async for piece in log.content.iter_any():
            if transport.is_closing():
                break
            transport.write(frame(TEXT, base64.b64encode(piece)) if text else frame(BINARY, piece))
            if protocol._paused:
                await protocol._drain_helper()
        if not transport.is_closing():
            transport.write(frame(CLOSE, NORMAL))
            transport.close()
        return Hijacked()
