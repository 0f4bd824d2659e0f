"""The way to other API servers: requests passed on with who asks, and questions of this server's own.

Owns the TLS towards them: this server shows its front-proxy certificate and says in X-Remote headers who the user is;
the other server is checked against the APIService's caBundle under `<service>.<namespace>.svc`, unless it asks not to
be. Watches stream, upgrades tunnel, bodies are never gathered. A client's own credentials and X-Remote headers never
pass. Called by the aggregator.

Upstream: k8s.io/kube-aggregator/pkg/apiserver/handler_proxy.go, k8s.io/client-go/transport (SetAuthProxyHeaders).
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from controlplane.apiserver.aggregation.remotes import Remote
from controlplane.apiserver.response import Answer, text_response
from controlplane.apiserver.services import servicebackends
from controlplane.apiserver.services.servicebackends import NowhereToCall
from controlplane.apiserver.streaming import forward, tunnel
from controlplane.apiserver.streaming.tunnel import Backend
from controlplane.machinery.errors import ServiceUnavailable, Timeout

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp

    from controlplane.apiserver.authentication.user import User
    from controlplane.apiserver.context import Context
    from controlplane.apiserver.request import Request

HEAD_SECONDS = 60.0  # until an answer begins; upstream's bound of ordinary requests
MAX_DOCUMENT = 32 << 20  # bytes of a discovery or OpenAPI document; this server's own OpenAPI v2 has 4 MB
TLS_KEPT = 64  # contexts, one per CA bundle in use; about 50 kB each
_SAFE = "/~!$&'()*+,;=:@-._"
_HEADER = "!#$&'*+-.^_`|~"  # what a header's name may hold beside letters and digits, without the escape itself


def told_of(user: User) -> list[tuple[str, str]]:
    """The headers that say who asks. Pure."""
    found = [("X-Remote-User", user.name)]
    if user.uid:
        found.append(("X-Remote-Uid", user.uid))
    found += [("X-Remote-Group", group) for group in user.groups]
    found += [(f"X-Remote-Extra-{quote(key, _HEADER)}", value) for key, values in user.extra.items()
              for value in values]
    return [(name, value.replace("\r", " ").replace("\n", " ")) for name, value in found]


class Proxy:
    """`close` ends the kept connections."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._forwarder = forward.Forwarder()
        self._turn = 0
        options = context.options
        certificate, key = options.proxy_client_cert_file, options.proxy_client_key_file

        @lru_cache(TLS_KEPT)
        def trust(bundle: str, insecure: bool) -> ssl.SSLContext:
            return _trust(bundle, insecure, certificate, key)
        self._trust = trust

    async def close(self) -> None:
        await self._forwarder.close()

    def reload(self) -> None:
        """Show the certificate that is on the disk now, on connections made from now on."""
        self._trust.cache_clear()

    async def pass_on(self, request: Request, remote: Remote, target: str) -> Answer:
        """The other server's answer to a request. Raises ServiceUnavailable."""
        if not remote.available:
            return text_response("service unavailable\n", 503)
        backend, told = self._backend(remote), told_of(request.user)
        if request.headers.get("Upgrade"):
            return await tunnel.run(request, backend, target, told)
        try:
            async with asyncio.timeout(HEAD_SECONDS):  # until the answer begins: what follows may be a watch
                return await self._forwarder.pass_on(request, backend, target, "", told)
        except TimeoutError:
            raise Timeout(f"request did not complete within the allotted timeout ({int(HEAD_SECONDS)}s)") from None

    async def ask(self, remote: Remote, target: str, user: User, seconds: float,
                  headers: dict[str, str] | None = None) -> tuple[aiohttp.ClientResponse, bytes]:
        """A whole answer to a question of this server's own. Raises ServiceUnavailable and TimeoutError."""
        backend = self._backend(remote)
        async with asyncio.timeout(seconds):
            answer = await self._forwarder.ask(backend, target, [*told_of(user), *(headers or {}).items()])
            body = await forward.whole(answer, MAX_DOCUMENT, f"{target} of {remote.name} exceeds {MAX_DOCUMENT} bytes")
        return answer, body

    def _backend(self, remote: Remote) -> Backend:
        namespace, name, port = remote.service
        try:
            found = servicebackends.locate(self._context.cache, namespace, name, port)
            tls = self._trust(remote.spec.get("caBundle") or "", bool(remote.spec.get("insecureSkipTLSVerify")))
        except (NowhereToCall, ValueError) as error:
            raise ServiceUnavailable(str(error)) from None
        self._turn += 1
        host, number = found[self._turn % len(found)]
        return Backend(host, number, tls, remote.host)


def target_of(request: Request) -> str:
    """Path and query of a request as they go on the wire."""
    return quote(request.path, _SAFE) + (f"?{request.raw_query}" if request.raw_query else "")


def _trust(bundle: str, insecure: bool, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Raises ValueError for a bundle that holds no certificates."""
    try:
        made = ssl.create_default_context(cadata=base64.b64decode(bundle).decode() if bundle else None)
    except (ValueError, ssl.SSLError) as error:
        raise ValueError(f"unable to load root certificates: {error}") from None
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # hand-made authorities often lack key identifiers
    if insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        made.load_cert_chain(certificate, key)
    return made
