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
from controlplane.machinery.validate import metadata, pods, requirements
from controlplane.machinery.validate.workloads import NEGATIVE

Object = dict[str, Any]
MAX_USER_PRIORITY = 1_000_000_000
SYSTEM_PREFIX = "system-"
SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_OF_PODS = frozenset(("pods", "cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"))
_APPLIES = {  # what a quota of each scope may bound
    **dict.fromkeys(("CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating"),
                    _OF_PODS),
    "BestEffort": frozenset(("pods",)),
    "VolumeAttributesClass": frozenset(("persistentvolumeclaims", "requests.storage"))}
_QUOTA_NAMES = requirements.STANDARD - {"storage"}
_LIMITED = ("Container", "PersistentVolumeClaim", "Pod")
_IN_ORDER = (  # the smaller field, the greater, where a fault is told, the value shown, the names of both
    ("min", "max", "min", "min", "min", "max"),
    ("min", "defaultRequest", "defaultRequest", "defaultRequest", "min", "default request"),
    ("defaultRequest", "max", "defaultRequest", "defaultRequest", "default request", "max"),
    ("defaultRequest", "default", "defaultRequest", "defaultRequest", "default request", "default limit"),
    ("min", "default", "default", "min", "min", "default"),
    ("default", "max", "default", "max", "default", "max"))


def limit_range(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
        at = f"spec.limits[{index}]"
        kind = item.get("type") or ""
        faults = names.qualified_name(kind) or (["must be a standard limit type or fully qualified"]
                                                if "/" not in kind and kind not in _LIMITED else [])
        found += [invalid(f"{at}.type", kind, m) for m in faults]
        if kind in seen:
            found.append(duplicate(f"{at}.type", kind))
        seen.add(kind)
        found += _limits(item, kind, at)
    return found


def _limits(item: Object, kind: str, path: str) -> list[Cause]:
    fields: tuple[str, ...] = ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio")
    found: list[Cause] = []
    if kind == "Pod":
        found += [forbidden(f"{path}.{f}", "may not be specified when `type` is 'Pod'")
                  for f in ("default", "defaultRequest") if item.get(f)]
        fields = ("max", "min", "maxLimitRequestRatio")
    if kind == "PersistentVolumeClaim" and not (item.get("min") or {}).get("storage") and not (
            item.get("max") or {}).get("storage"):
        found.append(required(f"{path}.limits", "either minimum or maximum storage value is required, but neither was "
                              "provided"))
    named = requirements.of_container if kind in ("Pod", "Container") else requirements.resource_name
    found += [cause for f in fields for key in item.get(f) or () for cause in named(key, f"{path}.{f}[{key}]")]
    for key in sorted({k for f in fields for k in item.get(f) or ()}):
        amounts = {f: quantity.parse(item[f][key]) for f in fields if key in (item.get(f) or ())}
        found += _order(key, amounts, path) + _ratio(key, amounts, path)
    return found


def _order(key: str, amounts: dict[str, quantity.Quantity], path: str) -> list[Cause]:
    """One resource's least, most and usual amounts: in this order."""
    found = [invalid(f"{path}.{where}[{key}]", str(amounts[shown]),
                     f"{text} value {amounts[low]} is greater than {other} value {amounts[high]}")
             for low, high, where, shown, text, other in _IN_ORDER
             if low in amounts and high in amounts and amounts[low] > amounts[high]]
    usual, asked = amounts.get("default"), amounts.get("defaultRequest")
    if usual is not None and asked is not None and usual != asked and not requirements.overcommits(key):
        found.append(invalid(f"{path}.defaultRequest[{key}]", str(asked),
                             f"default value {usual} must equal to defaultRequest value {asked} in {key}"))
    return found


def _ratio(key: str, amounts: dict[str, quantity.Quantity], path: str) -> list[Cause]:
    ratio, least, most = (amounts.get(f) for f in ("maxLimitRequestRatio", "min", "max"))
    if ratio is None:
        return []
    at = f"{path}.maxLimitRequestRatio[{key}]"
    found = [invalid(at, str(ratio), f"ratio {ratio} is less than 1")] if ratio.nano < 10**9 else []
    if least and most is not None and ratio.nano / 10**9 > (allowed := most.nano / least.nano):
        found.append(invalid(at, str(ratio), f"ratio {ratio} is greater than max/min = {allowed:f}"))
    return found


def resource_quota(obj: Object) -> list[Cause]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    found: list[Cause] = []
    for path, listed in (("spec.hard", spec.get("hard")), ("status.hard", status.get("hard")),
                         ("status.used", status.get("used"))):
        for name, text in (listed or {}).items():
            found += _quota_name(name, f"{path}[{name}]") + requirements.amount(name, text, f"{path}[{name}]")
    return found + _scopes(spec) + _selected(spec)


def _scopes(spec: Object) -> list[Cause]:
    scopes, path = spec.get("scopes") or [], "spec.scopes"
    found: list[Cause] = []
    for scope in scopes:
        if scope not in _APPLIES:
            found.append(invalid(path, scopes, "unsupported scope"))
        found += [invalid(path, scopes, "unsupported scope applied to resource")] * _misapplied(scope, spec)
    return found + [invalid(path, scopes, "conflicting scopes")] * _conflicts(scopes)


def _selected(spec: Object) -> list[Cause]:
    """The scopes a quota selects by expressions, which name a class of priority or volume perhaps."""
    selector, path = spec.get("scopeSelector") or {}, "spec.scopeSelector.matchExpressions"
    expressions = selector.get("matchExpressions") or ()
    found: list[Cause] = []
    for expression in expressions:
        scope = expression.get("scopeName") or ""
        if scope not in _APPLIES:
            found.append(invalid(f"{path}.scopeName", scope, "unsupported scope"))
        found += [invalid(path, selector, "unsupported scope applied to resource")] * _misapplied(scope, spec)
        found += _scope(expression, path)
    clashes = _conflicts([e.get("scopeName") or "" for e in expressions])
    return found + [invalid(path, spec.get("scopes"), "conflicting scopes")] * clashes


def _misapplied(scope: str, spec: Object) -> int:
    """How many of the resources a quota bounds are none that its scope can be asked for."""
    return sum(_standard(name) and name not in _APPLIES[scope] for name in spec.get("hard") or ()) \
        if scope in _APPLIES else 0


def _conflicts(scopes: list[str]) -> int:
    return sum({scope, f"Not{scope}"} <= set(scopes) for scope in ("BestEffort", "Terminating"))


def _standard(name: str) -> bool:
    return name in _QUOTA_NAMES or name.startswith(("hugepages-", "requests.hugepages-"))


def _quota_name(name: str, path: str) -> list[Cause]:
    faults = names.qualified_name(name)
    if faults:
        return [invalid(path, name, m) for m in faults]
    return [] if "/" in name or _standard(name) else [invalid(path, name, "must be a standard resource for quota")]


def _scope(expression: Object, path: str) -> list[Cause]:
    name, operator = expression.get("scopeName") or "", expression.get("operator") or ""
    values = expression.get("values") or []
    found: list[Cause] = []
    if name in _APPLIES and name not in ("PriorityClass", "VolumeAttributesClass") and operator != "Exists":
        found.append(invalid(f"{path}.operator", operator, "must be 'Exists' when scope is any of "
                             "ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, "
                             "ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or "
                             "ResourceQuotaScopeCrossNamespacePodAffinity"))
    if operator in ("In", "NotIn"):
        found += [] if values else [required(f"{path}.values", "must be at least one value when `operator` is 'In' or "
                                             "'NotIn' for scope selector")]
    elif operator in ("Exists", "DoesNotExist"):
        found += [invalid(f"{path}.values", values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for "
                          "scope selector")] if values else []
    else:
        found.append(invalid(f"{path}.operator", operator, "not a valid selector operator"))
    return found


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
