"""Built-in kinds that are served in more than one form: how the stored form is shown, and a written one stored.

Owns two pairs: autoscaling/v1 beside v2, and events.k8s.io/v1 beside the core group's Events. Pure; both ways lose
nothing: what autoscaling/v1 has no field for travels in annotations, as upstream's clients expect. `resources` says
which kinds these are (`converts`); the apiserver's `views` calls this at its edge, `strategy` to judge old forms.

Upstream: k8s.io/kubernetes/pkg/apis/autoscaling/v1/conversion.go, pkg/apis/events/v1/conversion.go.
"""

from __future__ import annotations

import json
from typing import Any

from controlplane.machinery.defaults import workloads

Object = dict[str, Any]
ANNOTATION = "autoscaling.alpha.kubernetes.io/"
# the core group's name of each field that events.k8s.io calls otherwise
_EVENT_FIELDS = {"regarding": "involvedObject", "note": "message", "reportingController": "reportingComponent",
                 "deprecatedSource": "source", "deprecatedFirstTimestamp": "firstTimestamp",
                 "deprecatedLastTimestamp": "lastTimestamp", "deprecatedCount": "count"}
_EVENT_SHOWN = {core: own for own, core in _EVENT_FIELDS.items()}
# metric source in v2 -> its field in v1 lists
_SOURCES = {"Object": "object", "Pods": "pods", "Resource": "resource", "ContainerResource": "containerResource",
            "External": "external"}
_SELECTOR = {"Object": "selector", "Pods": "selector", "External": "metricSelector"}


def to_storage(api_version: str, obj: Object) -> Object:
    """An object of `api_version` in the form it is stored in."""
    if api_version == "autoscaling/v1":
        return _autoscaler_in(obj)
    return _renamed(obj, _EVENT_FIELDS, "v1") if api_version == "events.k8s.io/v1" else obj


def from_storage(api_version: str, obj: Object) -> Object:
    """A stored object as `api_version` shows it."""
    if api_version == "autoscaling/v1":
        return _autoscaler_out(obj)
    return _renamed(obj, _EVENT_SHOWN, api_version) if api_version == "events.k8s.io/v1" else obj


def _renamed(obj: Object, fields: dict[str, str], api_version: str) -> Object:
    return {**{fields.get(field, field): value for field, value in obj.items()}, "apiVersion": api_version}


# --- autoscaling ----------------------------------------------------------------------------------------------------

def _autoscaler_in(obj: Object) -> Object:
    """v1 -> v2."""
    meta = dict(obj.get("metadata") or {})
    kept = dict(meta.get("annotations") or {})
    carried = {name: _loaded(kept.pop(ANNOTATION + name, "")) for name in ("metrics", "behavior", "conditions",
                                                                            "current-metrics")}
    meta["annotations"] = kept
    if not kept:
        del meta["annotations"]
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    metrics = [_metric_in(m, "target") for m in carried["metrics"] or ()]
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        metrics.insert(0, {"type": "Resource", "resource": {"name": "cpu", "target": {
            "type": "Utilization", "averageUtilization": percent}}})
    if metrics:
        spec["metrics"] = metrics
    if carried["behavior"]:
        spec["behavior"] = _lowered(carried["behavior"])
    current = [_metric_in(m, "current") for m in carried["current-metrics"] or ()]
    used = status.pop("currentCPUUtilizationPercentage", None)
    if used is not None and not any(m.get("type") == "Resource" and m["resource"]["name"] == "cpu" for m in current):
        current.insert(0, {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": used}}})
    if current:
        status["currentMetrics"] = current
    if carried["conditions"]:
        status["conditions"] = carried["conditions"]
    made = {**obj, "apiVersion": "autoscaling/v2", "metadata": meta, "spec": spec, "status": status}
    workloads.autoscaler(made)
    return made


def _autoscaler_out(obj: Object) -> Object:
    """v2 -> v1."""
    meta = dict(obj.get("metadata") or {})
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    metrics, current = spec.pop("metrics", None) or [], status.pop("currentMetrics", None) or []
    carried: dict[str, Any] = {"behavior": _raised(spec.pop("behavior", None)),
                               "conditions": status.pop("conditions", None)}
    percent = next((m for m in metrics if _percent(m, "target") is not None), None)
    if percent is not None:
        spec["targetCPUUtilizationPercentage"] = _percent(percent, "target")
    carried["metrics"] = [_metric_out(m, "target") for m in metrics if m is not percent]
    used = next((m for m in current if _percent(m, "current") is not None), None)
    if used is not None:
        status["currentCPUUtilizationPercentage"] = _percent(used, "current")
    carried["current-metrics"] = [_metric_out(m, "current") for m in current]
    status.setdefault("currentReplicas", 0)
    annotations = {**(meta.get("annotations") or {}),
                   **{ANNOTATION + k: json.dumps(v, separators=(",", ":")) for k, v in carried.items() if v}}
    if annotations:
        meta["annotations"] = annotations
    return {**obj, "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status}


def _loaded(text: str) -> Any:
    """An annotation's content; who wrote nonsense into it gets it ignored, for there is no field to blame."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _percent(metric: Object, part: str) -> Any:
    source = metric.get("resource") or {}
    if metric.get("type") != "Resource" or source.get("name") != "cpu":
        return None
    return (source.get(part) or {}).get("averageUtilization")


def _prefixed(part: str, name: str) -> str:
    return part + name[0].upper() + name[1:]


def _metric_out(metric: Object, part: str) -> Object:
    """A metric's wish (`target`) or measurement (`current`) in autoscaling/v1's flat form."""
    kind = metric.get("type") or ""
    source = metric.get(_SOURCES.get(kind, "")) or {}
    amounts = {k: v for k, v in (source.get(part) or {}).items() if k != "type"}
    flat: Object = {}
    if kind in ("Resource", "ContainerResource"):
        flat = {k: source[k] for k in ("name", "container") if k in source}
    else:
        named = source.get("metric") or {}
        flat["metricName"] = named.get("name") or ""
        if named.get("selector") is not None:
            flat[_SELECTOR[kind]] = named["selector"]
        if kind == "Object":
            flat["target"] = source.get("describedObject") or {}
    for name, value in amounts.items():
        flat[name if kind == "Object" and name == "averageValue" else _prefixed(part, name)] = value
    return {"type": kind, _SOURCES.get(kind, kind): flat}


def _metric_in(metric: Object, part: str) -> Object:
    """The way back."""
    kind = metric.get("type") or ""
    flat = dict(metric.get(_SOURCES.get(kind, "")) or {})
    source: Object = {}
    if kind in ("Resource", "ContainerResource"):
        source = {k: flat.pop(k) for k in ("name", "container") if k in flat}
    else:
        source["metric"] = {"name": flat.pop("metricName", "")}
        selector = flat.pop(_SELECTOR.get(kind, "selector"), None)
        if selector is not None:
            source["metric"]["selector"] = selector
        if kind == "Object":
            source["describedObject"] = flat.pop("target", {})
    amounts: Object = {}
    for name in ("value", "averageValue", "averageUtilization"):
        value = flat.get(_prefixed(part, name), flat.get(name))
        if value is not None:
            amounts[name] = value
    if part == "target":
        shape = "Utilization" if "averageUtilization" in amounts else "Value" if "value" in amounts else "AverageValue"
        amounts = {"type": shape, **amounts}
    source[part] = amounts
    return {"type": kind, _SOURCES.get(kind, kind): source}


def _raised(value: Any) -> Any:
    """Keys as Go writes fields that carry no JSON name; so upstream writes this one annotation."""
    if isinstance(value, dict):
        return {k[:1].upper() + k[1:]: _raised(v) for k, v in value.items()}
    return [_raised(v) for v in value] if isinstance(value, list) else value


def _lowered(value: Any) -> Any:
    if isinstance(value, dict):
        return {k[:1].lower() + k[1:]: _lowered(v) for k, v in value.items() if v is not None}
    return [_lowered(v) for v in value] if isinstance(value, list) else value
