"""A few small pages over plain HTTP: metrics and health of the node's parts, for monitoring.

Owns the server and its limits; costs nothing while nobody asks. What a page says is its owner's.

Called by `dns.metrics` and `proxy.report`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REQUEST_LIMIT = 8192  # bytes of a request's head
REQUEST_SECONDS = 5.0
METRICS = "text/plain; version=0.0.4; charset=utf-8"
REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Page:
    text: str
    status: int = 200
    kind: str = "text/plain; charset=utf-8"


Maker = Callable[[], Page]


async def serve(pages: Mapping[str, Maker], address: str, port: int) -> None:
    """Until cancelled. Raises OSError when the port is taken."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1")
            page = pages[path]() if path in pages else Page("404 page not found\n", 404)
            body = page.text.encode()
            writer.write(f"HTTP/1.1 {page.status} {REASONS[page.status]}\r\nContent-Type: {page.kind}\r\n"
                         f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                         .encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, address, port, limit=REQUEST_LIMIT)
    async with server:
        await server.serve_forever()
