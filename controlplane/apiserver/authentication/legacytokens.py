"""Tokens in Secrets of type `kubernetes.io/service-account-token`: who still uses them, and which are no longer good.

Such a token lasts as long as its Secret, so nobody knows when it can go. Owns the label that tells the day of its last
use, the ConfigMap that tells since when that is told, the warning for those who use a Secret the cluster once made by
itself, and that a Secret marked invalid gives no access. Whoever verifies a token tells `used`, which only remembers;
`run` writes, once a day for each Secret. Called by `authn` and the server.

Upstream: pkg/serviceaccount/legacy.go, pkg/controlplane/controller/legacytokentracking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.writing import objectmeta
from controlplane.machinery.legacytokens import INVALID_SINCE, LAST_USED, TRACKING, TYPE, day, day_of
from controlplane.machinery.resources import named
from controlplane.store.cache import key_of
from controlplane.store.log import Stale
from controlplane.store.watch import Lagged

LOG = logging.getLogger("apiserver")
NAMESPACE, NAME = TRACKING
ADVICE = ("Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated "
          "secret-based tokens.")
Object = dict[str, Any]


class LegacyTokens:
    """`used` for each use of a token that is bound to a Secret."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._due: set[str] = set()  # keys of Secrets whose label is to be written
        self._wake = asyncio.Event()

    def used(self, secret: Object | None, account: Object | None, warn: Callable[[str], None] | None) -> bool:
        """Whether the token of this Secret is good; who uses it is warned where a better kind is at hand."""
        if secret is None or secret.get("type") != TYPE:
            return True  # a token somebody asked for and bound to a Secret of their own
        metadata = secret["metadata"]
        labels = metadata.get("labels") or {}
        if labels.get(INVALID_SINCE):
            LOG.warning("the token in secret %s/%s has been marked invalid; remove the label %s to allow its use again",
                        metadata["namespace"], metadata["name"], INVALID_SINCE)
            return False
        made = any(one.get("name") == metadata["name"] for one in (account or {}).get("secrets") or ())
        if made and warn is not None:
            warn(ADVICE)
        now = self._context.clock.now()
        if labels.get(LAST_USED) not in (day_of(now), day_of(now + 86400)):  # another server may be ahead
            self._due.add(key_of("secrets", metadata["namespace"], metadata["name"]))
            self._wake.set()
        return True

    async def run(self) -> None:
        """Write what is due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_since())
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._due:
                    await self._label(self._due.pop())

    async def _label(self, key: str) -> None:
        cache, today = self._context.cache, day_of(self._context.clock.now())
        item = cache.get(key)
        if item is None:
            return
        metadata = item.obj["metadata"]
        labels = metadata.get("labels") or {}
        if labels.get(LAST_USED) == today:
            return
        changed = {**item.obj, "metadata": {**metadata, "labels": {**labels, LAST_USED: today}}}
        try:
            await cache.write(key, changed, item.revision)
        except Stale:
            self._due.add(key)

    async def _keep_since(self) -> None:
        """The day from which uses are told; it stays what it was, whatever happens to the ConfigMap's other fields."""
        cache, clock, key = self._context.cache, self._context.clock, key_of("configmaps", NAMESPACE, NAME)
        while True:
            with cache.watch(key, None) as watch:
                item = cache.get(key)
                if item is None or day((item.obj.get("data") or {}).get("since")) is None:
                    made: Object = item.obj if item is not None else {
                        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": NAMESPACE, "name": NAME}}
                    if item is None:
                        objectmeta.found(named("configmaps"), made, clock.uid(), clock.timestamp())
                    try:
                        await cache.write(key, {**made, "data": {"since": day_of(clock.now())}},
                                          0 if item is None else item.revision)
                    except Stale:
                        continue
                try:
                    await watch.take()
                except Lagged:
                    continue
