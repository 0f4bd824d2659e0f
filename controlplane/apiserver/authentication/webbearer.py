"""A bearer token in the subprotocols of a WebSocket: browsers can send it nowhere else.

Owns that form. Promises that the token is taken out before the request goes on to anybody else. Pure. Called by `authn`
and by what sends requests on to backends.

Upstream: k8s.io/apiserver/pkg/authentication/request/websocket.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from controlplane.machinery.errors import Unauthorized

HEADER = "Sec-WebSocket-Protocol"
PREFIX = "base64url.bearer.authorization.k8s.io."


def token(headers: Mapping[str, str]) -> str:
    """The token, "" when there is none. Raises Unauthorized for one that cannot be read, for a second one, and when no
    other protocol is offered: the server must have one to choose."""
    offered = [word.strip() for word in headers.get(HEADER, "").split(",")]
    found = [word[len(PREFIX):] for word in offered if word.startswith(PREFIX)]
    if not found:
        return ""
    if len(found) > 1 or len(offered) < 2 or headers.get("Upgrade", "").lower() != "websocket":
        raise Unauthorized
    try:
        return base64.b64decode(found[0] + "=" * (-len(found[0]) % 4), b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        raise Unauthorized from None


def without(offered: str) -> str:
    """The value of the header without a token."""
    if PREFIX not in offered:
        return offered
    return ", ".join(word for part in offered.split(",") if not (word := part.strip()).startswith(PREFIX))
