"""Secrets of type `kubernetes.io/service-account-token`: filled with a token that lasts as long as the Secret.

Promises that the token is bound to the Secret, so that deleting the Secret revokes it, and that a Secret whose
ServiceAccount is gone goes too. Needs no signing key: it asks the API server for the token. Keeps no token in memory.
Called by `manager`. Upstream: pkg/controller/serviceaccount/tokens_controller.go.
"""

from __future__ import annotations

import base64
from typing import Any

from controlplane.client.informer import Informer
from controlplane.controllers.runtime import Context, Controller, delete_quietly
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.legacytokens import TYPE
from controlplane.machinery.resources import named

SECRETS, SERVICE_ACCOUNTS = named("secrets"), named("serviceaccounts")
NAME, UID = "kubernetes.io/service-account.name", "kubernetes.io/service-account.uid"
SECONDS = 2**32  # the longest lifetime the server grants: 136 years

Obj = dict[str, Any]


def keep(secret: Obj) -> None:
    """Remember which data there is, but none of it."""
    secret["data"] = dict.fromkeys(secret.get("data") or {}, "")


def by_account(secret: Obj) -> list[str]:
    return [f"{objects.namespace(secret)}/{objects.annotations(secret).get(NAME, '')}"]


def secrets_of(context: Context) -> Informer:
    """The Secrets of this type, without what they hold; one informer for all who ask."""
    return context.informers.of(SECRETS, fields=f"type={TYPE}", indexes={"account": by_account}, keep=keep)


class TokenSecrets(Controller):
    name = "token-controller"

    def __init__(self, context: Context, root_ca: str) -> None:
        self.root_ca = root_ca
        self.secrets = secrets_of(context)
        self.accounts = context.informer(SERVICE_ACCOUNTS)
        super().__init__(context, self.secrets, self.accounts)
        self.secrets.subscribe(lambda kind, old, new: self.queue.add(objects.key(new)))
        self.accounts.subscribe(self._account_changed)

    def _account_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "MODIFIED":
            for secret in self.secrets.by("account", f"{objects.namespace(new)}/{objects.name(new)}"):
                self.queue.add(objects.key(secret))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        secret = self.secrets.get(*key)
        name = objects.annotations(secret).get(NAME, "") if secret is not None else ""
        if secret is None or objects.deleting(secret) or not name:
            return None
        try:
            account = await self.client.get(SERVICE_ACCOUNTS, name, key[0])
        except NotFound:
            account = None
        wanted = objects.annotations(secret).get(UID) or (objects.uid(account) if account else "")
        if account is None or objects.uid(account) != wanted:
            await delete_quietly(self.client, SECRETS, secret)
            return None
        missing = {"token", "namespace", *(["ca.crt"] if self.root_ca else [])} - set(secret["data"])
        if not missing and UID in objects.annotations(secret):
            return None
        values = {"namespace": key[0], "ca.crt": self.root_ca}
        if "token" in missing:
            values["token"] = await self._token(secret, name)
        data = {field: base64.b64encode(values[field].encode()).decode() for field in missing}
        patch = {"metadata": {"uid": objects.uid(secret), "annotations": {UID: wanted}}, "data": data}
        await self.client.patch(SECRETS, key[1], patch, key[0], "merge")
        return None

    async def _token(self, secret: Obj, account: str) -> str:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "expirationSeconds": SECONDS, "boundObjectRef": {
                "apiVersion": "v1", "kind": "Secret", "name": objects.name(secret), "uid": objects.uid(secret)}}}
        answer = await self.client.create(SERVICE_ACCOUNTS, request, objects.namespace(secret), "token", account)
        return answer["status"]["token"]
