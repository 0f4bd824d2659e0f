"""Validation of CertificateSigningRequests: what is asked for, and how decisions about it may change.

That the request itself can be read is the apiserver's `signing` to say: it needs a heavy library.

Upstream: k8s.io/kubernetes/pkg/apis/certificates/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, duplicate, forbidden, invalid, not_supported, required

Object = dict[str, Any]
USAGES = ("signing", "digital signature", "content commitment", "key encipherment", "key agreement",
          "data encipherment", "cert sign", "crl sign", "encipher only", "decipher only", "any", "server auth",
          "client auth", "code signing", "email protection", "s/mime", "ipsec end system", "ipsec tunnel", "ipsec user",
          "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc")
MIN_SECONDS = 600
LEGACY = "kubernetes.io/legacy-unknown"
DECISIONS = ("Approved", "Denied")
_FINAL = (*DECISIONS, "Failed")  # conditions that are true or absent
_STATUSES = ("True", "False", "Unknown")


def request(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found: list[Cause] = []
    usages = spec.get("usages") or []
    if not usages:
        found.append(required("spec.usages"))
    for index, usage in enumerate(usages):
        if usage not in USAGES:
            found.append(not_supported(f"spec.usages[{index}]", usage, USAGES))
        elif usage in usages[:index]:
            found.append(duplicate(f"spec.usages[{index}]", usage))
    found += signer(spec.get("signerName") or "", "spec.signerName")
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < MIN_SECONDS:
        found.append(invalid("spec.expirationSeconds", seconds,
                             "may not specify a duration less than 600 seconds (10 minutes)"))
    return found + _conditions((obj.get("status") or {}).get("conditions") or [])


def signer(name: str, at: str) -> list[Cause]:
    """The name of a signer."""
    if not name:
        return [required(at)]
    if name == LEGACY:
        return [invalid(at, name, "the legacy signerName is not allowed via this API version")]
    domain, slash, path = name.partition("/")
    if not slash:
        return [invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")]
    found = [invalid(at, domain, m) for m in names.dns_subdomain(domain)]
    if "." not in domain:
        found.append(invalid(at, domain, "should be a domain with at least two segments separated by dots"))
    parts = [m for part in path.split(".") for m in (names.dns_label(part) if part else ["must not be empty"])]
    return found + [invalid(at, path, m) for m in dict.fromkeys(parts)]


def _conditions(conditions: list[Object]) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, condition in enumerate(conditions):
        at, kind, status = f"status.conditions[{index}]", condition.get("type") or "", condition.get("status") or ""
        if not kind:
            found.append(required(f"{at}.type"))
        if not status:
            found.append(required(f"{at}.status"))
        elif status not in (allowed := ("True",) if kind in _FINAL else _STATUSES):
            found.append(not_supported(f"{at}.status", status, allowed))
        if kind in seen:
            found.append(duplicate(f"{at}.type", kind))
        if kind in DECISIONS and (other := DECISIONS[kind == DECISIONS[0]]) in seen:
            found.append(invalid(f"{at}.type", kind, f"{other} and {kind} conditions are mutually exclusive"))
        seen.add(kind)
    return found


def changes(new: Object, old: Object) -> list[Cause]:
    """What no update may do: decisions stay, and so does an issued certificate."""
    found = []
    after, before = ({c.get("type"): c for c in (o.get("status") or {}).get("conditions") or ()} for o in (new, old))
    for kind in _FINAL:
        if kind in before and kind not in after:
            found.append(forbidden("status.conditions", f'updates may not remove a condition of type "{kind}"'))
    issued = (old.get("status") or {}).get("certificate")
    if issued and (new.get("status") or {}).get("certificate") != issued:
        found.append(forbidden("status.certificate", "updates may not modify existing certificate content"))
    return found
