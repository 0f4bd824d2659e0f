"""CertificateSigningRequests at the edge: who asked, who may decide and who may sign.

Owns the identity written into a new request, what `/approval` and `/status` may each change, and the three rules of
admission about signers. Promises that nobody asks in another's name, that decisions are made through `/approval` alone
and only by those who hold `approve` on the signer, certificates set only by those who hold `sign`. It signs nothing.
Called by the admission chain and by `subresources`.

Upstream: pkg/registry/certificates/certificates/strategy.go, plugin/pkg/admission/certificates.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.authorization import access
from controlplane.apiserver.context import Context
from controlplane.machinery.errors import Cause, Invalid, invalid
from controlplane.machinery.validate.certificates import DECISIONS

GROUP = "certificates.k8s.io"
NAME = "certificatesigningrequests.certificates.k8s.io"
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"
NO_REQUEST = "PEM block type must be CERTIFICATE REQUEST"
HIDDEN = "<certificate data>"
Object = dict[str, Any]


def prepare(subresource: str, now: str) -> Callable[[Object, Object], None]:
    """What an update of `/approval` or `/status` may change: metadata and conditions, of /status the certificate too;
    the request itself never, and the decision not by /status."""
    def change(new: Object, old: Object) -> None:
        given, before = new.get("status") or {}, old.get("status") or {}
        status: Object = dict(given)
        conditions = [dict(c) for c in given.get("conditions") or ()]
        if subresource == "approval":
            status.pop("certificate", None)
            if before.get("certificate"):
                status["certificate"] = before["certificate"]
        else:
            conditions = _undecided(conditions, before.get("conditions") or [])
        for condition in conditions:
            _stamp(condition, before.get("conditions") or [], now)
        status["conditions"] = conditions
        new["spec"] = old.get("spec")
        new["status"] = {k: v for k, v in status.items() if v}
        if not new["status"] and "status" not in old:
            del new["status"]
    return change


def _undecided(conditions: list[Object], before: list[Object]) -> list[Object]:
    """The conditions with the decision as it was before: in its old place where it is told, at the end where not."""
    decided = {c.get("type"): c for c in before if c.get("type") in DECISIONS}
    kept = [decided.pop(c["type"]) if c.get("type") in decided else c for c in conditions
            if c.get("type") in decided or c.get("type") not in DECISIONS]
    return [dict(c) for c in (*kept, *decided.values())]


def _stamp(condition: Object, before: list[Object], now: str) -> None:
    if not condition.get("lastUpdateTime"):
        condition["lastUpdateTime"] = now
    if not condition.get("lastTransitionTime"):
        same = (c for c in before if (c.get("type"), c.get("status")) == (condition.get("type"),
                                                                          condition.get("status")))
        condition["lastTransitionTime"] = next(same, {}).get("lastTransitionTime") or now


def faults(spec: Object) -> list[Cause]:
    """Why the PKCS #10 request cannot be used."""
    from cryptography import x509
    try:
        text = base64.b64decode(spec.get("request") or "", validate=True)
        if not text.lstrip().startswith((b"-----BEGIN CERTIFICATE REQUEST-----",
                                         b"-----BEGIN NEW CERTIFICATE REQUEST-----")):
            return [invalid("spec.request", spec.get("request") or "", NO_REQUEST)]
        x509.load_pem_x509_csr(text)
    except ValueError as error:
        return [invalid("spec.request", spec.get("request") or "", str(error).splitlines()[0])]
    return []


def certificate_fault(text: str) -> str:
    """Why a status.certificate (base64 of PEM) is none, "" when it holds certificates and nothing else."""
    from cryptography import x509
    try:
        pem = base64.b64decode(text, validate=True)
        kinds = re.findall(rb"^-----BEGIN ([A-Z0-9 ]+)-----", pem, re.M)
        if other := next((kind for kind in kinds if kind != b"CERTIFICATE"), b""):
            return f'only CERTIFICATE PEM blocks are allowed, found "{other.decode()}"'
        if not kinds:
            return "must contain at least one CERTIFICATE PEM block"
        x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        return str(error).splitlines()[0]
    return ""


class CertificateRequests(Plugin):
    """CertificateApproval, CertificateSigning, CertificateSubjectRestriction, and the identity of who asks."""

    async def mutate(self, attributes: Attributes) -> None:
        obj, old = attributes.obj, attributes.old
        if obj is None or attributes.resource.name != NAME or attributes.subresource:
            return
        spec: Object = obj.setdefault("spec", {})
        if attributes.operation == CREATE:
            info = attributes.user.as_info() if attributes.user is not None else {}
            for field in ("username", "uid", "groups", "extra"):
                spec.pop(field, None)
                if info.get(field):
                    spec[field] = info[field]
        elif old is not None:  # what was asked for never changes
            obj["spec"] = old.get("spec")

    async def validate(self, attributes: Attributes) -> None:
        obj = attributes.obj
        if obj is None or attributes.resource.name != NAME:
            return
        spec = obj.get("spec") or {}
        if attributes.operation == CREATE and not attributes.subresource:
            if causes := faults(spec):
                raise Invalid.of(attributes.resource.kind, attributes.name, causes, GROUP)
            if spec.get("signerName") == CLIENT_SIGNER and "system:masters" in organizations(spec):
                raise attributes.forbidden(f"use of {CLIENT_SIGNER} signer with system:masters group is not allowed")
        elif attributes.operation == UPDATE and attributes.subresource == "approval":
            self._permit(attributes, "approve", spec.get("signerName") or "")
        elif attributes.operation == UPDATE and attributes.subresource == "status":
            before, after = ((o or {}).get("status") or {} for o in (attributes.old, obj))
            issued = after.get("certificate")
            if before.get("certificate") != issued or _failures(before) != _failures(after):
                self._permit(attributes, "sign", spec.get("signerName") or "")
            if issued and issued != before.get("certificate") and (why := certificate_fault(issued)):
                raise Invalid.of(attributes.resource.kind, attributes.name,
                                 [invalid("status.certificate", HIDDEN, why)], GROUP)

    def _permit(self, attributes: Attributes, verb: str, signer: str) -> None:
        if not permitted(self.context, attributes, verb, signer):
            raise attributes.forbidden(f'user not permitted to {verb} requests with signerName "{signer}"')


def permitted(context: Context, attributes: Attributes, verb: str, signer: str) -> bool:
    """Whether who writes holds `verb` on a signer, by its name or for its whole domain."""
    authorizer, user = context.authorizer, attributes.user
    return authorizer is None or user is None or any(
        authorizer.decide(access.Attributes(user, verb, GROUP, "*", "signers", "", "", name)).allowed
        for name in (signer, signer.partition("/")[0] + "/*"))


def organizations(spec: Object) -> list[str]:
    """The groups a readable request asks for."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID
    subject = x509.load_pem_x509_csr(base64.b64decode(spec["request"])).subject
    return [str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]


def _failures(status: Object) -> list[Object]:
    return [c for c in status.get("conditions") or () if c.get("type") == "Failed"]
