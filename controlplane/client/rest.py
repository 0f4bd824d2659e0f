"""Requests to the API server: plain dicts in, plain dicts or `ApiError`s out.

Owns the one HTTP session of a process. Promises that every failure is an `ApiError` (`Unreachable` if no answer came),
that no request waits longer than its named time-out, that a server asking for patience (429 with Retry-After) is obeyed
within bounds, and that a watch line of any length up to `WATCH_LINE_LIMIT` is taken. Never caches an object; `informer`
does. Called by everything that talks to the API server.

Upstream: k8s.io/client-go/rest.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson
from yarl import URL

from controlplane.client.config import ClientConfig
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, InternalError, ServiceUnavailable, TooLarge, from_status
from controlplane.machinery.resources import Resource

REQUEST_SECONDS = 60.0  # the server itself gives up on an ordinary request after 60 s
REQUESTS_AT_ONCE = 16  # of one client, watches aside: more only queue at the server, and each costs a TLS connection
CONNECT_SECONDS = 10.0  # a reachable server answers a TCP and TLS handshake far sooner
IDLE_CONNECTION_SECONDS = 30.0  # keep-alive: shorter than any server's, so that we rarely write to a closing socket
WATCH_SECONDS = 300.0  # the server ends a watch after this to twice this: clients spread over servers again
WATCH_GRACE_SECONDS = 30.0  # how much later than promised the end may come before the connection counts as dead
WATCH_LINE_LIMIT = 16 << 20  # bytes of one watch event: objects are at most 1.5 MB, with room for escapes
RETRY_LIMIT = 5  # tries of one request that is told to come back later
RETRY_AFTER_LIMIT = 10.0  # seconds we are willing to wait for one Retry-After
TOKEN_SECONDS = 60.0  # how long a token read from a file is trusted: the node agent renews bound tokens by the minute
PAGE = 500  # objects per page of a list: what upstream's clients ask for

PATCH_TYPES = {"strategic": "application/strategic-merge-patch+json", "merge": "application/merge-patch+json",
               "json": "application/json-patch+json", "apply": "application/apply-patch+yaml"}
_METADATA = "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1,application/json"
_KEEPALIVE = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
              (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3))
Objects = list[dict[str, Any]]
_ABSENT = (aiohttp.ClientError, TimeoutError, OSError)


class Unreachable(ServiceUnavailable):
    """No answer came: refused, reset, timed out, or TLS failed. Whether a write took place is unknown."""


class Client:
    """A session with one API server as one identity. Use as an async context manager."""

    def __init__(self, config: ClientConfig, *, user_agent: str = "pelamis", clock: Clock = SYSTEM) -> None:
        self.config = config
        self.clock = clock
        self.user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._readers: Counter[aiohttp.ClientSession] = Counter()  # answers that are read, by session
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._token = config.token
        self._token_until = 0.0

    async def __aenter__(self) -> Client:
        self._open()
        return self

    def _open(self) -> None:
        context = self.config.ssl_context()
        # No limit: watches hold their connection for minutes, and a limit would let them starve the requests.
        connector = aiohttp.TCPConnector(limit=0, ssl=True if context is None else context,
                                         keepalive_timeout=IDLE_CONNECTION_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": self.user_agent},
                                              auto_decompress=True, cookie_jar=aiohttp.DummyCookieJar())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        for session in {self._session, *self._readers} - {None}:
            await session.close()  # type: ignore[union-attr]
        self._session = None

    async def renew(self, config: ClientConfig) -> None:
        """Be the identity of `config` from the next request on. What runs is not disturbed: the former session is
        closed when its last answer is read; watches end by themselves within minutes."""
        former = self._session
        self.config, self._token, self._token_until = config, config.token, 0.0
        self._open()
        if former is not None and former not in self._readers:
            await former.close()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The session of now, which is not closed before the end of this."""
        session = self._session
        if session is None:
            raise RuntimeError("the client is closed")
        self._readers[session] += 1
        try:
            yield session
        finally:
            self._readers[session] -= 1
            if not self._readers[session]:
                del self._readers[session]
                if session is not self._session:
                    await session.close()

    # --- verbs -------------------------------------------------------------------------------------------------

    async def get(self, resource: Resource, name: str, namespace: str = "", *, subresource: str = "",
                  metadata: bool = False) -> dict[str, Any]:
        """One object. Raises NotFound."""
        headers = {"Accept": _METADATA.format(list="")} if metadata else None
        return await self._json("GET", resource.path(namespace, name, subresource), headers=headers)

    async def list(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                   limit: int = 0) -> tuple[Objects, str]:
        """(all objects, the revision they were read at), fetched `limit` per page when given."""
        items: Objects = []
        revision = ""
        async for page, revision in self.pages(resource, namespace, labels, fields, limit=limit):  # noqa: B007
            items += page
        return items, revision

    async def pages(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "", *,
                    limit: int = PAGE, metadata: bool = False) -> AsyncIterator[tuple[Objects, str]]:
        """(objects, revision) per page, all of one revision. Raises Expired when a slow reader outlives it."""
        token = ""
        headers = {"Accept": _METADATA.format(list="List")} if metadata else None
        while True:
            query = _query(labelSelector=labels, fieldSelector=fields, limit=limit or "", **{"continue": token})
            body = await self._json("GET", resource.path(namespace), query, headers=headers)
            meta = body.get("metadata") or {}
            items = body.get("items") or []
            for item in items:  # items of a list omit their type; whoever gets one alone needs it
                item["apiVersion"], item["kind"] = resource.api_version, resource.kind
            yield items, meta.get("resourceVersion", "")
            token = meta.get("continue") or ""
            if not token:
                return

    async def create(self, resource: Resource, obj: dict[str, Any], namespace: str = "", subresource: str = "",
                     name: str = "") -> dict[str, Any]:
        """POST; `name` and `subresource` for a binding, an eviction, a token. Raises AlreadyExists."""
        namespace = namespace or _meta(obj, "namespace")
        return await self._json("POST", resource.path(namespace, name, subresource), body=obj)

    async def update(self, resource: Resource, obj: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        """PUT of the whole object; with its resourceVersion it raises Conflict when somebody was faster."""
        path = resource.path(_meta(obj, "namespace"), _meta(obj, "name"), subresource)
        return await self._json("PUT", path, body=obj)

    async def patch(self, resource: Resource, name: str, patch: Any, namespace: str = "", kind: str = "strategic",
                    subresource: str = "", *, force: bool = False) -> dict[str, Any]:
        """PATCH of type `kind` (a key of PATCH_TYPES); apply patches act as the field manager `user_agent`."""
        query = _query(fieldManager=self.user_agent.split("/")[0], force="true" if force else "") \
            if kind == "apply" else ""
        return await self._json("PATCH", resource.path(namespace, name, subresource), query, body=patch,
                                headers={"Content-Type": PATCH_TYPES[kind]})

    async def delete(self, resource: Resource, name: str, namespace: str = "", grace: int | None = None,
                     propagation: str | None = None, uid: str = "", revision: str = "") -> dict[str, Any]:
        """DELETE; `uid` and `revision` are preconditions (Conflict). Returns the object or a Status."""
        return await self._json("DELETE", resource.path(namespace, name),
                                body=_delete_options(grace, propagation, uid, revision))

    async def delete_collection(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                                grace: int | None = None, propagation: str | None = None) -> dict[str, Any]:
        """DELETE of every object that matches. Returns the list of them."""
        return await self._json("DELETE", resource.path(namespace), _query(labelSelector=labels, fieldSelector=fields),
                                body=_delete_options(grace, propagation, "", ""))

    async def raw(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
        """The response's body for a path with query (`/healthz?verbose`); dicts and lists are sent as JSON."""
        return await self._send(method, path, body, headers)

    # --- watching ----------------------------------------------------------------------------------------------

    async def watch(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                    revision: str = "", *, metadata: bool = False) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(type, object) for each change after `revision`, BOOKMARKs included, until the server ends the watch.

        Raises Expired when the revision is too old, and whatever error the server reports in the stream."""
        seconds = int(self.clock.jitter(WATCH_SECONDS, 1.0))
        query = _query(watch="true", allowWatchBookmarks="true", timeoutSeconds=seconds, labelSelector=labels,
                       fieldSelector=fields, resourceVersion=revision)
        headers = {"Accept": _METADATA.format(list="")} if metadata else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS,
                                        sock_read=seconds + WATCH_GRACE_SECONDS)
        try:
            async with self._answer("GET", f"{resource.path(namespace)}?{query}", None, headers, timeout) as response:
                _keep_alive(response)
                async for line in split_lines(response.content.iter_any()):
                    event = _decoded(line)
                    kind, obj = event.get("type", ""), event.get("object") or {}
                    if kind == "ERROR":
                        raise from_status(obj)
                    yield kind, obj
        except _Patience as asked:
            raise asked.error from None

    # --- the wire ----------------------------------------------------------------------------------------------

    async def _json(self, method: str, path: str, query: str = "", *, body: Any = None,
                    headers: dict[str, str] | None = None) -> dict[str, Any]:
        return _decoded(await self._send(method, f"{path}?{query}" if query else path, body, headers))

    async def _send(self, method: str, target: str, body: Any, headers: dict[str, str] | None) -> bytes:
        """One request, sent again as long as the server asks for patience and RETRY_LIMIT allows."""
        sent = {"Accept": "application/json"} | (headers or {})
        if body is not None and not isinstance(body, bytes | str):
            body = orjson.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        for attempt in range(1, RETRY_LIMIT + 1):
            try:
                async with self._slots, self._answer(method, target, body, sent, timeout) as response:
                    return await response.read()
            except _Patience as asked:
                if attempt == RETRY_LIMIT:
                    raise asked.error from None
                await self.clock.sleep(self.clock.jitter(asked.seconds, 0.2))
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def _answer(self, method: str, target: str, body: Any, headers: dict[str, str],
                      timeout: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientResponse]:
        """The successful response, streaming. Raises ApiError, Unreachable, or _Patience when told to come back."""
        if token := self._bearer():
            headers = {**headers, "Authorization": f"Bearer {token}"}
        try:
            async with self._reading() as session, session.request(
                    method, URL(self.config.server + target, encoded=True), data=body, headers=headers,
                    timeout=timeout, allow_redirects=False,
                    server_hostname=self.config.server_name or None) as response:
                if response.status >= 300:
                    raise _failure(response, await response.read(), method)
                yield response
        except _ABSENT as error:
            raise Unreachable(f"{method} {self.config.server}: {str(error) or type(error).__name__}") from error

    def _bearer(self) -> str:
        """The token to send; one in a file is read again when it may have been renewed."""
        if self.config.token_file and self.clock.monotonic() >= self._token_until:
            try:
                with open(self.config.token_file) as file:
                    self._token = file.read().strip()
            except OSError as error:
                raise Unreachable(f"cannot read the token file {self.config.token_file}: {error.strerror}") from error
            self._token_until = self.clock.monotonic() + TOKEN_SECONDS
        return self._token


class _Patience(Exception):  # noqa: N818 - no failure yet: the server asked to come back after `seconds`
    def __init__(self, seconds: float, error: ApiError) -> None:
        super().__init__(error.message)
        self.seconds, self.error = seconds, error


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines without their newline, however the chunks cut them. Raises TooLarge beyond WATCH_LINE_LIMIT."""
    parts: list[bytes] = []  # of the line not yet ended; joined once, so that a huge line costs linear time
    size = 0
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            line = b"".join([*parts, piece]) if parts else piece
            parts, size = [], 0
            if line.strip():
                yield line
        if rest:
            parts.append(rest)
            size += len(rest)
            if size > WATCH_LINE_LIMIT:
                raise TooLarge(f"a watch event exceeds {WATCH_LINE_LIMIT} bytes")
    if parts:
        raise aiohttp.ClientPayloadError("the watch was cut in the middle of an event")


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Let the kernel find a dead peer: a quiet watch must neither hang for ever nor cost us a timer."""
    transport = response.connection.transport if response.connection else None
    peer = transport.get_extra_info("socket") if transport else None
    if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
        for level, option, value in _KEEPALIVE:
            peer.setsockopt(level, option, value)


def _failure(response: aiohttp.ClientResponse, body: bytes, method: str) -> Exception:
    """The error a response stands for; _Patience when it may be repeated: 429 always, 5xx only for reads."""
    try:
        status = orjson.loads(body)
    except orjson.JSONDecodeError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        text = body[:200].decode("utf-8", "replace").strip()
        status = {"message": f"{response.status} {response.reason}" + (f": {text}" if text else "")}
    error = from_status(status, response.status)
    after = response.headers.get("Retry-After", "")
    if after.isdigit() and (response.status == 429 or (response.status >= 500 and method == "GET")):
        return _Patience(min(float(after), RETRY_AFTER_LIMIT), error)
    return error


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InternalError(f"the server's answer is not JSON: {error}") from error


def _delete_options(grace: int | None, propagation: str | None, uid: str, revision: str) -> dict[str, Any]:
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    if propagation:
        options["propagationPolicy"] = propagation
    if uid or revision:
        wanted = {"uid": uid, "resourceVersion": revision}
        options["preconditions"] = {name: value for name, value in wanted.items() if value}
    return options


def _query(**parameters: Any) -> str:
    return urlencode({name: value for name, value in parameters.items() if value != ""})


def _meta(obj: dict[str, Any], name: str) -> str:
    return (obj.get("metadata") or {}).get(name) or ""


