"""Acting as somebody else, by the `Impersonate-*` headers, for those who are allowed to.

Owns the reading of the headers and the questions asked about each part: user or service account, every group, the uid,
every extra value. Promises that the whole of a wanted identity is allowed or none of it, and that whoever acts is kept
in `request.asker`, for the audit. Called by `authn` after the sender is known.

Upstream: k8s.io/apiserver/pkg/endpoints/filters/impersonation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from controlplane.apiserver.authentication import tokens
from controlplane.apiserver.authentication.user import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User, with_group
from controlplane.apiserver.request import Request
from controlplane.machinery.errors import BadRequest, Forbidden

GROUP = "authentication.k8s.io"


def wanted(request: Request) -> bool:
    """Whether the sender wants to act as somebody else. Raises BadRequest when nobody is named."""
    if "Impersonate-User" in request.headers:
        return True
    if any(name.lower().startswith("impersonate-") for name in request.headers):
        raise BadRequest("requested [group, uid or extra] without impersonating a user")
    return False


def assume(request: Request, asker: User, authorizer: Any) -> User:
    """The user the request is to be done as. Raises Forbidden."""
    from controlplane.apiserver.authorization.access import Attributes
    if authorizer is None:
        raise Forbidden("impersonation needs an authorizer")
    user = impersonated(request)

    def may(group: str, plural: str, name: str, namespace: str = "", subresource: str = "") -> None:
        authorizer.authorize(Attributes(asker, "impersonate", group, "v1", plural, subresource, namespace, name))

    groups = user.groups
    if user.name.startswith(tokens.USER_PREFIX):
        namespace, _, account = user.name[len(tokens.USER_PREFIX):].partition(":")
        may("", "serviceaccounts", account, namespace)
        if not groups:
            user = replace(user, groups=tokens.groups_of(namespace))
    else:
        may("", "users", user.name)
    for group in groups:
        may("", "groups", group)
    if user.uid:
        may(GROUP, "uids", user.uid)
    for key, values in user.extra.items():
        for value in values:
            may(GROUP, "userextras", value, subresource=key)
    request.asker = asker
    if user.name == ANONYMOUS:
        return with_group(user, UNAUTHENTICATED)
    return user if UNAUTHENTICATED in user.groups else with_group(user, AUTHENTICATED)


def impersonated(request: Request) -> User:
    """The user the headers ask for."""
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
