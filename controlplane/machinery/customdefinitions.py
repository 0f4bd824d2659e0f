"""What a CustomResourceDefinition means: defaults, what a write prepares, names, versions, conditions.

Owns the pure facts about definitions that several places need: which version is stored, how versions are ordered, what
its names are in conflict with, and the conditions that say so. A definition is the plain object; nothing here keeps
one. Called by the strategies and by the apiserver's custom resources.

Upstream: k8s.io/apiextensions-apiserver/pkg/{apihelpers,registry/customresourcedefinition,controller/status}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects

Object = dict[str, Any]

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
APPROVED = "api-approved.kubernetes.io"
WEBHOOK_PORT = 443
_VERSION = re.compile(r"v([1-9]\d*)(?:(alpha|beta)([1-9]\d*))?")
_STAGES = {None: 2, "beta": 1, "alpha": 0}


def name_defaults(names: Object) -> None:
    """Singular and list kind follow from the kind."""
    kind = names.get("kind") or ""
    if not names.get("singular"):
        names["singular"] = kind.lower()
    if not names.get("listKind") and kind:
        names["listKind"] = kind + "List"


def default(obj: Object) -> None:
    """Fill in what a definition may leave out. In place, idempotent."""
    spec = obj.setdefault("spec", {})
    if isinstance(spec.get("names"), dict):
        name_defaults(spec["names"])
    conversion = spec.setdefault("conversion", {})
    if not conversion.get("strategy"):
        conversion["strategy"] = "None"
    service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
    if isinstance(service, dict) and service.get("port") is None:
        service["port"] = WEBHOOK_PORT
    if (storage := storage_version(obj)) and not (obj.get("status") or {}).get("storedVersions"):
        obj["status"] = {**(obj.get("status") or {}), "storedVersions": [storage]}


def prepare(new: Object, old: Object | None) -> None:
    """The versions objects may be stored in are remembered from the moment one is the storage version."""
    status = dict((old or {}).get("status") or {})
    stored = list(status.get("storedVersions") or ())
    storage = storage_version(new)
    if storage and storage not in stored:
        stored.append(storage)
    if not old:
        status = {}
    new["status"] = {**status, "storedVersions": stored}


def storage_version(obj: Object) -> str:
    return next((v.get("name") or "" for v in (obj.get("spec") or {}).get("versions") or () if v.get("storage")), "")


def version_rank(version: str) -> tuple[int, int, int, str]:
    """Sort key: stable before beta before alpha, newer first, other names last in their own order."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return 1, 0, 0, version
    major, stage, minor = match.groups()
    return 0, -_STAGES[stage], -int(major) * 1_000_000 - int(minor or 0), ""


# --- names ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Taken:
    """Names other kinds of the same group hold: resource names (plural, singular, short) and kinds (list kinds too)."""

    resources: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()


def taken(accepted: Iterable[Object]) -> Taken:
    """All names in `status.acceptedNames` of other definitions."""
    resources: set[str] = set()
    kinds: set[str] = set()
    for names in accepted:
        resources |= {names.get("plural") or "", names.get("singular") or "", *(names.get("shortNames") or ())}
        kinds |= {names.get("kind") or "", names.get("listKind") or ""}
    return Taken(frozenset(resources - {""}), frozenset(kinds - {""}))


def accept(requested: Object, accepted: Object, others: Taken) -> tuple[Object, tuple[str, str, str]]:
    """(acceptedNames, (status, reason, message) of NamesAccepted): what is free is accepted, and the rest named."""
    made = dict(accepted)
    fault: tuple[str, str] | None = None
    for field, reason, used in (("plural", "PluralConflict", others.resources),
                                ("singular", "SingularConflict", others.resources),
                                ("kind", "KindConflict", others.kinds), ("listKind", "ListKindConflict", others.kinds)):
        name = requested.get(field) or ""
        if name and name in used and name != accepted.get(field):
            fault = fault or (reason, f'"{name}" is already in use')
        elif name:
            made[field] = name
    shorts = list(requested.get("shortNames") or ())
    clashing = [s for s in shorts if s in others.resources]
    if clashing:
        fault = fault or ("ShortNamesConflict", f'"{clashing[0]}" is already in use')
    else:
        made["shortNames"] = shorts
    made["categories"] = list(requested.get("categories") or ())
    made = {k: v for k, v in made.items() if v}
    if fault is not None:
        return made, ("False", *fault)
    return made, ("True", "NoConflicts", "no conflicts found")


def established(obj: Object, names_accepted: bool) -> tuple[str, str, str] | None:
    """(status, reason, message) of Established, None to leave it: once established a definition stays so."""
    if objects.holds(obj, "Established"):
        return None
    if not names_accepted:
        return "False", "NotAccepted", "not all names are accepted"
    return "True", "InitialNamesAccepted", "the initial names have been accepted"


def protected(group: str) -> bool:
    """Whether a group belongs to the Kubernetes project."""
    return group in ("k8s.io", "kubernetes.io") or group.endswith((".k8s.io", ".kubernetes.io"))


def approval(obj: Object) -> tuple[str, str, str] | None:
    """(status, reason, message) of KubernetesAPIApprovalPolicyConformant, for protected groups."""
    if not protected(obj["spec"].get("group") or ""):
        return None
    given = (obj["metadata"].get("annotations") or {}).get(APPROVED) or ""
    if given.startswith("unapproved"):
        return "False", "UnapprovedAnnotation", f'not approved: "{given}"'
    if given.startswith(("https://", "http://")):
        return "True", "ApprovedAnnotation", f"approved in {given}"
    return "False", "MissingAnnotation", (f'protected groups must have approval annotation "{APPROVED}", see '
                                          "https://github.com/kubernetes/enhancements/pull/1111")


def schema_of(version: Object) -> Object:
    return (version.get("schema") or {}).get("openAPIV3Schema") or {}
