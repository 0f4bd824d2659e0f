"""Validation of where a pod wants to run: node affinity, inter-pod affinity, spreading over topologies.

Upstream: validateAffinity and validateTopologySpreadConstraints in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, duplicate, forbidden, invalid, not_supported, required
from controlplane.machinery.validate.metadata import label_selector

Object = dict[str, Any]
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
MAX_WEIGHT = 100
_NODE_OPERATORS = ("DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn")
_UNSATISFIABLE = ("DoNotSchedule", "ScheduleAnyway")
_INCLUSION = ("Honor", "Ignore")


def affinity(wishes: Object, path: str) -> list[Cause]:
    """A pod's `spec.affinity`."""
    found: list[Cause] = []
    node = wishes.get("nodeAffinity") or {}
    if node.get(REQUIRED) is not None:
        found += node_selector(node[REQUIRED], f"{path}.nodeAffinity.{REQUIRED}")
    for index, term in enumerate(node.get(PREFERRED) or ()):
        at = f"{path}.nodeAffinity.{PREFERRED}[{index}]"
        found += _weight(term, at) + node_term(term.get("preference") or {}, f"{at}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        part = wishes.get(kind) or {}
        for index, term in enumerate(part.get(REQUIRED) or ()):
            found += _pod_term(term, f"{path}.{kind}.{REQUIRED}[{index}]")
        for index, weighted in enumerate(part.get(PREFERRED) or ()):
            at = f"{path}.{kind}.{PREFERRED}[{index}]"
            found += _weight(weighted, at) + _pod_term(weighted.get("podAffinityTerm") or {}, f"{at}.podAffinityTerm")
    return found


def _weight(term: Object, path: str) -> list[Cause]:
    weight = term.get("weight") or 0
    return [] if 1 <= weight <= MAX_WEIGHT else [invalid(f"{path}.weight", weight, "must be in the range 1-100")]


def node_selector(selector: Object, path: str) -> list[Cause]:
    terms = selector.get("nodeSelectorTerms") or []
    if not terms:
        return [required(f"{path}.nodeSelectorTerms", "must have at least one node selector term")]
    return [cause for index, term in enumerate(terms)
            for cause in node_term(term, f"{path}.nodeSelectorTerms[{index}]")]


def node_term(term: Object, path: str) -> list[Cause]:
    """Expressions over a node's labels, and over its name."""
    found: list[Cause] = []
    for position, expression in enumerate(term.get("matchExpressions") or ()):
        at = f"{path}.matchExpressions[{position}]"
        operator, values = expression.get("operator") or "", expression.get("values") or []
        found += [invalid(f"{at}.key", expression.get("key") or "", m)
                  for m in names.label_key(expression.get("key") or "")]
        if operator not in _NODE_OPERATORS:
            found.append(invalid(f"{at}.operator", operator, "not a valid selector operator"))
        elif operator in ("In", "NotIn") and not values:
            found.append(required(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            found.append(forbidden(f"{at}.values", "may not be specified when `operator` is 'Exists' or "
                                   "'DoesNotExist'"))
        elif operator in ("Gt", "Lt") and len(values) != 1:
            found.append(required(f"{at}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'"))
    for position, field in enumerate(term.get("matchFields") or ()):
        at = f"{path}.matchFields[{position}]"
        if field.get("operator") not in ("In", "NotIn"):
            found.append(invalid(f"{at}.operator", field.get("operator") or "", "not a valid selector operator"))
        elif len(field.get("values") or ()) != 1:
            found.append(required(f"{at}.values", "must be only one value when `operator` is 'In' or 'NotIn' for node "
                                  "field selector"))
        if field.get("key") != "metadata.name":
            found.append(invalid(f"{at}.key", field.get("key") or "", "not a valid field selector key"))
    return found


def _pod_term(term: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    for field in ("labelSelector", "namespaceSelector"):
        if term.get(field) is not None:
            found += label_selector(term[field], f"{path}.{field}")
    for name in term.get("namespaces") or ():
        found += [invalid(f"{path}.namespace", name, m) for m in names.dns_label(name)]
    found += _label_keys(term, path)
    key = term.get("topologyKey") or ""
    if not key:
        return [*found, required(f"{path}.topologyKey", "can not be empty")]
    return found + [invalid(f"{path}.topologyKey", key, m) for m in names.label_key(key)]


def _label_keys(term: Object, path: str) -> list[Cause]:
    """Keys whose values are taken from the incoming pod: they extend a selector and must not repeat it."""
    found: list[Cause] = []
    selector = term.get("labelSelector")
    listed = {f: term.get(f) or [] for f in ("matchLabelKeys", "mismatchLabelKeys")}
    for field, keys in listed.items():
        if keys and selector is None:
            found.append(forbidden(f"{path}.{field}", "must not be specified when labelSelector is not set"))
            continue
        for index, key in enumerate(keys):
            found += [invalid(f"{path}.{field}[{index}]", key, m) for m in names.label_key(key)]
            if field == "matchLabelKeys" and key in listed["mismatchLabelKeys"]:
                found.append(invalid(f"{path}.{field}[{index}]", key, "exists in both matchLabelKeys and "
                                     "mismatchLabelKeys"))
    return found


def spreads(listed: list[Object], path: str) -> list[Cause]:
    """A pod's `spec.topologySpreadConstraints`."""
    found: list[Cause] = []
    seen: set[tuple[Any, Any]] = set()
    for index, spread in enumerate(listed):
        at, skew = f"{path}[{index}]", spread.get("maxSkew") or 0
        key, action = spread.get("topologyKey") or "", spread.get("whenUnsatisfiable") or ""
        if skew <= 0:
            found.append(invalid(f"{at}.maxSkew", skew, "must be greater than zero"))
        if not key:
            found.append(required(f"{at}.topologyKey", "can not be empty"))
        else:
            found += [invalid(f"{at}.topologyKey", key, m) for m in names.label_key(key)]
        if action not in _UNSATISFIABLE:
            found.append(not_supported(f"{at}.whenUnsatisfiable", action, _UNSATISFIABLE))
        if (key, action) in seen:
            found.append(duplicate(f"{at}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {action}}}"))
        seen.add((key, action))
        found += _domains(spread, action, at)
        for field in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            if spread.get(field) not in (None, *_INCLUSION):
                found.append(not_supported(f"{at}.{field}", spread[field], _INCLUSION))
        if spread.get("labelSelector") is not None:
            found += label_selector(spread["labelSelector"], f"{at}.labelSelector")
        found += _label_keys({**spread, "mismatchLabelKeys": None}, at)
    return found


def _domains(spread: Object, action: str, path: str) -> list[Cause]:
    least = spread.get("minDomains")
    if least is None:
        return []
    if least <= 0:
        return [invalid(f"{path}.minDomains", least, "must be greater than zero")]
    return [] if action == "DoNotSchedule" else [
        invalid(f"{path}.minDomains", least, "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not "
                + action)]
