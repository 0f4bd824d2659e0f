"""Who calls the kubelet's API, and whether they may: certificates, bearer tokens, and the API server's own word.

Owns both questions. A client certificate of the cluster's CA names its user; a bearer token is reviewed by the API
server (TokenReview), and what anybody but system:masters may do is asked there too (SubjectAccessReview): first of the
path's own subresource of `nodes`, then of `proxy`. Answers are remembered for a while, a bounded number of them, tokens
as hashes only. Promises that nobody new is let in while the API server cannot be asked. Called by `serve` for each
request.

Upstream: pkg/kubelet/server/auth.go and cmd/kubelet/app/auth.go.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.client.rest import Client
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import named

ADMINS = "system:masters"
TOKEN_SECONDS = 120.0  # how long an answer holds; upstream's bounds, so that a revoked right ends within them
ALLOWED_SECONDS = 300.0
DENIED_SECONDS = 30.0
MAX_REMEMBERED = 256  # answers of each question: a node is asked by a handful of scrapers
TOKENS = named("tokenreviews.authentication.k8s.io")
REVIEWS = named("subjectaccessreviews.authorization.k8s.io")

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# The first part of a path -> the subresource of nodes asked for first; `proxy` is asked for next, and for the rest.
_SUBRESOURCES = {"stats": "stats", "metrics": "metrics", "logs": "log", "checkpoint": "checkpoint", "pods": "pods",
                 "runningpods": "pods", "healthz": "healthz", "configz": "configz"}

log = logging.getLogger("agent")


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict, hash=False)


def verb_of(method: str) -> str:
    """What a method asks for, "" when it is none the API knows."""
    return _VERBS.get(method, "")


def identity(certificate: dict[str, Any] | None) -> Caller | None:
    """The caller a verified client certificate names: its common name and its organizations. None without one."""
    if not certificate:
        return None
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    names = [value for key, value in pairs if key == "commonName"]
    return Caller(names[0], tuple(v for k, v in pairs if k == "organizationName")) if names else None


def subresources(path: str) -> list[str]:
    """What of `nodes` a path needs: any one of these suffices."""
    first = path.strip("/").partition("/")[0]
    return [_SUBRESOURCES[first], "proxy"] if first in _SUBRESOURCES else ["proxy"]


class _Memory:
    """Answers with the time they hold until; the oldest goes when there are too many."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        until, answer = self._kept.get(key, (0.0, None))
        return answer if self._clock.monotonic() < until else None

    def put(self, key: Hashable, answer: Any, seconds: float) -> None:
        self._kept.pop(key, None)
        self._kept[key] = self._clock.monotonic() + seconds, answer
        if len(self._kept) > MAX_REMEMBERED:
            self._kept.popitem(last=False)


class Access:
    """`client` asks the API server in the name of the node `node`."""

    def __init__(self, client: Client, node: str, clock: Clock = SYSTEM) -> None:
        self._client, self._node = client, node
        self._callers, self._answers = _Memory(clock), _Memory(clock)

    async def bearer(self, header: str) -> Caller | None:
        """The caller of an `Authorization` header, None when it names nobody."""
        scheme, _, token = header.strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        key = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        caller: Caller | None = self._callers.get(key)
        if caller is None:
            caller = await self._reviewed(token.strip())
            if caller is not None:
                self._callers.put(key, caller, TOKEN_SECONDS)
        return caller

    async def _reviewed(self, token: str) -> Caller | None:
        try:
            answer = await self._client.create(TOKENS, {"apiVersion": TOKENS.api_version, "kind": TOKENS.kind,
                                                        "metadata": {}, "spec": {"token": token}})
        except ApiError as error:
            log.warning("cannot ask whose token it is: %s", error.message)
            return None
        status = answer.get("status") or {}
        user = status.get("user") or {}
        if not status.get("authenticated") or not user.get("username"):
            return None
        return Caller(user["username"], tuple(user.get("groups") or ()), user.get("uid", ""), user.get("extra") or {})

    async def allowed(self, caller: Caller, verb: str, wanted: Sequence[str]) -> bool:
        """Whether the caller may use any of these subresources of this node."""
        if ADMINS in caller.groups:
            return True
        for subresource in wanted:
            key = caller, verb, subresource
            answer = self._answers.get(key)
            if answer is None:
                answer = await self._ask(caller, verb, subresource)
                if answer is not None:
                    self._answers.put(key, answer, ALLOWED_SECONDS if answer else DENIED_SECONDS)
            if answer:
                return True
        return False

    async def _ask(self, caller: Caller, verb: str, subresource: str) -> bool | None:
        """The API server's answer, None when there is none."""
        attributes = {"verb": verb, "version": "v1", "resource": "nodes", "name": self._node,
                      "subresource": subresource}
        spec = {"user": caller.name, "groups": list(caller.groups), "uid": caller.uid, "extra": caller.extra,
                "resourceAttributes": attributes}
        try:
            answer = await self._client.create(REVIEWS, {"apiVersion": REVIEWS.api_version, "kind": REVIEWS.kind,
                                                         "metadata": {}, "spec": spec})
        except ApiError as error:
            log.warning("cannot ask whether %s may %s nodes/%s: %s", caller.name, verb, subresource, error.message)
            return None
        return bool((answer.get("status") or {}).get("allowed"))
