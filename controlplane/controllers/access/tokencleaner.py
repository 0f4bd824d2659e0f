"""Bootstrap tokens go when they expire: Secrets of type `bootstrap.kubernetes.io/token` in kube-system.

Promises to delete each soon after the time in its `expiration`, and none without one. Keeps nothing of a Secret in
memory but that time. Called by `manager`.

Upstream: pkg/controller/bootstrap/tokencleaner.go.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from controlplane.controllers.runtime import Context, Controller, delete_quietly
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.resources import named

SECRETS = named("secrets")
NAMESPACE, TYPE = "kube-system", "bootstrap.kubernetes.io/token"
FAR_SECONDS = 24 * 3600.0  # the longest single wait: wall clocks get set
Obj = dict[str, Any]


def keep(secret: Obj) -> None:
    """Remember when it expires, and no secret."""
    data = secret.get("data") or {}
    secret["data"] = {"expiration": data["expiration"]} if "expiration" in data else {}


def expires(secret: Obj) -> float | None:
    """The wall time a token expires at, None when never. What cannot be read has expired: no token works with it."""
    text = (secret.get("data") or {}).get("expiration")
    if not text:
        return None
    try:
        return parse_rfc3339(base64.b64decode(text, validate=True).decode())
    except (ValueError, binascii.Error):
        return 0.0


class TokenCleaner(Controller):
    name = "token-cleaner"

    def __init__(self, context: Context) -> None:
        self.secrets = context.informers.of(SECRETS, NAMESPACE, fields=f"type={TYPE}", keep=keep)
        super().__init__(context, self.secrets)
        self.secrets.subscribe(lambda kind, old, new: self.queue.add(objects.name(new)))

    async def reconcile(self, name: str) -> float | None:
        secret = self.secrets.get(NAMESPACE, name)
        if secret is None or objects.deleting(secret) or (end := expires(secret)) is None:
            return None
        left = end - self.clock.now()
        if left > 0:
            return min(left, FAR_SECONDS)
        await delete_quietly(self.client, SECRETS, secret)
        return None
