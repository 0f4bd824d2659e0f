"""Who asks: front proxies, client certificates, bearer tokens, anonymous, and impersonation on top of any of them.

Owns the order in which credentials are tried (a front proxy's word, certificate, token, anonymous; of tokens: the
static file, bootstrap tokens, service accounts, OpenID Connect). Promises: a credential that is presented and wrong is
always 401, never anonymous; the static token file is read once, at start, and kept as hashes, so that looking a token
up takes the same time for near misses and no dump of memory shows it; the work is synchronous and does no I/O. The TLS
layer has verified the certificate's chain and use before. Called by the server for every request.

Upstream: k8s.io/apiserver/pkg/authentication.
"""

from __future__ import annotations

import csv
import hashlib
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controlplane.apiserver.authentication import bootstraptokens, impersonation, tokens, webbearer
from controlplane.apiserver.authentication.impersonation import impersonated
from controlplane.apiserver.authentication.legacytokens import LegacyTokens
from controlplane.apiserver.authentication.user import (
    ANONYMOUS,
    ANYBODY,
    AUTHENTICATED,
    UNAUTHENTICATED,
    User,
    with_group,
)
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request
from controlplane.machinery.errors import Finding, Unauthorized

__all__ = ["ANONYMOUS", "ANYBODY", "AUTHENTICATED", "UNAUTHENTICATED", "Authenticator", "User", "from_certificate",
           "impersonated", "load_tokens", "varies"]

CREDENTIAL = "authentication.kubernetes.io/credential-id"


def load_tokens(path: Path | None) -> dict[bytes, User]:
    """The static token file: lines of `token,user,uid,"group1,group2"`. Raises a Finding that names the line."""
    users: dict[bytes, User] = {}
    if path is None:
        return users
    with path.open(newline="", encoding="utf-8") as rows:
        for number, row in enumerate(csv.reader(rows, skipinitialspace=True), 1):
            if not row or row[0].startswith("#"):
                continue
            if len(row) < 3 or not row[0] or not row[1]:
                raise Finding(f"{path}:{number} is no static token", "a line holds token, user name and uid",
                              'write it as token,user,uid,"group1,group2"')
            groups = tuple(g.strip() for g in row[3].split(",") if g.strip()) if len(row) > 3 else ()
            users[_digest(row[0])] = User(row[1], row[2], groups)
    return users


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def from_certificate(peer: dict[str, Any], der: bytes, now: float) -> User:
    """The user of a verified certificate in the form `ssl.SSLObject.getpeercert()` gives it: CN is the name, each O a
    group. Raises Unauthorized when it has run out since the handshake, or names nobody."""
    if ssl.cert_time_to_seconds(peer["notAfter"]) < now:
        raise Unauthorized
    attributes = [pair for relative in peer.get("subject", ()) for pair in relative]
    name = next((value for key, value in attributes if key == "commonName"), "")
    if not name:
        raise Unauthorized
    groups = tuple(value for key, value in attributes if key == "organizationName")
    return User(name, groups=groups, extra={CREDENTIAL: [f"X509SHA256={hashlib.sha256(der).hexdigest()}"]})


def varies(headers: Mapping[str, str], more: frozenset[str] = frozenset()) -> bool:
    """Whether who sends a request is told by this request, and not only by its connection. `more` names further
    headers that tell it, in lower case."""
    if "Authorization" in headers:
        return True
    for name in headers:
        lowered = name.lower()
        if lowered.startswith("impersonate-") or lowered in more:
            return True
    return webbearer.HEADER in headers


class Authenticator:
    """`tokens` is None when the server has no service-account keys, `oidc` when there is no provider. `headers` are
    those by which a front proxy names users."""

    def __init__(self, context: Context) -> None:
        options = context.options
        self._context = context
        self._static = load_tokens(options.token_auth_file)
        self.tokens = tokens.from_options(context)
        self._read = tokens.reader(context)
        self.legacy = LegacyTokens(context)
        self.oidc: Any = None
        self.proxy: Any = None
        self.headers: frozenset[str] = frozenset()
        if options.oidc_issuer_url:
            from controlplane.apiserver.authentication.oidc import Oidc
            self.oidc = Oidc(options, context.clock)
        if options.requestheader_client_ca_file is not None:
            from controlplane.apiserver.authentication.frontproxy import FrontProxy
            self.proxy = FrontProxy(options)
            self.headers = self.proxy.headers

    def authenticate(self, request: Request) -> User:
        """Who sends `request`. Raises Unauthorized for a bad credential, Forbidden for a refused impersonation."""
        user = self._connection(request) or self._bearer(request)
        if user is None:
            if not self._context.options.anonymous_auth:
                raise Unauthorized
            user = ANYBODY
        elif user.name != ANONYMOUS:
            user = with_group(user, AUTHENTICATED)
        if impersonation.wanted(request):
            return impersonation.assume(request, user, self._context.authorizer)
        return user

    def token(self, text: str, audiences: list[str],
              warn: Callable[[str], None] | None = None) -> tuple[User, list[str]] | None:
        """The user of a bearer token and the audiences it is good for, None when it is not valid. All but service
        accounts' tokens have no audience of their own: they are good for the server's."""
        user = self._static.get(_digest(text)) or self._bootstrap(text)
        if user is None and self.tokens is not None:
            claims = self.tokens.verify(text, audiences)
            if claims is not None and self._good(claims[tokens.CLAIM], warn):
                name, uid, groups, extra = tokens.user_of(claims)
                return with_group(User(name, uid, groups, extra), AUTHENTICATED), self.tokens.common(claims, audiences)
        if user is None and self.oidc is not None and (found := self.oidc.user(text)) is not None:
            user = User(found[0], "", found[1], found[2])
        return (with_group(user, AUTHENTICATED), audiences) if user is not None else None

    def _good(self, about: dict[str, Any], warn: Callable[[str], None] | None) -> bool:
        """Whether the Secret that holds a token, if one does, was not marked invalid."""
        if "secret" not in about:
            return True
        namespace = about["namespace"]
        return self.legacy.used(self._read("secrets", namespace, about["secret"]["name"]),
                                self._read("serviceaccounts", namespace, about["serviceaccount"]["name"]), warn)

    def _bootstrap(self, text: str) -> User | None:
        if not self._context.options.enable_bootstrap_token_auth or (parts := bootstraptokens.parts(text)) is None:
            return None
        secret = self._read("secrets", bootstraptokens.NAMESPACE, bootstraptokens.PREFIX + parts[0])
        if secret is None:
            return None
        found = bootstraptokens.holder(secret, *parts, self._context.clock.now())
        return User(found[0], groups=found[1]) if found is not None else None

    def _connection(self, request: Request) -> User | None:
        """Who the connection's certificate, or the proxy it belongs to, says it is."""
        transport = request.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        der = request.client_certificate()
        if tls is None or not der:
            return None
        user = from_certificate(tls.getpeercert(), der, self._context.clock.now())
        if self.proxy is None:
            return user
        if self.proxy.vouches(tls, user.name) and (told := self.proxy.user(request.headers)) is not None:
            return User(*told)
        return user if self.proxy.serves_clients(tls) else None

    def _bearer(self, request: Request) -> User | None:
        scheme, _, text = request.headers.get("Authorization", "").strip().partition(" ")
        text = text.strip() if scheme.lower() == "bearer" else ""
        text = text or webbearer.token(request.headers)
        if not text:
            return None
        found = self.token(text, [], request.warn)
        if found is None:
            raise Unauthorized
        return found[0]
