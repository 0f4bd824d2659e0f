"""Validation of FlowSchemas and PriorityLevelConfigurations.

Upstream: k8s.io/kubernetes/pkg/apis/flowcontrol/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.errors import Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.names import dns_subdomain, in_range

Object = dict[str, Any]
MAX_PRECEDENCE = 10_000
EXEMPT = "exempt"
_SUBJECTS = {"Group": "group", "ServiceAccount": "serviceAccount", "User": "user"}
_VERBS = ("*", "create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch")
_LENDABLE_MAX = 100


def flow_schema(obj: Object) -> list[Cause]:
    spec, name = obj.get("spec") or {}, (obj.get("metadata") or {}).get("name") or ""
    found: list[Cause] = []
    precedence = spec.get("matchingPrecedence") or 0
    if not 1 <= precedence <= MAX_PRECEDENCE:
        found.append(invalid("spec.matchingPrecedence", precedence,
                             f"must be a value between 1 and {MAX_PRECEDENCE} (inclusive)"))
    elif precedence == 1 and name != EXEMPT:
        found.append(invalid("spec.matchingPrecedence", precedence, "only the schema named 'exempt' may have "
                             "matchingPrecedence 1"))
    method = spec.get("distinguisherMethod")
    if method is not None and method.get("type") not in ("ByNamespace", "ByUser"):
        found.append(not_supported("spec.distinguisherMethod.type", method.get("type") or "",
                                   ("ByNamespace", "ByUser")))
    level = (spec.get("priorityLevelConfiguration") or {}).get("name") or ""
    at = "spec.priorityLevelConfiguration.name"
    if not level:
        found.append(required(at, "must reference a priority level"))
    else:
        found += [invalid(at, level, m) for m in dns_subdomain(level)]
    for index, rule in enumerate(spec.get("rules") or ()):
        found += _rule(rule, f"spec.rules[{index}]")
    return found


def _rule(rule: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    if not rule.get("subjects"):
        found.append(required(f"{path}.subjects", "subjects must contain at least one value"))
    for index, subject in enumerate(rule.get("subjects") or ()):
        found += _subject(subject, f"{path}.subjects[{index}]")
    if not rule.get("resourceRules") and not rule.get("nonResourceRules"):
        found.append(required(path, "at least one of resourceRules and nonResourceRules has to be non-empty"))
    for index, each in enumerate(rule.get("resourceRules") or ()):
        at = f"{path}.resourceRules[{index}]"
        found += _verbs(each, at)
        for field in ("apiGroups", "resources"):
            found += _listed(each.get(field) or [], f"{at}.{field}")
        if not each.get("namespaces") and not each.get("clusterScope"):
            found.append(required(f"{at}.namespaces", "resource rules that are not cluster scoped must supply at least "
                                  "one namespace"))
    for index, each in enumerate(rule.get("nonResourceRules") or ()):
        at = f"{path}.nonResourceRules[{index}]"
        found += _verbs(each, at)
        found += _listed(each.get("nonResourceURLs") or [], f"{at}.nonResourceURLs")
        for position, url in enumerate(each.get("nonResourceURLs") or ()):
            if url != "*" and not url.startswith("/"):
                found.append(invalid(f"{at}.nonResourceURLs[{position}]", url, "must start with slash"))
    return found


def _listed(values: list[str], path: str) -> list[Cause]:
    if not values:
        return [required(path)]
    if "*" in values and len(values) > 1:
        return [invalid(path, values, "if '*' is present, must not specify other values")]
    return []


def _verbs(rule: Object, path: str) -> list[Cause]:
    verbs = rule.get("verbs") or []
    return _listed(verbs, f"{path}.verbs") + [not_supported(f"{path}.verbs", verb, _VERBS) for verb in verbs
                                              if "resources" in rule and verb not in _VERBS]


def _subject(subject: Object, path: str) -> list[Cause]:
    kind = subject.get("kind") or ""
    if kind not in _SUBJECTS:
        return [not_supported(f"{path}.kind", kind, tuple(_SUBJECTS))]
    field = _SUBJECTS[kind]
    found = [forbidden(f"{path}.{f}", f"{f} is forbidden when subject kind is not '{k}'")
             for k, f in _SUBJECTS.items() if k != kind and subject.get(f) is not None]
    part = subject.get(field)
    if part is None:
        return [*found, required(f"{path}.{field}", f"{field} is required when subject kind is '{kind}'")]
    if not part.get("name"):
        found.append(required(f"{path}.{field}.name"))
    if kind == "ServiceAccount" and not part.get("namespace"):
        found.append(required(f"{path}.{field}.namespace", "must specify namespace for service account"))
    return found


def priority_level(obj: Object) -> list[Cause]:
    spec, name = obj.get("spec") or {}, (obj.get("metadata") or {}).get("name") or ""
    kind = spec.get("type") or ""
    if kind not in ("Exempt", "Limited"):
        return [not_supported("spec.type", kind, ("Exempt", "Limited"))]
    if (name == EXEMPT) != (kind == "Exempt"):
        return [invalid("spec.type", kind, "type must be 'Exempt' if and only if name is 'exempt'")]
    if kind == "Exempt":
        if spec.get("limited") is not None:
            return [forbidden("spec.limited", "must be nil if the type is not Limited")]
        return _shares(spec.get("exempt") or {}, "spec.exempt", 0)
    found: list[Cause] = []
    if spec.get("exempt") is not None:
        found.append(forbidden("spec.exempt", "must be nil if the type is Limited"))
    limited = spec.get("limited")
    if limited is None:
        return [*found, required("spec.limited", "must not be empty when type is Limited")]
    return found + _shares(limited, "spec.limited", 0) + _response(limited.get("limitResponse") or {},
                                                                     "spec.limited.limitResponse")


def _shares(part: Object, path: str, least: int) -> list[Cause]:
    found: list[Cause] = []
    shares, lendable, borrowing = (part.get(f) for f in ("nominalConcurrencyShares", "lendablePercent",
                                                         "borrowingLimitPercent"))
    if shares is not None and shares < least:
        found.append(invalid(f"{path}.nominalConcurrencyShares", shares, "must be a non-negative integer"))
    if lendable is not None and not 0 <= lendable <= _LENDABLE_MAX:
        found.append(invalid(f"{path}.lendablePercent", lendable, in_range(0, _LENDABLE_MAX)))
    if borrowing is not None and borrowing < 0:
        found.append(invalid(f"{path}.borrowingLimitPercent", borrowing,
                             "if specified, must be a non-negative integer"))
    return found


def _response(response: Object, path: str) -> list[Cause]:
    kind, queuing = response.get("type") or "", response.get("queuing")
    if kind == "Reject":
        return [] if queuing is None else [forbidden(f"{path}.queuing", "must be nil if limited.limitResponse.type is "
                                                     "not Limited")]
    if kind != "Queue":
        return [not_supported(f"{path}.type", kind, ("Queue", "Reject"))]
    if queuing is None:
        return [required(f"{path}.queuing", "must not be empty if limited.limitResponse.type is Limited")]
    found = [invalid(f"{path}.queuing.{f}", queuing.get(f) or 0, "must be positive")
             for f in ("queues", "handSize", "queueLengthLimit") if (queuing.get(f) or 0) <= 0]
    queues, hand = queuing.get("queues") or 0, queuing.get("handSize") or 0
    if queues > 10_000_000:
        found.append(invalid(f"{path}.queuing.queues", queues, "must not be greater than 10000000"))
    if hand > queues:
        found.append(invalid(f"{path}.queuing.handSize", hand, f"should not be greater than queues ({queues})"))
    return found
