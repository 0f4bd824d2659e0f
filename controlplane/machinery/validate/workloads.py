"""Validation of what keeps pods alive: Deployments, ReplicaSets, ReplicationControllers.

Upstream: k8s.io/kubernetes/pkg/apis/apps/validation and the controllers of core.
"""

from __future__ import annotations

import re
from typing import Any

from controlplane.machinery import selectors
from controlplane.machinery.errors import (
    IMMUTABLE,
    ApiError,
    Cause,
    forbidden,
    invalid,
    not_supported,
    required,
)
from controlplane.machinery.objects import int_or_percent
from controlplane.machinery.validate import pods
from controlplane.machinery.validate.metadata import label_selector

Object = dict[str, Any]
NEGATIVE = "must be greater than or equal to 0"
_CALLED = {"daemonset": "DaemonSet", "statefulset": "StatefulSet"}


def non_negative(obj: Object, field: str, path: str) -> list[Cause]:
    value = obj.get(field)
    return [invalid(f"{path}.{field}", value, NEGATIVE)] if isinstance(value, int) and value < 0 else []


def selected_template(spec: Object, path: str, kind: str = "deployment") -> list[Cause]:
    """A selector and the template whose labels it must match; `kind` is what its message calls the owner."""
    found, carried = selected_labels(spec, path, kind), spec.get("template") or {}
    return found + always_restarted(carried, f"{path}.template", _CALLED.get(kind, "ReplicaSet"))


def selected_labels(spec: Object, path: str, kind: str) -> list[Cause]:
    """A selector, and that the template's labels match it."""
    found: list[Cause] = []
    selector = spec.get("selector")
    parsed = None
    if selector is None:
        found.append(required(f"{path}.selector"))
    else:
        found += label_selector(selector, f"{path}.selector")
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            found.append(invalid(f"{path}.selector", selector, f"empty selector is invalid for {kind}"))
        elif not found:
            try:
                parsed = selectors.from_label_selector(selector)
            except ApiError:
                found.append(invalid(f"{path}.selector", selector, "invalid label selector"))
    template = spec.get("template") or {}
    carried = (template.get("metadata") or {}).get("labels") or {}
    if parsed is not None and not parsed.matches(carried):
        found.append(invalid(f"{path}.template.metadata.labels", carried,
                             "`selector` does not match template `labels`"))
    return found


def always_restarted(template: Object, path: str, kind: str = "ReplicaSet") -> list[Cause]:
    """A pod template of something that keeps its pods running."""
    return pods.template(template, path) + kept_running(template, path, kind)


def kept_running(template: Object, path: str, kind: str) -> list[Cause]:
    """No template of `kind` may let its pods end."""
    found: list[Cause] = []
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy != "Always":
        found.append(not_supported(f"{path}.spec.restartPolicy", policy or "", ["Always"]))
    if (template.get("spec") or {}).get("activeDeadlineSeconds") is not None:
        found.append(forbidden(f"{path}.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not "
                               "Supported"))
    return found


def int_or_share(value: Any, path: str) -> list[Cause]:
    """An IntOrString that is no negative number, and a percentage when it is a text."""
    if isinstance(value, str):
        if not re.fullmatch("[0-9]+%", value):
            return [invalid(path, value, "a valid percent string must be a numeric string followed by an ending '%' "
                            "(e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')")]
        return []
    return [invalid(path, value, NEGATIVE)] if isinstance(value, int) and value < 0 else []


def deployment(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found: list[Cause] = []
    for field in ("replicas", "minReadySeconds", "revisionHistoryLimit"):
        found += non_negative(spec, field, "spec")
    found += selected_template(spec, "spec")
    found += _strategy(spec.get("strategy") or {}, "spec.strategy")
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None:
        found += non_negative(spec, "progressDeadlineSeconds", "spec")
        if deadline <= (spec.get("minReadySeconds") or 0):
            found.append(invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"))
    return found


def _strategy(strategy: Object, path: str) -> list[Cause]:
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind == "Recreate":
        return [] if rolling is None else [forbidden(
            f"{path}.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")]
    if kind != "RollingUpdate":
        return [not_supported(path + ".type", kind or "", ["Recreate", "RollingUpdate"])]
    if rolling is None:
        return [required(f"{path}.rollingUpdate", "this should be defaulted and never be nil")]
    path += ".rollingUpdate"
    found: list[Cause] = []
    for field in ("maxUnavailable", "maxSurge"):
        found += int_or_share(rolling.get(field), f"{path}.{field}")
    if found:
        return found
    if not int_or_percent(rolling.get("maxUnavailable"), 100, True) and not int_or_percent(
            rolling.get("maxSurge"), 100, True):
        found.append(invalid(f"{path}.maxUnavailable", rolling.get("maxUnavailable", 0),
                             "may not be 0 when `maxSurge` is 0"))
    share = rolling.get("maxUnavailable")
    if isinstance(share, str) and int(share[:-1]) > 100:
        found.append(invalid(f"{path}.maxUnavailable", share, "must not be greater than 100%"))
    return found


def replica_set(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    return [*non_negative(spec, "replicas", "spec"), *non_negative(spec, "minReadySeconds", "spec"),
            *selected_template(spec, "spec")]


def replication_controller(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = [*non_negative(spec, "replicas", "spec"), *non_negative(spec, "minReadySeconds", "spec")]
    selector, template = spec.get("selector") or {}, spec.get("template")
    if not selector:
        found.append(required("spec.selector"))
    if template is None:
        return [*found, required("spec.template")]
    carried = (template.get("metadata") or {}).get("labels") or {}
    if selector and not selectors.from_map(selector).matches(carried):
        found.append(invalid("spec.template.metadata.labels", carried, "`selector` does not match template `labels`"))
    return found + always_restarted(template, "spec.template")


def selector_changes(new: Object, old: Object) -> list[Cause]:
    after, before = (new.get("spec") or {}).get("selector"), (old.get("spec") or {}).get("selector")
    return [] if after == before else [invalid("spec.selector", after, IMMUTABLE)]
