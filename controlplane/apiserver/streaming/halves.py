"""The two sides of connections that are joined: bytes of one go to the other, as fast as that takes them.

Owns the taking over of a client's connection by `set_protocol` and its way back. Promises: neither side is read faster
than the other takes it. Called by `tunnel` and `translator`.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Half(asyncio.Protocol):
    """One side of a tunnel: what arrives goes to `peer`."""

    def __init__(self) -> None:
        self.peer: asyncio.Transport | None = None
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and not self.peer.is_closing():
            self.peer.write(data)

    def eof_received(self) -> bool:
        if self.peer is not None and not self.peer.is_closing() and self.peer.can_write_eof():
            self.peer.write_eof()
            return True  # stay open for the other direction
        self.ended.set()
        return False

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


def give_back(client: asyncio.Transport, own: Half, former: Any) -> None:
    """Return a connection that was taken over to the server, and close it after what is still to be written."""
    if client.get_protocol() is own:
        client.set_protocol(former)
    if own.ended.is_set() and client.is_closing():
        asyncio.get_running_loop().call_soon(former.connection_lost, None)  # it was ours when that came
    else:
        client.close()


async def either(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
