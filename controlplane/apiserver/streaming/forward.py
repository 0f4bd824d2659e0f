"""Plain HTTP to a backend, streamed both ways: container logs and proxied requests.

Owns one HTTP client for all backends. Promises: bodies pass through in pieces as they come, never gathered (but for
errors, within a limit); hop-by-hop headers and the client's credentials stay here; a backend that ends early cuts the
client's answer rather than completing it. Called by `streams`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Answer, Headers, Response, Stream, Writer
from controlplane.apiserver.streaming import links
from controlplane.apiserver.streaming.tunnel import CONNECT_SECONDS, Backend, unreachable
from controlplane.machinery.errors import ApiError, BadRequest, InternalError, ServiceUnavailable

MAX_ERROR = 50_000  # bytes of a backend's refusal that are read; upstream's bound
PAGE_BYTES = 1 << 20  # of a web page whose links are put right; a longer one passes as it is
IDLE_SECONDS = 15.0  # a connection to a backend is kept this long for a following request
_HOP = frozenset(("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
                  "transfer-encoding", "upgrade", "content-length", "host", "authorization", "cookie", "date",
                  "expect"))
# What the HTTP client would say on its own: the answer goes to somebody else, who may not have said it.
_UNASKED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Forwarder:
    """The HTTP client, made at first use."""

    def __init__(self) -> None:
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            # No bound on the whole: a log is followed for days. Connecting is bounded.
            bounds = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._client = aiohttp.ClientSession(connector=connector, timeout=bounds, auto_decompress=False,
                                                 cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=_UNASKED)
        return self._client

    async def get(self, backend: Backend, target: str) -> aiohttp.ClientResponse:
        """A successful answer of a kubelet, its body unread. Raises the ApiError its refusal means."""
        url = _url(backend, target)
        try:
            answer = await self._session().get(url, ssl=backend.tls or False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(f'Get "{url}": ', backend, _cause(error)) from None
        if 200 <= answer.status <= 206:
            return answer
        async with answer:
            text = (await answer.content.read(MAX_ERROR)).decode("utf-8", "replace").rstrip("\n")
        if answer.status == 400:
            raise BadRequest(text)
        if answer.status == 500:
            raise InternalError.of(text)
        raise ApiError(text or "the server could not find the requested resource", code=answer.status,
                       reason="NotFound" if answer.status == 404 else "")

    async def ask(self, backend: Backend, target: str, headers: list[tuple[str, str]]) -> aiohttp.ClientResponse:
        """Whatever a backend answers to a GET, its body unread. Raises ServiceUnavailable."""
        url = _url(backend, target)
        try:
            return await self._session().get(url, ssl=backend.tls or False, server_hostname=backend.name or None,
                                             headers=CIMultiDict(headers), allow_redirects=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServiceUnavailable(unreachable(f'Get "{url}": ', backend, _cause(error)).message) from None

    async def pass_on(self, request: Request, backend: Backend, target: str, root: str, told: Headers = ()) -> Answer:
        """A proxied request's answer. `root` is the URL path that stands for the backend's `/`; `told` are headers in
        which this server says who asks, and nobody else can."""
        hidden = ("impersonate-", "x-remote-") if told else ("impersonate-",)
        headers = CIMultiDict((k, v) for k, v in request.headers.items()
                              if k.lower() not in _HOP and not k.lower().startswith(hidden))
        headers.extend(told)
        headers["X-Forwarded-Uri"] = root + target
        if request.remote:
            headers["X-Forwarded-For"] = request.remote
        def ask(method: str) -> Any:
            return self._session().request(method, _url(backend, target), headers=headers, data=_body(request),
                                           allow_redirects=False, ssl=backend.tls or False,
                                           server_hostname=backend.name or None)

        try:
            try:
                answer = await ask(request.method)
            except aiohttp.ClientResponseError:
                if request.method != "HEAD":
                    raise
                answer = await ask("GET")  # small servers send a body with it, which no parser here lets pass
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failed = unreachable("error trying to reach service: ", backend, _cause(error))
            raise ServiceUnavailable(failed.message) from None
        kept = [(k, v if k.lower() != "location" or not v.startswith("/") else root + v)
                for k, v in answer.headers.items() if k.lower() not in _HOP | {"content-type"}]
        kind = answer.headers.get("Content-Type", "")
        if request.method == "HEAD" or answer.status in (204, 304):
            answer.release()
            return Response(answer.status, b"", kind, kept)
        if root and kind.partition(";")[0].strip().lower() == "text/html":
            return await _page(answer, kept, root, (backend.authority, request.headers.get("Host", "")))
        return Stream(_Pump(answer), answer.status, kind, kept)


async def whole(answer: aiohttp.ClientResponse, limit: int, too_long: str) -> bytes:
    """The body of an answer to a question of this server's own. Raises ServiceUnavailable(`too_long`) above `limit`."""
    body = bytearray()
    async with answer:
        async for piece in answer.content.iter_any():
            body += piece
            if len(body) > limit:
                raise ServiceUnavailable(too_long)
    return bytes(body)


def text(answer: aiohttp.ClientResponse) -> Stream:
    """A log as it comes."""
    return Stream(_Pump(answer), 200, "text/plain")


async def _page(answer: aiohttp.ClientResponse, headers: list[tuple[str, str]], root: str,
                hosts: tuple[str, ...]) -> Answer:
    """A web page with its links put below `root`; too long, or packed in a way not known here, it passes as it is."""
    kind = answer.headers.get("Content-Type", "")
    try:
        body, whole = await answer.content.readexactly(PAGE_BYTES), False
    except asyncio.IncompleteReadError as end:
        body, whole = end.partial, True
    except aiohttp.ClientError as error:
        raise ConnectionResetError("the backend ended early") from error
    page = _unpacked(body, answer.headers.get("Content-Encoding", "")) if whole else None
    if page is None:
        return Stream(_Pump(answer, body), answer.status, kind, headers)
    answer.release()
    page = await asyncio.to_thread(links.rewritten, page, root, hosts)
    return Response(answer.status, page, kind, [(k, v) for k, v in headers if k.lower() != "content-encoding"])


def _unpacked(body: bytes, encoding: str) -> bytes | None:
    """The page itself; None when it is packed in another way than gzip, damaged, or longer than PAGE_BYTES."""
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() != "gzip":
        return None
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        page = unpacker.decompress(body, PAGE_BYTES)
    except zlib.error:
        return None
    return page if unpacker.eof else None


class _Pump:
    """Writes an answer's body to the client, each piece at once, after what was read of it before."""

    def __init__(self, answer: aiohttp.ClientResponse, before: bytes = b"") -> None:
        self._answer = answer
        self._before = before

    async def __call__(self, writer: Writer) -> None:
        try:
            if self._before:
                await writer.write(self._before)
            async for piece in self._answer.content.iter_any():
                await writer.write(piece)
        except aiohttp.ClientError as error:
            raise ConnectionResetError("the backend ended early") from error
        finally:
            self._answer.close()


def _url(backend: Backend, target: str) -> URL:
    scheme = "https" if backend.tls is not None else "http"
    return URL(f"{scheme}://{backend.authority}{target}", encoded=True)


def _cause(error: BaseException) -> BaseException:
    """The operating system's or TLS' error inside one of the client library."""
    for name in ("os_error", "certificate_error"):
        if (inner := getattr(error, name, None)) is not None:
            return inner if isinstance(inner, BaseException) else error
    return TimeoutError() if isinstance(error, TimeoutError) else error


def _body(request: Request) -> AsyncIterator[bytes] | None:
    if request.raw is None or not request.raw.body_exists:
        return None
    return request.raw.content.iter_any()
