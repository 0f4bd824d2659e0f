"""Who asks: client certificates, bearer tokens, anonymous, and impersonation on top of any of them.

Owns the order in which credentials are tried (certificate, then token, then anonymous) and the `User` everything
after it reads. Promises: a credential that is presented and wrong is always 401, never anonymous; the static token
file is read once, at start, and kept as hashes, so that looking a token up takes the same time for near misses and no
dump of memory shows it; the work is synchronous and does no I/O. The TLS layer has verified the certificate's chain
and use before. Called by the server for every request.

Upstream: k8s.io/apiserver/pkg/authentication.
"""

from __future__ import annotations

import csv
import hashlib
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from controlplane.apiserver import tokens
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request
from controlplane.machinery.errors import BadRequest, Finding, Forbidden, Unauthorized

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
ANONYMOUS = "system:anonymous"
CREDENTIAL = "authentication.kubernetes.io/credential-id"


@dataclass(frozen=True, slots=True)
class User:
    """An identity: `groups` in order, `extra` maps keys to lists of values."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict)

    def as_info(self) -> dict[str, Any]:
        """The authentication.k8s.io UserInfo."""
        info: dict[str, Any] = {"username": self.name}
        if self.uid:
            info["uid"] = self.uid
        if self.groups:
            info["groups"] = list(self.groups)
        if self.extra:
            info["extra"] = {k: list(v) for k, v in self.extra.items()}
        return info


ANYBODY = User(ANONYMOUS, groups=(UNAUTHENTICATED,))


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


class Authenticator:
    """`tokens` is None when the server has no service-account keys."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._static = load_tokens(context.options.token_auth_file)
        self.tokens = tokens.from_options(context)

    def authenticate(self, request: Request) -> User:
        """Who sends `request`. Raises Unauthorized for a bad credential, Forbidden for a refused impersonation."""
        user = self._certificate(request) or self._bearer(request)
        if user is None:
            if not self._context.options.anonymous_auth:
                raise Unauthorized
            user = ANYBODY
        else:
            user = with_group(user, AUTHENTICATED)
        if "Impersonate-User" in request.headers:
            return self._impersonate(request, user)
        if any(name.lower().startswith("impersonate-") for name in request.headers):
            raise BadRequest("requested [group, uid or extra] without impersonating a user")
        return user

    def token(self, text: str, audiences: list[str]) -> tuple[User, list[str]] | None:
        """The user of a bearer token and the audiences it is good for, None when it is not valid. Static tokens have
        no audience of their own: they are good for the server's."""
        user = self._static.get(_digest(text))
        if user is not None:
            return with_group(user, AUTHENTICATED), audiences
        if self.tokens is None:
            return None
        claims = self.tokens.verify(text, audiences)
        if claims is None:
            return None
        name, uid, groups, extra = tokens.user_of(claims)
        return with_group(User(name, uid, groups, extra), AUTHENTICATED), self.tokens.common(claims, audiences)

    def _certificate(self, request: Request) -> User | None:
        transport = request.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        der = request.client_certificate()
        if tls is None or not der:
            return None
        return from_certificate(tls.getpeercert(), der, self._context.clock.now())

    def _bearer(self, request: Request) -> User | None:
        scheme, _, text = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            return None
        found = self.token(text.strip(), [])
        if found is None:
            raise Unauthorized
        return found[0]

    def _impersonate(self, request: Request, asker: User) -> User:
        from controlplane.apiserver.authz import Attributes
        authorizer = self._context.authorizer
        if authorizer is None:
            raise Forbidden("impersonation needs an authorizer")
        user = impersonated(request)

        def may(group: str, plural: str, name: str, namespace: str = "", subresource: str = "") -> None:
            authorizer.authorize(Attributes(asker, "impersonate", group, "v1", plural, subresource, namespace, name))

        if user.name.startswith(tokens.USER_PREFIX):
            namespace, _, account = user.name[len(tokens.USER_PREFIX):].partition(":")
            may("", "serviceaccounts", account, namespace)
            if not user.groups:
                user = replace(user, groups=tokens.groups_of(namespace))
        else:
            may("", "users", user.name)
        for group in request.headers.getall("Impersonate-Group", []):  # type: ignore[attr-defined]  # a CIMultiDict
            may("", "groups", group)
        if user.uid:
            may("authentication.k8s.io", "uids", user.uid)
        for key, values in user.extra.items():
            for value in values:
                may("authentication.k8s.io", "userextras", value, subresource=key)
        if user.name == ANONYMOUS:
            return with_group(user, UNAUTHENTICATED)
        return with_group(user, AUTHENTICATED)


def impersonated(request: Request) -> User:
    """The user the `Impersonate-*` headers ask for."""
    extra: dict[str, list[str]] = {}
    groups: list[str] = []
    for name, value in request.headers.items():
        lowered = name.lower()
        if lowered == "impersonate-group":
            groups.append(value)
        elif lowered.startswith("impersonate-extra-"):
            extra.setdefault(unquote(lowered.removeprefix("impersonate-extra-")), []).append(value)
    headers = request.headers
    return User(headers["Impersonate-User"], headers.get("Impersonate-Uid", ""), tuple(groups), extra)


def with_group(user: User, group: str) -> User:
    return user if group in user.groups else replace(user, groups=(*user.groups, group))
