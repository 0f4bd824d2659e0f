"""Secrets with service-account tokens that the cluster once made by itself, and that nobody uses, go.

Promises two steps with a year between: a Secret unused for a year is marked invalid, which ends its token but can be
taken back; one that stayed so for another year is deleted. Never touches a Secret a user made, one that a Pod of its
namespace names, or any before uses were recorded for a year. Called by `manager`.

Upstream: pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from controlplane.controllers.access.tokensecrets import NAME, SECRETS, SERVICE_ACCOUNTS, secrets_of
from controlplane.controllers.runtime import PODS, Context, Controller, delete_quietly
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.legacytokens import INVALID_SINCE, LAST_USED, TRACKING, day, day_of
from controlplane.machinery.resources import named

CONFIG_MAPS = named("configmaps")
UNUSED = timedelta(days=365)  # upstream's default
AGAIN_SECONDS = 24 * 3600.0  # days are all that is recorded
Obj = dict[str, Any]


def verdict(secret: Obj, today: date, since: date | None) -> str:
    """`invalidate`, `delete` or "" for a Secret the cluster made; uses are recorded `since`. Pure."""
    labels, limit = objects.labels(secret), today - UNUSED
    created = day((secret["metadata"].get("creationTimestamp") or "")[:10])
    if since is None or since > limit or created is None or created >= limit or objects.deleting(secret):
        return ""
    if LAST_USED in labels and ((used := day(labels[LAST_USED])) is None or used >= limit):
        return ""
    marked = day(labels.get(INVALID_SINCE))
    if marked is None:
        return "invalidate"
    return "" if marked >= limit else "delete"


def named_in(value: Any, name: str) -> bool:
    """Whether a name stands anywhere in a value: better one Secret too many is kept."""
    if isinstance(value, dict):
        return any(named_in(inner, name) for inner in value.values())
    return any(named_in(inner, name) for inner in value) if isinstance(value, list) else bool(value == name)


class LegacyTokens(Controller):
    name = "legacy-service-account-token-cleaner"

    def __init__(self, context: Context) -> None:
        self.secrets = secrets_of(context)
        self.accounts = context.informer(SERVICE_ACCOUNTS)
        super().__init__(context, self.secrets, self.accounts)
        self.secrets.subscribe(lambda kind, old, new: self.queue.add(objects.key(new)))
        self.accounts.subscribe(self._account_changed)

    def _account_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for reference in new.get("secrets") or ():
            self.queue.add((objects.namespace(new), reference.get("name", "")))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        secret = self.secrets.get(*key)
        account = self.accounts.get(key[0], objects.annotations(secret).get(NAME, "")) if secret is not None else None
        if secret is None or account is None or not any(
                one.get("name") == key[1] for one in account.get("secrets") or ()):
            return None  # its user made it
        today = date.fromisoformat(day_of(self.clock.now()))
        step = verdict(secret, today, today - UNUSED) and verdict(secret, today, await self._since())
        if step and not await self._named(key):
            if step == "delete":
                await delete_quietly(self.client, SECRETS, secret, revision=objects.revision(secret))
            else:
                patch = {"metadata": {"uid": objects.uid(secret), "resourceVersion": objects.revision(secret),
                                      "labels": {INVALID_SINCE: today.isoformat()}}}
                await self.client.patch(SECRETS, key[1], patch, key[0], "merge")
        return AGAIN_SECONDS

    async def _since(self) -> date | None:
        try:
            return day(objects.get(await self.client.get(CONFIG_MAPS, TRACKING[1], TRACKING[0]), "data.since", ""))
        except NotFound:
            return None

    async def _named(self, key: tuple[str, str]) -> bool:
        pods, _ = await self.client.list(PODS, key[0])
        return any(named_in(pod.get("spec"), key[1]) for pod in pods)
