"""One view of a request, built once: what the URL says, who asks, and the body on demand.

Owns the URL grammar (`target`) and the limits on bodies. It promises that parsing never touches the network and that
no body above `MAX_BODY` is held. It decides nothing about permission or existence. The server builds one per request;
every other module of the apiserver reads it.

Upstream: k8s.io/apiserver/pkg/endpoints/request (RequestInfo).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from controlplane.machinery.errors import BadRequest, TooLarge
from controlplane.machinery.resources import Registry, Resource

if TYPE_CHECKING:
    import asyncio

    from aiohttp import web

MAX_BODY = 3 * 1024 * 1024  # bytes; upstream's limit, so that what it accepts is accepted here and no more
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}
_NAMESPACE_SUBRESOURCES = ("status", "finalize")
_TRUE = ("1", "true", "True", "TRUE", "t", "T", "")


class Query:
    """The query parameters: a multi-map whose `get` gives the first value."""

    __slots__ = ("_pairs",)

    def __init__(self, raw: str) -> None:
        self._pairs: list[tuple[str, str]] = parse_qsl(raw, keep_blank_values=True) if raw else []

    def get(self, name: str, default: str = "") -> str:
        for key, value in self._pairs:
            if key == name:
                return value
        return default

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def flag(self, name: str) -> bool:
        """Whether a boolean parameter is set: present and neither `false` nor `0`."""
        return name in self and self.get(name) not in ("false", "0", "False", "FALSE", "f", "F")

    def integer(self, name: str) -> int | None:
        """The value as an int, None when absent or empty. Raises BadRequest."""
        text = self.get(name)
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise BadRequest(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __bool__(self) -> bool:
        return bool(self._pairs)


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means. `group_version` is set when the path lies in a group-version, `plural` when it names a
    resource; `rest` is what follows the subresource (a proxied path, without a leading slash)."""

    group: str = ""
    version: str = ""
    plural: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""
    watch: bool = False  # the legacy /watch/ form

    @property
    def is_resource(self) -> bool:
        return bool(self.plural)


NOT_A_RESOURCE = Target()


def target(path: str) -> Target:
    """Read a decoded URL path. Anything that is no resource path gives `NOT_A_RESOURCE`. Pure."""
    parts = path.split("/")
    if len(parts) < 4 or parts[0]:
        return NOT_A_RESOURCE
    if parts[1] == "api":
        group, version, parts = "", parts[2], parts[3:]
    elif parts[1] == "apis" and len(parts) > 4:
        group, version, parts = parts[2], parts[3], parts[4:]
    else:
        return NOT_A_RESOURCE
    watch = parts[0] == "watch" and len(parts) > 1
    if watch:
        parts = parts[1:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1 and parts[1]:
        namespace = parts[1]
        if len(parts) > 2 and parts[2] and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]
    if not parts[0]:
        return NOT_A_RESOURCE
    return Target(group, version, parts[0], namespace, parts[1] if len(parts) > 1 else "",
                  parts[2] if len(parts) > 2 else "", "/".join(parts[3:]), watch)


def origin_form(request_target: str) -> str:
    """A request target without the scheme and host of the absolute form, which every server must take (RFC 9112,
    3.2.2). The host counts for nothing: who is asked is who was connected to. Pure."""
    scheme, sign, rest = request_target.partition("://")
    if not sign or scheme.lower() not in ("http", "https"):
        return request_target
    begin = next((place for place, letter in enumerate(rest) if letter in "/?"), len(rest))
    return rest[begin:] if rest[begin:begin + 1] == "/" else "/" + rest[begin:]


def verb_of(method: str, named: bool, watch: bool) -> str:
    """The API verb of an HTTP method, "" for a method no resource answers."""
    if method == "GET":
        return "watch" if watch else "get" if named else "list"
    verb = _VERBS.get(method, "")
    return "deletecollection" if verb == "delete" and not named else verb


@dataclass(slots=True, eq=False)
class Request:
    """One request. `verb` is an API verb for a resource path and the lower-case method otherwise.

    `namespace` is what the URL says, also for `/api/v1/namespaces/<name>` itself; use `resource.namespaced` to build
    keys. `resource` is None when the registry serves no such resource (`plural` still tells its name).
    `user` is set after authentication; `asker` is who sent it, when `user` is whom they act as.
    `connection` is a dict that lives as long as the client's connection.
    `warnings` collects texts for `Warning` headers, `annotations` what the audit log shall tell beside the request.
    `trace` holds header lines the answer carries whatever it is;
    `received` is the wall time the request came at, when it is recorded.
    """

    method: str
    path: str  # percent-decoded, without the query
    raw_query: str
    headers: Mapping[str, str]
    raw: web.BaseRequest | None = None
    connection: dict[str, Any] = field(default_factory=dict)
    target: Target = NOT_A_RESOURCE
    resource: Resource | None = None
    verb: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    user: Any = None
    asker: Any = None
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, str] | None = None
    trace: bytes = b""
    received: float = 0.0
    _query: Query | None = None
    _body: bytes | None = None

    @property
    def query(self) -> Query:
        if self._query is None:
            self._query = Query(self.raw_query)
        return self._query

    @property
    def plural(self) -> str:
        return self.target.plural

    @property
    def rest(self) -> str:
        return self.target.rest

    @property
    def is_resource(self) -> bool:
        return bool(self.target.plural)

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")

    @property
    def accept(self) -> str:
        return self.headers.get("Accept", "")

    @property
    def user_agent(self) -> str:
        return self.headers.get("User-Agent", "")

    @property
    def transport(self) -> asyncio.Transport | None:
        return self.raw.transport if self.raw is not None else None  # type: ignore[return-value]

    @property
    def remote(self) -> str:
        """The peer's address, "" when unknown."""
        return (self.raw.remote or "") if self.raw is not None else ""

    def client_certificate(self) -> bytes | None:
        """The DER of the certificate the client proved to own, verified against the client CA by the TLS layer."""
        transport = self.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        return tls.getpeercert(True) if tls is not None else None

    async def body(self) -> bytes:
        """The whole body, read once. Raises TooLarge above MAX_BODY."""
        if self._body is None:
            self._body = await self._read()
        return self._body

    def read_body(self) -> bytes | None:
        """The body when it has been read, else None."""
        return self._body

    async def _read(self) -> bytes:
        if self.raw is None or not self.raw.body_exists:
            return b""
        if (self.raw.content_length or 0) > MAX_BODY:
            raise TooLarge(f"Request entity too large: limit is {MAX_BODY}")
        if self.headers.get("Expect", "").lower() == "100-continue" and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        from aiohttp.http_exceptions import HttpProcessingError
        from aiohttp.web import RequestPayloadError
        chunks, size = [], 0
        content = self.raw.content
        try:
            while chunk := await content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_BODY:
                    raise TooLarge(f"Request entity too large: limit is {MAX_BODY}")
        except (RequestPayloadError, HttpProcessingError):  # framed wrongly, or not compressed as it says
            raise BadRequest("the body of the request cannot be read") from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def field_manager(self) -> str:
        """Who writes: `fieldManager`, else the user agent up to its first slash."""
        return self.query.get("fieldManager") or self.user_agent.partition("/")[0] or "unknown"

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def build(method: str, raw_path: str, headers: Mapping[str, str], registry: Registry,
          raw: web.BaseRequest | None = None, connection: dict[str, Any] | None = None) -> Request:
    """The Request of a request line. `raw_path` is as on the wire, with its query."""
    if raw_path[:4].lower() == "http":
        raw_path = origin_form(raw_path)
    path, _, query = raw_path.partition("?")
    if "%" in path:
        path = unquote(path)
    request = Request(method, path, query, headers, raw, {} if connection is None else connection)
    where = target(path)
    if not where.plural:
        request.verb = method.lower()
        return request
    request.target = where
    request.resource = registry.at(where.group, where.version, where.plural)
    request.namespace, request.name, request.subresource = where.namespace, where.name, where.subresource
    watch = where.watch
    if query and not where.name and method == "GET" and "watch=" in query:
        watch = watch or request.query.get("watch") in _TRUE
    if method in ("HEAD", "OPTIONS") and where.subresource == "proxy":
        method = "GET"  # whoever is proxied may know it; no resource does
    request.verb = verb_of(method, bool(where.name), watch)
    return request
