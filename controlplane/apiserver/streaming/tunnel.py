"""A raw tunnel between a client's connection and a backend: upgraded protocols pass through and are not understood,
unless the caller brings a translation.

Owns the connection to the backend and the taking over of the client's. The request head is sent on with its Upgrade
and WebSocket headers unchanged; an answer of 101 joins the two connections until either ends, any other is read
(within a limit) and given back to be answered as usual. Promises: neither side is read faster than the other takes
it, an end of sending is passed on where the transport can, both connections are closed on every way out. Credentials
of the client never reach the backend. Called by `streams`.

The client's transport changes hands by `set_protocol`, before the head of the answer is written: no byte can be lost,
since a client sends nothing of its new protocol before it has seen the 101.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver.authentication.webbearer import without
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import TEXT, Answer, Headers, Hijacked, Response
from controlplane.apiserver.streaming import translator
from controlplane.apiserver.streaming.halves import Half, either, give_back
from controlplane.apiserver.streaming.translation import Translation, failure, node_headers, success
from controlplane.apiserver.streaming.websocket import handshake
from controlplane.machinery.errors import ApiError

CONNECT_SECONDS = 10.0  # a node that does not answer within this is not there
HEAD_SECONDS = 60.0  # the backend may first have to start a process
MAX_HEAD = 65536  # bytes of an answer's head
MAX_ERROR = 65536  # bytes of a refusal's body that are passed on
DIALING = "error dialing backend: "
_HIDDEN = ("host", "authorization", "cookie", "content-length", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Backend:
    """Where to connect; `tls` None means plain TCP. `name` is what its certificate must carry, "" = the host."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    name: str = ""

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _BackendHalf(Half):
    """The backend's side: gathers the head of the answer, then everything goes to the client."""

    def __init__(self) -> None:
        super().__init__()
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.arrived = asyncio.Event()  # more of a refusal's body, or its end
        self.lost = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport is both

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
            return
        self.buffer += data
        self.arrived.set()
        end = self.buffer.find(b"\r\n\r\n")
        if not self.head.done() and (end >= 0 or len(self.buffer) > MAX_HEAD):
            self.head.set_result(bytes(self.buffer[:end + 4]) if end >= 0 else b"")
            del self.buffer[:end + 4]
        if len(self.buffer) > MAX_HEAD + MAX_ERROR and self.transport is not None:
            self.transport.pause_reading()  # nobody wants that much of a refusal

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        self.arrived.set()
        if not self.head.done():
            self.head.set_result(b"")


def head_of(method: str, target: str, authority: str, headers: Mapping[str, str], told: Headers = ()) -> bytes:
    """The request head sent to a backend: the client's without its credentials, and what this server tells of it."""
    hidden = ("impersonate-", "x-remote-") if told else ("impersonate-",)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {without(value)}" for name, value in headers.items()
              if name.lower() not in _HIDDEN and not name.lower().startswith(hidden)]
    lines += [f"{name}: {value}" for name, value in told]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


async def run(request: Request, backend: Backend, target: str, told: Headers = (),
              translation: Translation | None = None) -> Answer:
    """Send `request` on to `target` (path and query) at `backend`; returns when the tunnel has ended, or with the
    backend's refusal. `told` are headers in which this server says who asks. With a `translation` the backend is asked
    for what that speaks, and what it says against it may be told in its terms. Raises ApiError 500 when it cannot be
    reached."""
    client = request.transport
    assert client is not None and request.raw is not None
    if translation is None or not translation.refusal(success()):
        return await _connected(request, client, backend, target, told, translation)
    try:
        answer = await _connected(request, client, backend, target, told, translation)
        if not isinstance(answer, Response):
            return answer
        status = status_of(answer.body)
    except ApiError as error:
        why = error.message.removeprefix(DIALING)
        if why != error.message:
            why = f'error sending request: Post "https://{backend.authority}{target}": {why}'
        status = failure(why)
    accepted = handshake(request.headers["Sec-WebSocket-Key"], translation.subprotocol)
    await translator.refuse(client, request.raw.protocol, translation, accepted + translation.refusal(status))
    return Hijacked()


def status_of(refusal: bytes) -> dict[str, Any]:
    """A backend's refusal as a Status: its own, or its text in one. Pure."""
    try:
        found = json.loads(refusal)
    except ValueError:
        found = None
    if isinstance(found, dict) and found.get("kind") == "Status":
        return found
    return failure(f"unable to upgrade connection: {refusal.decode('utf-8', 'replace').strip()}")


async def _connected(request: Request, client: asyncio.Transport, backend: Backend, target: str, told: Headers,
                     translation: Translation | None) -> Answer:
    assert request.raw is not None
    loop = asyncio.get_running_loop()
    half = _BackendHalf()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            transport, _ = await loop.create_connection(
                lambda: half, backend.host, backend.port, ssl=backend.tls,
                server_hostname=(backend.name or backend.host) if backend.tls is not None else None)
    except (OSError, TimeoutError) as error:
        raise unreachable(DIALING, backend, error) from None
    try:
        method, headers = (request.method, request.headers) if translation is None else (
            "POST", node_headers(request.headers, translation))
        transport.write(head_of(method, target, backend.authority, headers, told))
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await half.head
        except TimeoutError:
            raise unreachable(DIALING, backend, TimeoutError()) from None
        if _status(head) != 101:
            return await _refusal(head, half)
        if translation is None:
            await _join(client, request.raw.protocol, transport, half, head)
        else:
            accepted = handshake(request.headers["Sec-WebSocket-Key"], translation.subprotocol)
            await translator.join(client, request.raw.protocol, transport, bytes(half.buffer), translation, accepted)
        return Hijacked()
    finally:
        transport.close()


async def _join(client: asyncio.Transport, former: Any, backend: asyncio.Transport, half: _BackendHalf,
                head: bytes) -> None:
    """Pump until either side has ended, then give the client's connection back to be closed."""
    own = Half()
    own.peer = backend
    client.set_protocol(own)
    if not client.is_reading():  # the former protocol may have paused it
        client.resume_reading()
    client.write(head + bytes(half.buffer))
    half.buffer.clear()
    half.peer = client
    try:
        await either(own.ended, half.ended)
    finally:
        half.peer = None
        give_back(client, own, former)


def _status(head: bytes) -> int:
    parts = head.split(None, 2)
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 502


async def _refusal(head: bytes, half: _BackendHalf) -> Response:
    """The backend's answer as an answer of ours. Its body ends by its length or with the connection."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length", "")
    wanted = min(int(length), MAX_ERROR) if length.isdigit() else MAX_ERROR
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS):
            while not half.lost and len(half.buffer) < wanted and not (
                    chunked and half.buffer.endswith(b"0\r\n\r\n")):
                half.arrived.clear()
                await half.arrived.wait()
    body = unchunked(bytes(half.buffer)) if chunked else bytes(half.buffer[:wanted])
    return Response(_status(head), body, headers.get("content-type", TEXT))


def unchunked(data: bytes) -> bytes:
    """The content of a chunked body, as far as it is whole."""
    out = bytearray()
    while data:
        size, _, data = data.partition(b"\r\n")
        try:
            count = int(size.split(b";")[0], 16)
        except ValueError:
            break
        if not count:
            break
        out += data[:count]
        data = data[count + 2:]
    return bytes(out)


def unreachable(prefix: str, backend: Backend, error: BaseException) -> ApiError:
    """The 500 for a backend that cannot be reached, in the words of Go's dialer, which people search for."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"tls: failed to verify certificate: x509: {error.verify_message}"
        return ApiError(prefix + why, reason="")
    if isinstance(error, TimeoutError):
        why = "i/o timeout"
    elif isinstance(error, ConnectionRefusedError):
        why = "connect: connection refused"
    else:
        text = getattr(error, "strerror", None) or str(error)
        why = f"connect: {text.lower()}"
    return ApiError(f"{prefix}dial tcp {backend.authority}: {why}", reason="")
