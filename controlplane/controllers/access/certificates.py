"""CertificateSigningRequests, from the request to the certificate: approving what may approve itself, signing what is
approved, and forgetting what is done.

Promises that a kubelet's own client certificate is approved only after asking the API server whether who asked may
have it, that nothing denied or failed is signed, that a request whose form its signer does not allow is told so, and
that the authority's key is read when it is needed and not kept. Requests for other signers are left to others, but for
their age. Called by `manager`. Upstream: pkg/controller/certificates.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any

from controlplane.controllers.access import certificaterules as rules
from controlplane.controllers.runtime import NODES, Context, Controller, delete_quietly
from controlplane.machinery import objects
from controlplane.machinery.errors import Conflict, NotFound
from controlplane.machinery.resources import named

log = logging.getLogger("controllers")
REQUESTS = named("certificatesigningrequests.certificates.k8s.io")
REVIEWS = named("subjectaccessreviews.authorization.k8s.io")
POD_REQUESTS = named("podcertificaterequests.certificates.k8s.io")
SERVICES, SLICES = named("services"), named("endpointslices.discovery.k8s.io")
ASK_AGAIN_SECONDS = 300.0  # when who asked may not yet have the certificate: a binding may come
Obj = dict[str, Any]


class CertificateRequests(Controller):
    """`certificate` and `key` are the files of the cluster's authority; without them nothing is signed."""

    name = "certificate-controller"

    def __init__(self, context: Context, certificate: Path | None = None, key: Path | None = None) -> None:
        self.requests = context.informer(REQUESTS)
        self._nodes = context.informer(NODES)
        self._files = (certificate, key) if certificate is not None and key is not None else None
        self._services, self._slices = context.informer(SERVICES), context.informer(SLICES)
        super().__init__(context, self.requests, self._nodes, self._services, self._slices)
        self.requests.subscribe(lambda kind, old, new: self.queue.add(objects.name(new)))

    async def reconcile(self, name: str) -> float | None:
        csr = self.requests.get("", name)
        if csr is None or objects.deleting(csr):
            return None
        left = rules.forget_after(csr, self.clock.now())
        if left <= 0:
            await delete_quietly(self.client, REQUESTS, csr)
            return None
        decided = rules.conditions(csr)
        again: float | None = None
        try:
            if "Denied" in decided or "Failed" in decided or rules.certificate(csr):
                pass
            elif "Approved" not in decided:
                again = await self._approve(csr)
            elif self._files is not None and csr["spec"]["signerName"] in rules.SIGNERS:
                await self._sign(csr)
        except (Conflict, NotFound):
            pass  # its event is on the way
        return left if again is None else min(left, again)

    async def _approve(self, csr: Obj) -> float | None:
        """Approve what may approve itself; seconds after which to ask again when it may not yet."""
        if csr["spec"]["signerName"] not in rules.SELF_APPROVING:
            return None
        try:
            taken = rules.addresses_of_others(csr["spec"].get("username", ""), self._nodes.items(),
                                              self._services.items(), self._slices.items())
            wanted = rules.approvals(csr, rules.read(csr), taken)
        except ValueError:
            return None
        for subresource, message in wanted:
            if await self._may(csr["spec"], subresource):
                await self._decide(csr, "approval", {"type": "Approved", "reason": "AutoApproved", "message": message})
                return None
        return ASK_AGAIN_SECONDS if wanted else None

    async def _may(self, spec: Obj, subresource: str) -> bool:
        attributes = {"group": REQUESTS.group, "resource": REQUESTS.plural, "verb": "create", "version": "*",
                      "subresource": subresource}
        asked = {"user": spec.get("username", ""), "uid": spec.get("uid", ""), "groups": spec.get("groups") or [],
                 "extra": spec.get("extra") or {}, "resourceAttributes": attributes}
        answer = await self.client.create(REVIEWS, {"spec": asked})
        return bool(answer["status"].get("allowed"))

    async def _sign(self, csr: Obj) -> None:
        spec = csr["spec"]
        try:
            why = rules.fault(rules.read(csr), spec["signerName"], spec.get("usages") or [])
        except ValueError as error:
            why = str(error)
        if why:
            await self._decide(csr, "status", {"type": "Failed", "reason": "SignerValidationFailed", "message": why})
            return
        assert self._files is not None
        issued = await asyncio.to_thread(issue, csr, *self._files, self.clock.now())
        status = {**csr["status"], "certificate": base64.b64encode(issued).decode()}
        await self.client.update(REQUESTS, {**csr, "status": status}, subresource="status")
        log.info("signed %s for %s", objects.name(csr), spec["signerName"])

    async def _decide(self, csr: Obj, subresource: str, condition: Obj) -> None:
        status = csr.get("status") or {}
        made = {**condition, "status": "True", "lastUpdateTime": self.clock.timestamp()}
        status = {**status, "conditions": [*(status.get("conditions") or ()), made]}
        await self.client.update(REQUESTS, {**csr, "status": status}, subresource=subresource)


class PodCertificateRequests(Controller):
    """Forgets requests for pods' certificates: their kubelets have long read the outcome, or ask anew."""

    name = "podcertificaterequestcleaner"

    def __init__(self, context: Context) -> None:
        self.requests = context.informer(POD_REQUESTS)
        super().__init__(context, self.requests)
        self.requests.subscribe(lambda kind, old, new: self.queue.add(objects.key(new)))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        request = self.requests.get(*key)
        if request is None or objects.deleting(request):
            return None
        left = rules.pod_request_left(request, self.clock.now())
        if left > 0:
            return left
        await delete_quietly(self.client, POD_REQUESTS, request)
        return None


def issue(csr: Obj, certificate: Path, key: Path, now: float) -> bytes:
    """The PEM of the certificate for an approved request, by the authority in these files. Blocking."""
    from controlplane.pki.signing import sign
    return sign(base64.b64decode(csr["spec"]["request"]), csr["spec"].get("usages") or [], rules.lifetime(csr),
                certificate.read_bytes(), key.read_bytes(), now)
