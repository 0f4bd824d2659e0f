"""Validation of Roles, ClusterRoles and their bindings.

Upstream: k8s.io/kubernetes/pkg/apis/rbac/validation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, invalid, not_supported, required
from controlplane.machinery.validate.workloads import label_selector

Object = dict[str, Any]
GROUP = "rbac.authorization.k8s.io"
KINDS = ("ServiceAccount", "User", "Group")
SELECTORS = "aggregationRule.clusterRoleSelectors"


def role(obj: Object) -> list[Cause]:
    return _rules(obj, True)


def cluster_role(obj: Object) -> list[Cause]:
    found = _rules(obj, False)
    aggregation = obj.get("aggregationRule")
    if aggregation is None:
        return found
    selectors = aggregation.get("clusterRoleSelectors") or ()
    if not selectors:
        found.append(required(SELECTORS, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
    for index, selector in enumerate(selectors):
        found += label_selector(selector, f"{SELECTORS}[{index}]")
    return found


def _rules(obj: Object, namespaced: bool) -> list[Cause]:
    return [cause for index, rule in enumerate(obj.get("rules") or ())
            for cause in _rule(rule, f"rules[{index}]", namespaced)]


def _rule(rule: Object, path: str, namespaced: bool) -> list[Cause]:
    found = [] if rule.get("verbs") else [required(f"{path}.verbs", "verbs must contain at least one value")]
    urls = rule.get("nonResourceURLs")
    if urls:
        if namespaced:
            found.append(invalid(f"{path}.nonResourceURLs", urls,
                                 "namespaced rules cannot apply to non-resource URLs"))
        if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
            found.append(invalid(f"{path}.nonResourceURLs", urls,
                                 "rules cannot apply to both regular resources and non-resource URLs"))
        return found
    if not rule.get("apiGroups"):
        found.append(required(f"{path}.apiGroups", "resource rules must supply at least one api group"))
    if not rule.get("resources"):
        found.append(required(f"{path}.resources", "resource rules must supply at least one resource"))
    return found


def binding(*roles: str) -> Callable[[Object], list[Cause]]:
    """The rule of a binding that may name these kinds of roles; a RoleBinding when `Role` is among them."""
    def check(obj: Object) -> list[Cause]:
        ref = obj.get("roleRef") or {}
        found = []
        if ref.get("apiGroup", "") != GROUP:
            found.append(not_supported("roleRef.apiGroup", ref.get("apiGroup", ""), [GROUP]))
        if ref.get("kind", "") not in roles:
            found.append(not_supported("roleRef.kind", ref.get("kind", ""), roles))
        name = ref.get("name", "")
        found += [invalid("roleRef.name", name, m) for m in names.path_segment(name)] if name else \
            [required("roleRef.name")]
        for index, subject in enumerate(obj.get("subjects") or ()):
            found += _subject(subject, f"subjects[{index}]", "Role" in roles)
        return found
    return check


def _subject(subject: Object, path: str, namespaced: bool) -> list[Cause]:
    name, kind, group = (subject.get(field) or "" for field in ("name", "kind", "apiGroup"))
    found = [] if name else [required(f"{path}.name")]
    if kind == "ServiceAccount":
        found += [invalid(f"{path}.name", name, m) for m in (names.dns_subdomain(name) if name else ())]
        if group:
            found.append(not_supported(f"{path}.apiGroup", group, [""]))
        if not namespaced and not subject.get("namespace"):
            found.append(required(f"{path}.namespace"))
    elif kind in KINDS:
        if group != GROUP:
            found.append(not_supported(f"{path}.apiGroup", group, [GROUP]))
    else:
        found.append(not_supported(f"{path}.kind", kind, KINDS))
    return found


def binding_changes(new: Object, old: Object) -> list[Cause]:
    """What a binding grants never changes; only to whom."""
    after, before = new.get("roleRef") or {}, old.get("roleRef") or {}
    if after == before:
        return []
    shown = {"APIGroup": after.get("apiGroup", ""), "Kind": after.get("kind", ""), "Name": after.get("name", "")}
    return [invalid("roleRef", shown, "cannot change roleRef")]
