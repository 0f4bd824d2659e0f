"""Signed tokens whose signature was checked once, so that a client's next request costs a look-up.

Owns the limit and the times: what has expired, or is not valid yet, is never answered. Remembers no token, only its
hash. Called by `tokens` and `oidc`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from controlplane.machinery.clock import Clock

LIMIT = 2048  # tokens, about 1 kB each: more than the pods of a lab send at once
Claims = dict[str, Any]


class Verified:
    """`check` gives the claims of a token, among them `exp`, or None when its signature does not hold."""

    def __init__(self, clock: Clock, check: Callable[[str], Claims | None]) -> None:
        self._clock, self._check = clock, check
        self._known: OrderedDict[bytes, Claims] = OrderedDict()  # by the token's SHA-256, the oldest first

    def claims(self, token: str) -> Claims | None:
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = self._known.get(digest)
        if found is None:
            found = self._check(token)
            if found is None:
                return None
            self._known[digest] = found
            if len(self._known) > LIMIT:
                self._known.popitem(last=False)
        now = self._clock.now()
        if not found.get("nbf", now) <= now < found["exp"]:
            self._known.pop(digest, None)
            return None
        return found
