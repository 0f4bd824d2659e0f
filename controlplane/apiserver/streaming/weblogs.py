"""Logs over a WebSocket, which no kubelet offers: this server speaks it itself.

Owns the messages of `GET pods/<name>/log` with an upgrade, in the subprotocols "", `binary.k8s.io` (binary messages)
and `base64.binary.k8s.io` (text). An empty message comes first, then the log as it comes, then a close. What the
client sends is not read: its closing ends the connection. Called by `streams`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Answer, Hijacked
from controlplane.apiserver.streaming.websocket import BINARY, CLOSE, NORMAL, TEXT, frame, handshake, offered
from controlplane.machinery.errors import BadRequest

if TYPE_CHECKING:
    import asyncio

    import aiohttp

SUBPROTOCOLS = ("binary.k8s.io", "base64.binary.k8s.io")


async def serve(request: Request, log: aiohttp.ClientResponse) -> Answer:
    """Send `log` until it ends or the client goes."""
    async with log:
        key = request.headers.get("Sec-WebSocket-Key", "")
        asked = offered(request.headers.get("Sec-WebSocket-Protocol", ""))
        chosen = next((p for p in asked if p in SUBPROTOCOLS), "")
        if not key or (asked and not chosen):
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
