"""Validation of what bounds and ranks pods: LimitRanges, ResourceQuotas, PriorityClasses, RuntimeClasses.

Upstream: k8s.io/kubernetes/pkg/apis/{core,scheduling,node}/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names, quantity
from controlplane.machinery.errors import (
    IMMUTABLE,
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
)
from controlplane.machinery.validate import metadata, pods
from controlplane.machinery.validate.workloads import NEGATIVE

Object = dict[str, Any]
MAX_USER_PRIORITY = 1_000_000_000
SYSTEM_PREFIX = "system-"
SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_SCOPES = ("BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass",
           "Terminating", "VolumeAttributesClass")
_COUNTED = frozenset(("pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps",
                      "persistentvolumeclaims", "services.nodeports", "services.loadbalancers"))
_QUOTA_NAMES = frozenset(("cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.storage",
                          "requests.ephemeral-storage", "limits.cpu", "limits.memory",
                          "limits.ephemeral-storage")) | _COUNTED


def limit_range(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
        at = f"spec.limits[{index}]"
        kind = item.get("type") or ""
        found += [invalid(f"{at}.type", kind, m) for m in names.qualified_name(kind)]
        if kind in seen:
            found.append(duplicate(f"{at}.type", kind))
        seen.add(kind)
        found += _limits(item, kind, at)
    return found


def _limits(item: Object, kind: str, path: str) -> list[Cause]:
    found: list[Cause] = []
    if kind == "Pod":
        found += [forbidden(f"{path}.{f}", "may not be specified when `type` is 'Pod'")
                  for f in ("default", "defaultRequest") if item.get(f)]
    if kind == "PersistentVolumeClaim" and not (item.get("min") or {}).get("storage") and not (
            item.get("max") or {}).get("storage"):
        found.append(required(f"{path}.limits", "either minimum or maximum storage value is required, but neither was "
                              "provided"))
    keys = sorted({k for f in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio")
                   for k in item.get(f) or {}})
    for key in keys:
        amounts = {f: quantity.parse(item[f][key]) for f in ("max", "min", "default", "defaultRequest",
                                                             "maxLimitRequestRatio") if key in (item.get(f) or {})}
        ordered = [f for f in ("min", "defaultRequest", "default", "max") if f in amounts]
        for low, high in ((a, b) for i, a in enumerate(ordered) for b in ordered[i + 1:]):
            if amounts[low] > amounts[high]:
                called = {"min": "min", "max": "max", "default": "default", "defaultRequest": "default request"}
                where = low if high == "max" or low == "defaultRequest" else high
                relation = ("greater than" if where == low else "less than")
                first, second = (low, high) if where == low else (high, low)
                found.append(invalid(f"{path}.{where}[{key}]", item[where][key],
                                     f"{called[first]} value {item[first][key]} is {relation} {called[second]} value "
                                     f"{item[second][key]}"))
        ratio = amounts.get("maxLimitRequestRatio")
        if ratio is not None and ratio.nano < 10**9:
            found.append(invalid(f"{path}.maxLimitRequestRatio[{key}]", item["maxLimitRequestRatio"][key],
                                 f"ratio {item['maxLimitRequestRatio'][key]} is less than 1"))
    return found


def resource_quota(obj: Object) -> list[Cause]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    found: list[Cause] = []
    for path, listed in (("spec.hard", spec.get("hard")), ("status.hard", status.get("hard")),
                         ("status.used", status.get("used"))):
        for name, text in (listed or {}).items():
            found += _quota_name(name, f"{path}[{name}]")
            amount = quantity.parse(text)
            if amount.nano < 0:
                found.append(invalid(f"{path}[{name}]", str(text), NEGATIVE))
            elif (name in _COUNTED or name.startswith("count/")) and amount.nano % 10**9:
                found.append(invalid(f"{path}[{name}]", str(text), "must be an integer"))
    scopes = spec.get("scopes") or []
    found += [invalid("spec.scopes", scopes, "unsupported scope") for scope in scopes if scope not in _SCOPES]
    if {"BestEffort", "NotBestEffort"} <= set(scopes) or {"Terminating", "NotTerminating"} <= set(scopes):
        found.append(invalid("spec.scopes", scopes, "conflicting scopes"))
    for expression in (spec.get("scopeSelector") or {}).get("matchExpressions") or ():
        found += _scope(expression, "spec.scopeSelector.matchExpressions")
    return found


def _quota_name(name: str, path: str) -> list[Cause]:
    faults = names.qualified_name(name)
    if faults:
        return [invalid(path, name, m) for m in faults]
    if "/" in name or name in _QUOTA_NAMES or name.startswith(("hugepages-", "requests.hugepages-")):
        return []
    return [invalid(path, name, "must be a standard resource for quota")]


def _scope(expression: Object, path: str) -> list[Cause]:
    name, operator = expression.get("scopeName") or "", expression.get("operator") or ""
    values = expression.get("values") or []
    if name not in _SCOPES:
        return [invalid(f"{path}.scopeName", name, "unsupported scope")]
    if name not in ("PriorityClass", "VolumeAttributesClass") and operator != "Exists":
        return [invalid(f"{path}.operator", operator, "must be 'Exist' when scope is any of "
                        "ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, "
                        "ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or "
                        "ResourceQuotaScopeCrossNamespacePodAffinity")]
    if operator in ("In", "NotIn"):
        return [] if values else [required(f"{path}.values", "must be at least one value when `operator` is 'In' or "
                                           "'NotIn' for scope selector")]
    if operator in ("Exists", "DoesNotExist"):
        return [invalid(f"{path}.values", values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for "
                        "scope selector")] if values else []
    return [invalid(f"{path}.operator", operator, "not a valid selector operator")]


def quota_changes(new: Object, old: Object) -> list[Cause]:
    after, before = (sorted((o.get("spec") or {}).get("scopes") or ()) for o in (new, old))
    return [] if after == before else [invalid("spec.scopes", after, IMMUTABLE)]


def priority_class(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    name, value = (obj.get("metadata") or {}).get("name") or "", obj.get("value") or 0
    if name.startswith(SYSTEM_PREFIX):
        if SYSTEM_PRIORITIES.get(name) != value or obj.get("globalDefault"):
            why = (f"name {name} is not in the list of known system priority classes"
                   if name not in SYSTEM_PRIORITIES else f"value of {name} PriorityClass must be "
                   f"{SYSTEM_PRIORITIES[name]}")
            found.append(forbidden("metadata.name", "priority class names with 'system-' prefix are reserved for "
                                   f"system use only. error: {why}"))
    elif value > MAX_USER_PRIORITY:
        found.append(forbidden("value", f"maximum allowed value of a user defined priority is {MAX_USER_PRIORITY}"))
    policy = obj.get("preemptionPolicy") or ""
    if not policy:
        found.append(required("preemptionPolicy"))
    elif policy not in ("Never", "PreemptLowerPriority"):
        found.append(not_supported("preemptionPolicy", policy, ("Never", "PreemptLowerPriority")))
    return found


def priority_class_changes(new: Object, old: Object) -> list[Cause]:
    found = []
    if (new.get("value") or 0) != (old.get("value") or 0):
        found.append(forbidden("value", "may not be changed in an update."))
    if new.get("preemptionPolicy") != old.get("preemptionPolicy"):
        found.append(invalid("preemptionPolicy", new.get("preemptionPolicy"), IMMUTABLE))
    return found


def runtime_class(obj: Object) -> list[Cause]:
    handler = obj.get("handler") or ""
    found = [invalid("handler", handler, m) for m in names.dns_label(handler)]
    for name, text in ((obj.get("overhead") or {}).get("podFixed") or {}).items():
        if quantity.parse(text).nano < 0:
            found.append(invalid(f"overhead.podFixed[{name}]", str(text), NEGATIVE))
    scheduling = obj.get("scheduling") or {}
    found += metadata.labels(scheduling.get("nodeSelector") or {}, "scheduling.nodeSelector")
    return found + pods.tolerations(scheduling.get("tolerations") or [], "scheduling.tolerations")


def runtime_class_changes(new: Object, old: Object) -> list[Cause]:
    return [] if new.get("handler") == old.get("handler") else [invalid("handler", new.get("handler"), IMMUTABLE)]
