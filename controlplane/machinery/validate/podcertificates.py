"""Validation of PodCertificateRequests: who asks for which pod, and what a signer may answer.

Pure. What takes reading keys and certificates is the apiserver's `podcertificates` to say: it needs a heavy library.

Upstream: ValidatePodCertificateRequest… in k8s.io/kubernetes/pkg/apis/certificates/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import IMMUTABLE, Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.validate.certificates import signer

Object = dict[str, Any]
KEY_TYPES = ("ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096")
MIN_SECONDS, MAX_SECONDS = 3600, 91 * 86400
DEFAULT_SECONDS = MAX_OWN_SECONDS = 86400  # of what Kubernetes' own signers are asked for, too
OWN = "kubernetes.io/"
UID_LIMIT = 128
OUTCOMES = ("Denied", "Failed", "Issued")
MARGIN = 600  # seconds after the begin and before the end of a certificate in which no refresh may begin
TIMES = ("notBefore", "beginRefreshAt", "notAfter")


def seconds(value: int, signer_name: str, path: str) -> list[Cause]:
    """How long a certificate may be asked for."""
    longest = MAX_OWN_SECONDS if signer_name.startswith(OWN) else MAX_SECONDS
    return [] if MIN_SECONDS <= value <= longest else [invalid(path, value, f"must be in the range [{MIN_SECONDS}, "
                                                                          f"{longest}]")]


def notes(annotations: Object, path: str) -> list[Cause]:
    """What pods tell signers: annotations whose keys have domains."""
    found = [invalid(path, key, m) for key in annotations for m in names.annotation_key(key)]
    return found + [invalid(f"{path}[{key}]", key, "must be domain-prefixed") for key in annotations if "/" not in key]


def request(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = signer(spec.get("signerName") or "", "spec.signerName")
    for field in ("podName", "serviceAccountName", "nodeName"):
        name = spec.get(field) or ""
        found += [invalid(f"spec.{field}", name, m) for m in names.dns_subdomain(name)]
    for field in ("podUID", "serviceAccountUID", "nodeUID"):
        if not spec.get(field):
            found.append(invalid(f"spec.{field}", "", "must not be empty"))
        elif len(spec[field]) > UID_LIMIT:
            found.append(invalid(f"spec.{field}", spec[field], f"must be no more than {UID_LIMIT} characters"))
    if spec.get("maxExpirationSeconds") is None:
        found.append(required("spec.maxExpirationSeconds", "must be set"))
    else:
        found += seconds(spec["maxExpirationSeconds"], spec.get("signerName") or "", "spec.maxExpirationSeconds")
    found += notes(spec.get("unverifiedUserAnnotations") or {}, "spec.unverifiedUserAnnotations")
    if spec.get("stubPKCS10Request"):
        found += [forbidden(f"spec.{field}", "must be empty if spec.stubPKCS10Request is set")
                  for field in ("pkixPublicKey", "proofOfPossession") if spec.get(field)]
    else:
        found += [required(f"spec.{field}") for field in ("pkixPublicKey", "proofOfPossession") if not spec.get(field)]
    return found


def changes(new: Object, old: Object) -> list[Cause]:
    """The request stands as it was made; an outcome, once told, stands too."""
    if new.get("spec") != old.get("spec"):
        return [invalid("spec", "", IMMUTABLE)]
    before, after = old.get("status") or {}, new.get("status") or {}
    if before == after:
        return []
    if outcomes(before):
        return [forbidden("status", f'immutable after the "{outcomes(before)[0]["type"]}" condition is set')]
    return _outcome(after, new["spec"])


def outcomes(status: Object) -> list[Object]:
    return [c for c in status.get("conditions") or () if c.get("type") in OUTCOMES]


def _outcome(status: Object, spec: Object) -> list[Cause]:
    told, found = outcomes(status), []
    for index, condition in enumerate(status.get("conditions") or ()):
        at = f"status.conditions[{index}]"
        if condition.get("type") not in OUTCOMES:
            found.append(not_supported(f"{at}.type", condition.get("type") or "", OUTCOMES))
        elif condition.get("status") != "True":
            found.append(not_supported(f"{at}.status", condition.get("status") or "", ("True",)))
    if len(told) > 1:
        found.append(invalid("status.conditions", [c["type"] for c in told], "There may be at most one condition with "
                             'type "Issued", "Denied", or "Failed"'))
    issued = any(c["type"] == "Issued" for c in told)
    fields = ("certificateChain", *TIMES)
    if not issued:
        return found + [forbidden(f"status.{f}", "must not be set unless the Issued condition is") for f in fields
                        if status.get(f)]
    if missing := [required(f"status.{f}", "must be set for issued certificates") for f in fields if not status.get(f)]:
        return found + missing
    return found + _times(status, int(spec.get("maxExpirationSeconds") or DEFAULT_SECONDS))


def _times(status: Object, longest: int) -> list[Cause]:
    begin, refresh, end = (parse_rfc3339(status[f]) for f in TIMES)
    found = []
    if end - begin > longest:
        found.append(invalid("status.notAfter", status["notAfter"], "the lifetime must not exceed "
                             "spec.maxExpirationSeconds"))
    elif end - begin < MIN_SECONDS:
        found.append(invalid("status.notAfter", status["notAfter"], f"the lifetime must be at least {MIN_SECONDS} "
                             "seconds"))
    if refresh < begin + MARGIN:
        found.append(invalid("status.beginRefreshAt", status["beginRefreshAt"], "must be at least 10 minutes after "
                             "status.notBefore"))
    if refresh > end - MARGIN:
        found.append(invalid("status.beginRefreshAt", status["beginRefreshAt"], "must be at least 10 minutes before "
                             "status.notAfter"))
    return found


def projection(body: Object, path: str) -> list[Cause]:
    """A podCertificate source of a projected volume, but for its paths."""
    name = body.get("signerName") or ""
    found = signer(name, f"{path}.signerName")
    if (body.get("keyType") or "") not in KEY_TYPES:
        found.append(not_supported(f"{path}.keyType", body.get("keyType") or "", KEY_TYPES))
    if body.get("maxExpirationSeconds") is not None:
        found += seconds(body["maxExpirationSeconds"], name, f"{path}.maxExpirationSeconds")
    if not any(body.get(p) for p in PATHS):
        found.append(required(path, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"))
    return found + notes(body.get("userAnnotations") or {}, f"{path}.userAnnotations")


PATHS = ("credentialBundlePath", "keyPath", "certificateChainPath")
