"""Bootstrap tokens: how a machine that is not yet a member proves that it may ask to become one.

Owns the form of a token (`<id>.<secret>`) and what its Secret, kube-system/bootstrap-token-<id>, must say for it to
hold. Promises that secrets are compared in constant time, that an expired or half-written Secret admits nobody, and
that such a user is in `system:bootstrappers` and in no group outside of it. Reads the cache only. Called by `authn`.

Upstream: plugin/pkg/auth/authenticator/token/bootstrap.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from typing import Any

from controlplane.machinery.clock import parse_rfc3339

TYPE = "bootstrap.kubernetes.io/token"
NAMESPACE, PREFIX = "kube-system", "bootstrap-token-"
GROUP, USER_PREFIX = "system:bootstrappers", "system:bootstrap:"
_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})").fullmatch
_EXTRA_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]").fullmatch


def parts(text: str) -> tuple[str, str] | None:
    """Id and secret of a token, None for what is no bootstrap token."""
    match = _TOKEN(text)
    return (match[1], match[2]) if match else None


def holder(secret: dict[str, Any], identifier: str, word: str, now: float) -> tuple[str, tuple[str, ...]] | None:
    """The user and groups a token stands for by its Secret, None when it does not hold. Pure."""
    data = _texts(secret.get("data") or {})
    if data is None or secret.get("type") != TYPE or secret["metadata"].get("deletionTimestamp"):
        return None
    if not hmac.compare_digest(data.get("token-secret", "").encode(), word.encode()):
        return None
    if data.get("token-id") != identifier or data.get("usage-bootstrap-authentication") != "true":
        return None
    if data.get("expiration"):
        try:
            if parse_rfc3339(data["expiration"]) <= now:
                return None
        except ValueError:
            return None
    extra = [group for group in data.get("auth-extra-groups", "").split(",") if group]
    if not all(_EXTRA_GROUP(group) for group in extra):
        return None
    return USER_PREFIX + identifier, (GROUP, *sorted(set(extra)))


def _texts(data: dict[str, str]) -> dict[str, str] | None:
    try:
        return {key: base64.b64decode(value, validate=True).decode() for key, value in data.items()}
    except (ValueError, binascii.Error):
        return None
