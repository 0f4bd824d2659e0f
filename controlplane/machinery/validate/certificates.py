"""Validation of CertificateSigningRequests and ClusterTrustBundles: what is asked for and how decisions about it may
change; whose certificates a bundle holds.

That requests and certificates can be read is the apiserver's `signing` and `trustbundles` to say: it needs a heavy
library.

Upstream: k8s.io/kubernetes/pkg/apis/certificates/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import (
    IMMUTABLE,
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_long,
)
from controlplane.machinery.validate import metadata

Object = dict[str, Any]
USAGES = ("signing", "digital signature", "content commitment", "key encipherment", "key agreement",
          "data encipherment", "cert sign", "crl sign", "encipher only", "decipher only", "any", "server auth",
          "client auth", "code signing", "email protection", "s/mime", "ipsec end system", "ipsec tunnel", "ipsec user",
          "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc")
MIN_SECONDS = 600
LEGACY = "kubernetes.io/legacy-unknown"
SIGNER_MAX = 2 * names.SUBDOMAIN_MAX + names.LABEL_MAX + 2  # characters of a signer's name
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
    if spec.get("signerName") == LEGACY:
        found.append(invalid("spec.signerName", LEGACY, "the legacy signerName is not allowed via this API version"))
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < MIN_SECONDS:
        found.append(invalid("spec.expirationSeconds", seconds,
                             "may not specify a duration less than 600 seconds (10 minutes)"))
    return found + _conditions((obj.get("status") or {}).get("conditions") or [])


def signer(name: str, at: str) -> list[Cause]:
    """The name of a signer."""
    if not name:
        return [required(at)]
    if name.count("/") != 1:
        return [invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")]
    domain, path = name.split("/")
    found = [too_long(at, names.SUBDOMAIN_MAX)] if len(domain) > names.SUBDOMAIN_MAX else []
    found += _segments(domain, names.dns_label, at)
    if "." not in domain:
        found.append(invalid(at, domain, "should be a domain with at least two segments separated by dots"))
    found += _segments(path, names.dns_subdomain, at)
    return found + ([too_long(at, SIGNER_MAX)] if len(name) > SIGNER_MAX else [])


def _segments(text: str, rule: names.Validator, at: str) -> list[Cause]:
    """What is wrong with the first wrong one of what stands between dots."""
    wrong = next((s for s in text.split(".") if rule(s)), None)
    return [] if wrong is None else [invalid(at, text, f'validating label "{wrong}": {why}') for why in rule(wrong)]


def any_name(_: str) -> list[str]:
    """How a ClusterTrustBundle may be named depends on its signer: `bundle` says it."""
    return []


def bundle(obj: Object) -> list[Cause]:
    """A ClusterTrustBundle but for its certificates."""
    meta, of = obj["metadata"], (obj.get("spec") or {}).get("signerName") or ""
    prefix = meta.get("generateName") or ""
    found = [invalid("metadata.generateName", prefix, why) for why in _bundle_name(prefix.rstrip("-"), of)] \
        if prefix else []
    found += [invalid("metadata.name", meta["name"], why) for why in _bundle_name(meta["name"], of)]
    return found + (signer(of, "spec.signerName") if of else [])


def _bundle_name(name: str, of: str) -> list[str]:
    if not of:
        return ['ClusterTrustBundle without signer name must not have ":" in its name'] if ":" in name \
            else names.dns_subdomain(name)
    prefix = of.replace("/", ":") + ":"
    if not name.startswith(prefix):
        return [f"ClusterTrustBundle for signerName {of} must be named with prefix {prefix}"]
    return names.dns_subdomain(name.removeprefix(prefix))


def projection(body: Object, path: str) -> list[Cause]:
    """A clusterTrustBundle source of a projected volume, but for its path."""
    name, of, chosen = body.get("name"), body.get("signerName"), body.get("labelSelector")
    if name is not None and of is not None:
        return [invalid(path, body, "only one of name and signerName may be used")]
    if name is not None:
        found = [] if name else [required(f"{path}.name", "must be a valid object name")]
        found += [invalid(f"{path}.name", name, f"not a valid clustertrustbundlename: {why}")
                  for why in _bundle_name(name, name.rpartition(":")[0].replace(":", "/"))]
        return found if chosen is None else [*found, invalid(f"{path}.labelSelector", chosen, "labelSelector must be "
                                                            "unset if name is specified")]
    if of is None:
        return [required(path, "either name or signerName must be specified")]
    found = [] if of else [required(f"{path}.signerName", "must be a valid signer name")]
    found += signer(of, f"{path}.signerName")
    return found + metadata.label_selector(chosen or {}, f"{path}.labelSelector")


def bundle_changes(new: Object, old: Object) -> list[Cause]:
    after, before = ((o.get("spec") or {}).get("signerName") or "" for o in (new, old))
    return [] if after == before else [invalid("spec.signerName", after, IMMUTABLE)]


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
