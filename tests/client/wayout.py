"""A way out for a test host without a route: an HTTP proxy that listens inside the host and connects from outside.

Only the listening socket is made in the host's network namespace, so no address, link or rule is added anywhere else.
It carries what package managers ask: plain requests by absolute URI, one per connection, and CONNECT.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from urllib.parse import urlsplit

PORT = 3128
HEADER_LIMIT = 1 << 16  # bytes of a request's head
CHUNK = 1 << 16
HOP_BY_HOP = (b"connection:", b"proxy-")
READY_SECONDS = 10.0


class WayOut:
    """Serves from a thread of its own from construction to `close`. `listener` is bound and listening."""

    def __init__(self, listener: socket.socket) -> None:
        self._loop = asyncio.new_event_loop()
        self._serving = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,))
        self._thread.start()
        assert self._serving.wait(READY_SECONDS)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(_carry, sock=listener, limit=HEADER_LIMIT))
        self._serving.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(server.wait_closed())
        self._loop.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, version = head.split(b"\r\n", 1)[0].decode().split()
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        assert url.hostname is not None
        far_reader, far_writer = await asyncio.open_connection(url.hostname, url.port or 80)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            lines = [line for line in head.split(b"\r\n")[1:-2] if not line.lower().startswith(HOP_BY_HOP)]
            lines = [f"{method} {path} {version}".encode(), *lines, b"Connection: close"]
            far_writer.write(b"\r\n".join([*lines, b"", b""]))
        await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the client sees its connection end and says so
    finally:
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
