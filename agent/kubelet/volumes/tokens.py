"""Service account tokens for pods: asked for, kept, and renewed before they expire.

Owns a cache of tokens per (pod, audience, lifetime). Promises a token with at least a fifth of its life left, and
renewal at four fifths. Tokens are kept in memory only and never logged. Called by `volumes.manager`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent.kubelet.volumes.payload import TOKEN_SECONDS
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock, parse_rfc3339
from controlplane.machinery.resources import named

RENEW_AT = 0.8  # of its life: upstream's share
MAX_AGE = 24 * 3600.0  # seconds; a long-lived token is renewed daily all the same


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew_at: float
    expires: str


class Tokens:
    def __init__(self, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._cache: dict[str, dict[tuple[str, int], _Token]] = {}

    async def get(self, pod: dict[str, Any], projection: dict[str, Any]) -> tuple[str, float]:
        """(token, when to ask again). Raises ApiError."""
        token = await self._token(pod, projection)
        return token.text, token.renew_at

    async def bundle(self, pod: dict[str, Any], wanted: list[dict[str, Any]]) -> str:
        """The tokens a storage driver asks for, by audience, in JSON. Raises ApiError."""
        tokens = {p.get("audience") or "": await self._token(pod, p) for p in wanted}
        return json.dumps({audience: {"token": t.text, "expirationTimestamp": t.expires}
                           for audience, t in tokens.items()})

    async def _token(self, pod: dict[str, Any], projection: dict[str, Any]) -> _Token:
        meta = pod["metadata"]
        audience = projection.get("audience") or ""
        seconds = int(projection.get("expirationSeconds") or TOKEN_SECONDS)
        known = self._cache.setdefault(meta["uid"], {}).get((audience, seconds))
        now = self._clock.now()
        if known is not None and known.renew_at > now:
            return known
        answer = await self._client.create(named("serviceaccounts"), {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"audiences": [audience] if audience else [], "expirationSeconds": seconds,
                     "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}}},
            meta.get("namespace", ""), "token", pod["spec"].get("serviceAccountName") or "default")
        status = answer["status"]
        life = parse_rfc3339(status["expirationTimestamp"]) - now
        token = _Token(status["token"], now + min(life * RENEW_AT, MAX_AGE),
                       status["expirationTimestamp"])
        self._cache.setdefault(meta["uid"], {})[audience, seconds] = token
        return token

    def release(self, uid: str) -> None:
        self._cache.pop(uid, None)
