"""Validation of HorizontalPodAutoscalers, in the form they are stored in (autoscaling/v2).

Upstream: k8s.io/kubernetes/pkg/apis/autoscaling/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names, quantity
from controlplane.machinery.errors import Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.validate.metadata import label_selector

Object = dict[str, Any]
MAX_STABILIZATION = 3600  # seconds
MAX_PERIOD = 1800  # seconds
_SOURCES = {"ContainerResource": "containerResource", "External": "external", "Object": "object", "Pods": "pods",
            "Resource": "resource"}
_SHAPES = ("AverageValue", "Utilization", "Value")


def autoscaler(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found: list[Cause] = []
    least, most = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    if least is not None and least < 1:
        found.append(invalid("spec.minReplicas", least, "must be greater than or equal to 1"))
    if most < 1:
        found.append(invalid("spec.maxReplicas", most, "must be greater than 0"))
    if least is not None and most < least:
        found.append(invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`"))
    found += _reference(spec.get("scaleTargetRef") or {}, "spec.scaleTargetRef")
    for index, metric in enumerate(spec.get("metrics") or ()):
        found += _metric(metric, f"spec.metrics[{index}]")
    for direction in ("scaleUp", "scaleDown"):
        rules = (spec.get("behavior") or {}).get(direction)
        if rules is not None:
            found += _rules(rules, f"spec.behavior.{direction}")
    return found


def _reference(reference: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    for field in ("kind", "name"):
        text = reference.get(field) or ""
        found += [invalid(f"{path}.{field}", text, m) for m in names.path_segment(text)] if text else [
            required(f"{path}.{field}")]
    return found


def _metric(metric: Object, path: str) -> list[Cause]:
    kind = metric.get("type") or ""
    if not kind:
        return [required(f"{path}.type", "must specify a metric source type")]
    if kind not in _SOURCES:
        return [not_supported(f"{path}.type", kind, tuple(_SOURCES))]
    found = [forbidden(f"{path}.{field}", "must populate the given metric source only")
             for name, field in _SOURCES.items() if name != kind and metric.get(field) is not None]
    field = _SOURCES[kind]
    source, at = metric.get(field), f"{path}.{field}"
    if source is None:
        return [*found, required(at, "must populate information for the given metric source")]
    return found + _source(kind, source, at)


def _source(kind: str, source: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    target = source.get("target") or {}
    if kind in ("Resource", "ContainerResource"):
        if not source.get("name"):
            found.append(required(f"{path}.name", "must specify a resource name"))
        if kind == "ContainerResource" and not source.get("container"):
            found.append(required(f"{path}.container", "must specify a container"))
    else:
        metric = source.get("metric") or {}
        if not metric.get("name"):
            found.append(required(f"{path}.metric.name", "must specify a metric name"))
        if metric.get("selector") is not None:
            found += label_selector(metric["selector"], f"{path}.metric.selector")
        if kind == "Object":
            found += _reference(source.get("describedObject") or {}, f"{path}.describedObject")
    found += _target(target, f"{path}.target")
    average, value = target.get("averageValue"), target.get("value")
    if kind in ("Resource", "ContainerResource"):
        if target.get("averageUtilization") is None and average is None:
            found.append(required(f"{path}.target.averageUtilization",
                                  "must set either a target raw value or a target utilization"))
        elif target.get("averageUtilization") is not None and average is not None:
            found.append(forbidden(f"{path}.target.averageValue",
                                   "may not set both a target raw value and a target utilization"))
    elif kind == "Pods":
        if average is None:
            found.append(required(f"{path}.target.averageValue", "must specify a positive target averageValue"))
    elif average is None and value is None:
        found.append(required(f"{path}.target.averageValue", "must set either a target value or averageValue"
                              if kind == "Object" else "must set either a target value for metric or a per-pod target"))
    elif kind == "External" and average is not None and value is not None:
        found.append(forbidden(f"{path}.target.value", "may not set both a target value for metric and a per-pod "
                               "target"))
    return found


def _target(target: Object, path: str) -> list[Cause]:
    shape = target.get("type") or ""
    if not shape:
        return [required(f"{path}.type", "must specify a metric target type")]
    found: list[Cause] = []
    if shape not in _SHAPES:
        found.append(invalid(f"{path}.type", shape, "must be either Utilization, Value, or AverageValue"))
    for field in ("value", "averageValue"):
        text = target.get(field)
        if text is not None and quantity.parse(text).nano <= 0:
            found.append(invalid(f"{path}.{field}", str(text), "must be positive"))
    if target.get("averageUtilization") is not None and target["averageUtilization"] < 1:
        found.append(invalid(f"{path}.averageUtilization", target["averageUtilization"], "must be greater than 0"))
    return found


def _rules(rules: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    window = rules.get("stabilizationWindowSeconds")
    if window is not None and window < 0:
        found.append(invalid(f"{path}.stabilizationWindowSeconds", window, "must be greater than or equal to zero"))
    if window is not None and window > MAX_STABILIZATION:
        found.append(invalid(f"{path}.stabilizationWindowSeconds", window,
                             f"must be less than or equal to {MAX_STABILIZATION}"))
    if rules.get("selectPolicy") not in (None, "Disabled", "Max", "Min"):
        found.append(not_supported(f"{path}.selectPolicy", rules["selectPolicy"], ("Disabled", "Max", "Min")))
    if not rules.get("policies"):
        found.append(required(f"{path}.policies", "must specify at least one Policy"))
    for index, policy in enumerate(rules.get("policies") or ()):
        at = f"{path}.policies[{index}]"
        if policy.get("type") not in ("Percent", "Pods"):
            found.append(not_supported(f"{at}.type", policy.get("type") or "", ("Percent", "Pods")))
        for field in ("value", "periodSeconds"):
            if (policy.get(field) or 0) <= 0:
                found.append(invalid(f"{at}.{field}", policy.get(field) or 0, "must be greater than zero"))
        if (policy.get("periodSeconds") or 0) > MAX_PERIOD:
            found.append(invalid(f"{at}.periodSeconds", policy["periodSeconds"],
                                 f"must be less than or equal to {MAX_PERIOD}"))
    return found
