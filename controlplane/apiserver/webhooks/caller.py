"""Calls of webhooks: one POST of JSON over TLS, to a URL or to a Service.

Owns where a client configuration leads and who is trusted there: the given caBundle, else the system's authorities. A
Service is resolved from the store, not by DNS: a ready endpoint is called directly under the name
`<service>.<namespace>.svc`, which its certificate must carry; a Service without endpoints of its own is called at its
cluster IP. Promises an answer of bounded size within the time given, or `CallFailed` with upstream's text. Connections
are kept for the next call. Called by `dispatch`.

Upstream: k8s.io/apiserver/pkg/util/webhook.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from controlplane.apiserver.services import servicebackends
from controlplane.apiserver.services.servicebackends import NowhereToCall

if TYPE_CHECKING:
    import aiohttp

    from controlplane.apiserver.context import Context

MAX_ANSWER = 16 << 20  # bytes: a patch may carry a whole object, base64 in JSON; objects are bounded by 3 MiB
CA_KEPT = 64  # TLS contexts, one per CA bundle in use; about 50 kB each
IDLE_SECONDS = 30.0  # a connection is kept this long for the next review
CONNECTIONS = 100  # to all webhooks together: more reviews at once wait for a free one
Object = dict[str, Any]


class CallFailed(Exception):  # noqa: N818 - what it means for the request is the caller's to say
    """The webhook could not be called, or did not answer properly; the text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """`url` to call, `told` in messages, `host` its certificate must carry ("" = the URL's)."""

    url: str
    told: str
    host: str = ""


@lru_cache(CA_KEPT)
def trust(bundle: str) -> ssl.SSLContext:
    """A TLS context for a base64 caBundle, "" for the system's authorities. Raises CallFailed."""
    if not bundle:
        return ssl.create_default_context()
    try:
        made = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
    except (ValueError, ssl.SSLError) as error:
        raise CallFailed(f"unable to load root certificates: {error}") from None
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # hand-made authorities often lack key identifiers
    return made


class Caller:
    """`close` ends the kept connections."""

    def __init__(self, context: Context) -> None:
        self._cache = context.cache
        self._session: aiohttp.ClientSession | None = None
        self._turn = 0

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None))
        return self._session

    async def post(self, config: Object, body: Object, seconds: float) -> Object:
        """The decoded answer. Raises CallFailed."""
        import aiohttp
        from yarl import URL
        place = self._place(config)
        mark = "&" if "?" in place.url else "?"
        timeout = f"{mark}timeout={seconds:g}s"
        told = f'Post "{place.told}{timeout}": '
        headers = {"Content-Type": "application/json", "Accept": "application/json",
                   "User-Agent": "kube-apiserver-admission", **({"Host": place.host} if place.host else {})}
        try:
            async with asyncio.timeout(seconds), self._client().post(
                    URL(place.url + timeout, encoded=True), data=orjson.dumps(body), headers=headers,
                    ssl=trust(config.get("caBundle") or ""), allow_redirects=False,
                    server_hostname=place.host.partition(":")[0] or None) as answer:
                raw = await _read(answer)
        except TimeoutError:
            raise CallFailed(told + "context deadline exceeded") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise CallFailed(told + "tls: failed to verify certificate: x509: "
                             + _verification(error.certificate_error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise CallFailed(told + _cause(error)) from None
        try:
            made = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise CallFailed(f"couldn't get version/kind; json parse error: {error}") from None
        if not isinstance(made, dict):
            raise CallFailed("couldn't get version/kind; json parse error: the answer is no object")
        return made

    def _place(self, config: Object) -> Place:
        if config.get("url"):
            return Place(config["url"], config["url"])
        service = config.get("service") or {}
        namespace, name = service.get("namespace") or "", service.get("name") or ""
        port, path = int(service.get("port") or 443), "/" + (service.get("path") or "").lstrip("/")
        host = f"{name}.{namespace}.svc:{port}"
        told = f"https://{host}{path}"
        try:
            found = servicebackends.locate(self._cache, namespace, name, port)
        except NowhereToCall as error:
            raise CallFailed(f'Post "{told}": {error}') from None
        self._turn += 1
        address, number = found[self._turn % len(found)]
        shown = f"[{address}]" if ":" in address else address
        return Place(f"https://{shown}:{number}{path}", told, host)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    raw = b""
    async for piece in answer.content.iter_any():
        raw += piece
        if len(raw) > MAX_ANSWER:
            raise CallFailed(f"the answer exceeds {MAX_ANSWER} bytes")
    if answer.status == 404:
        raise CallFailed("the server could not find the requested resource")
    if answer.status >= 500:
        text = raw[:1024].decode("utf-8", "replace").strip()
        raise CallFailed(f'an error on the server ("{text or "unknown"}") has prevented the request from succeeding')
    if answer.status != 200:
        raise CallFailed(f"the server responded with the status code {answer.status} but did not return more details")
    return raw


def _verification(error: BaseException) -> str:
    """What is wrong with a certificate, in upstream's words where they are known."""
    text = str(getattr(error, "verify_message", "") or error)
    if ("self" in text and "signed" in text) or "unable to get" in text:
        return "certificate signed by unknown authority"
    return "certificate has expired or is not yet valid" if "expired" in text else text


def _cause(error: BaseException) -> str:
    """The operating system's words inside an error of the client library."""
    import aiohttp
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        words = (inner.strerror or str(inner)).lower()
        if isinstance(inner, ConnectionRefusedError):
            words = "connection refused"
        return f"dial tcp {error.host}:{error.port}: connect: {words}"
    return "EOF" if isinstance(error, aiohttp.ServerDisconnectedError) else str(error)
