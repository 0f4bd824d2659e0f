"""Answers, written through the transport with a minimal head.

Owns how an answer goes on the wire: a whole body (`Response`), a body that grows (`Stream`), and a connection that has
been taken over (`Hijacked`). Each promises to leave the connection ready for the next request, or closed. They hold the
two methods that aiohttp's low-level server calls on a handler's result, `prepare` and `write_eof`; that machinery's own
headers, cookies and payload writers are passed by, which is most of what a small GET costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from controlplane.machinery.errors import ApiError

if TYPE_CHECKING:
    from aiohttp import web

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
Headers = Sequence[tuple[str, str]]

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_heads: dict[tuple[int, str], bytes] = {}  # bounded: statuses x content types the modules use, never client input
_date: tuple[int, bytes] = (0, b"")
SLICE = 256 * 1024  # bytes encrypted at once: a millisecond of the event loop
STALLED_SECONDS = 60.0  # a reader that takes nothing for so long is cut, so that its answer is not held for ever
JOIN_BELOW = 65536  # bytes; below, head and body leave in one TLS record, above a copy costs more than a record


def _date_line() -> bytes:
    """`Date:` of this second. The one place that reads the wall clock outside `clock`: it is transport, not data."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
    return _date[1]


def _head(status: int, content_type: str) -> bytes:
    head = _heads.get((status, content_type))
    if head is None:
        line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()
        kind = f"Content-Type: {content_type}\r\n" if content_type else ""
        head = line + f"Cache-Control: no-cache, private\r\n{kind}".encode()
        if len(_heads) < 512:
            _heads[status, content_type] = head
    return head


def _lines(headers: Headers) -> bytes:
    clean = ((n, v.replace("\r", " ").replace("\n", " ")) for n, v in headers)  # no value may start a new header
    return "".join(f"{name}: {value}\r\n" for name, value in clean).encode("utf-8", "replace")


class Response:
    """A whole answer. `headers` are extra lines, `Content-Length` and the like are added here; `around` stands before
    and after a body that is shared and large; `trace` are the lines the pipeline adds to every answer, ready for the
    wire."""

    __slots__ = ("content_type", "headers", "keep_alive", "pieces", "size", "status", "trace")

    def __init__(self, status: int = 200, body: bytes = b"", content_type: str = JSON,
                 headers: Headers = (), around: tuple[bytes, bytes] | None = None) -> None:
        self.status = status
        self.pieces = (body,) if around is None else (around[0], body, around[1])
        self.size = len(body) if around is None else sum(map(len, self.pieces))
        self.content_type = content_type
        self.headers = headers
        self.keep_alive = True
        self.trace = b""

    @property
    def body(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def head(self, keep_alive: bool = True) -> bytes:
        """Status line and headers up to the empty line."""
        extra = _lines(self.headers) if self.headers else b""
        close = b"" if keep_alive else b"Connection: close\r\n"
        return b"%b%b%b%b%bContent-Length: %d\r\n\r\n" % (
            _head(self.status, self.content_type), _date_line(), self.trace, extra, close, self.size)

    async def prepare(self, raw: web.BaseRequest) -> None:
        self.keep_alive = bool(raw.keep_alive)
        transport = raw.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        head = self.head(self.keep_alive)
        if raw.method == "HEAD" or not self.size:
            transport.write(head)
        elif self.size < JOIN_BELOW:
            transport.write(head + self.body)
        else:
            await self._in_slices(raw, transport, head)
        if raw.protocol._paused:  # a reader slower than us: wait before taking its next request
            await raw.protocol._drain_helper()

    async def _in_slices(self, raw: web.BaseRequest, transport: asyncio.Transport | asyncio.BaseTransport,
                         head: bytes) -> None:
        """A large body piece by piece: others are served in between, and no more than a piece waits encrypted for a
        slow reader."""
        transport.write(head)  # type: ignore[union-attr]
        for piece in self.pieces:
            body = memoryview(piece)
            for start in range(0, len(body), SLICE):
                if transport.is_closing():
                    raise ConnectionResetError("the client has gone")
                transport.write(body[start:start + SLICE])  # type: ignore[union-attr]
                if raw.protocol._paused:
                    async with asyncio.timeout(STALLED_SECONDS):
                        await raw.protocol._drain_helper()
                elif start + SLICE < len(body):
                    await asyncio.sleep(0)

    async def write_eof(self) -> None:
        """Nothing is left to write."""


class Writer:
    """The growing end of a `Stream`: every `write` is one chunk, sent at once."""

    __slots__ = ("_raw", "chunked")

    def __init__(self, raw: web.BaseRequest, chunked: bool) -> None:
        self._raw = raw
        self.chunked = chunked

    @property
    def closed(self) -> bool:
        transport = self._raw.transport
        return transport is None or transport.is_closing()

    async def write(self, data: bytes) -> None:
        """Send; waits while the client's buffer is full. Raises ConnectionResetError."""
        transport = self._raw.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if not data:
            return
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        if self._raw.protocol._paused:
            await self._raw.protocol._drain_helper()


class Stream:
    """An answer written by `run(writer)` until it returns. An exception of `run` cuts the connection."""

    __slots__ = ("content_type", "headers", "keep_alive", "run", "status", "trace")

    def __init__(self, run: Callable[[Writer], Awaitable[None]], status: int = 200, content_type: str = JSON,
                 headers: Headers = ()) -> None:
        self.run = run
        self.status = status
        self.content_type = content_type
        self.headers = headers
        self.keep_alive = True
        self.trace = b""

    async def prepare(self, raw: web.BaseRequest) -> None:
        chunked = raw.version >= (1, 1)
        self.keep_alive = bool(raw.keep_alive) and chunked
        transport = raw.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        framing = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        close = b"" if self.keep_alive else b"Connection: close\r\n"
        transport.write(b"".join((_head(self.status, self.content_type), _date_line(), self.trace, _lines(self.headers),
                                  framing, close, b"\r\n")))
        try:
            await self.run(Writer(raw, chunked))
        except BaseException:
            if raw.transport is not None:
                raw.transport.abort()  # an unfinished chunked body tells the client that it was cut
            raise
        if raw.transport is not None and chunked:
            raw.transport.write(b"0\r\n\r\n")

    async def write_eof(self) -> None:
        """The last chunk was written by prepare."""


class Hijacked:
    """The connection was taken over (an upgrade): nothing more is written, and it is not used again."""

    __slots__ = ("trace",)
    keep_alive = False
    status = 101

    def __init__(self) -> None:
        self.trace = b""  # for the record: the head was written by the taker

    async def prepare(self, raw: web.BaseRequest) -> None:
        """The taker wrote the head."""

    async def write_eof(self) -> None:
        """The taker closes."""


Answer = Response | Stream | Hijacked


def json_response(obj: Any, status: int = 200, headers: Headers = ()) -> Response:
    """A JSON body of any object."""
    return Response(status, orjson.dumps(obj), JSON, headers)


def text_response(text: str, status: int = 200, headers: Headers = ()) -> Response:
    return Response(status, text.encode(), TEXT, headers)


def error_response(error: ApiError) -> Response:
    """An error's Status, with `Retry-After` when its details carry `retryAfterSeconds`."""
    after = (error.details or {}).get("retryAfterSeconds")
    headers = [("Retry-After", str(after))] if after else []
    return json_response(error.status(), error.http_code, headers)
