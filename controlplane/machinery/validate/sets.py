"""Validation of DaemonSets, StatefulSets, their ControllerRevisions, PodTemplates and PodDisruptionBudgets.

Upstream: k8s.io/kubernetes/pkg/apis/{apps,policy}/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.errors import IMMUTABLE, Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.objects import int_or_percent
from controlplane.machinery.validate import metadata, pods
from controlplane.machinery.validate.metadata import label_selector
from controlplane.machinery.validate.workloads import (
    NEGATIVE,
    int_or_share,
    kept_running,
    non_negative,
    selected_labels,
    selected_template,
)

Object = dict[str, Any]
STATEFUL_ONLY = ("updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
                 "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and "
                 "'minReadySeconds' are forbidden")
_STATEFUL_MUTABLE = frozenset(("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
                               "persistentVolumeClaimRetentionPolicy", "minReadySeconds"))


def daemon_set(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = selected_template(spec, "spec", "daemonset")
    for field in ("minReadySeconds", "revisionHistoryLimit"):
        found += non_negative(spec, field, "spec")
    strategy = spec.get("updateStrategy") or {}
    at, rolling = "spec.updateStrategy", strategy.get("rollingUpdate")
    if strategy.get("type") == "OnDelete":
        return found
    if strategy.get("type") != "RollingUpdate":
        return [*found, not_supported(f"{at}.type", strategy.get("type") or "", ("OnDelete", "RollingUpdate"))]
    if rolling is None:
        return [*found, required(f"{at}.rollingUpdate")]
    return found + _rolling(rolling, f"{at}.rollingUpdate")


def _rolling(rolling: Object, path: str) -> list[Cause]:
    """Either pods may be missing or there may be too many, never both and never neither."""
    found: list[Cause] = []
    for field in ("maxUnavailable", "maxSurge"):
        found += int_or_share(rolling.get(field), f"{path}.{field}")
        share = rolling.get(field)
        if not found and isinstance(share, str) and int(share[:-1]) > 100:
            found.append(invalid(f"{path}.{field}", share, "must not be greater than 100%"))
    if found:
        return found
    missing, more = (int_or_percent(rolling.get(f), 100, True) for f in ("maxUnavailable", "maxSurge"))
    if missing and more:
        return [invalid(f"{path}.maxSurge", rolling["maxSurge"], "may not be set when maxUnavailable is non-zero")]
    return [] if missing or more else [required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0")]


def stateful_set(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found: list[Cause] = []
    policy = spec.get("podManagementPolicy") or ""
    if not policy:
        found.append(required("spec.podManagementPolicy"))
    elif policy not in ("OrderedReady", "Parallel"):
        found.append(invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'"))
    found += _stateful_strategy(spec.get("updateStrategy") or {}, "spec.updateStrategy")
    retention = spec.get("persistentVolumeClaimRetentionPolicy") or {}
    for field in ("whenDeleted", "whenScaled"):
        if retention.get(field) not in ("Delete", "Retain"):
            found.append(not_supported(f"spec.persistentVolumeClaimRetentionPolicy.{field}", retention.get(field) or "",
                                       ("Delete", "Retain")))
    for field in ("replicas", "minReadySeconds", "revisionHistoryLimit"):
        found += non_negative(spec, field, "spec")
    found += non_negative(spec.get("ordinals") or {}, "start", "spec.ordinals")
    found += selected_labels(spec, "spec", "statefulset")
    template = spec.get("template") or {}
    meta = template.get("metadata") or {}
    # its pods mount volumes that claims will become, so the template's pod is judged when it is made
    found += metadata.labels(meta.get("labels") or {}, "spec.template.labels")
    found += metadata.annotations(meta.get("annotations") or {}, "spec.template.annotations")
    return found + kept_running(template, "spec.template", "StatefulSet")


def _stateful_strategy(strategy: Object, path: str) -> list[Cause]:
    kind, rolling = strategy.get("type") or "", strategy.get("rollingUpdate")
    if not kind:
        return [required(path)]
    if kind == "OnDelete":
        return [] if rolling is None else [invalid(f"{path}.rollingUpdate", rolling,
                                                   "only allowed for updateStrategy 'RollingUpdate'")]
    if kind != "RollingUpdate":
        return [invalid(path, strategy, "must be 'RollingUpdate' or 'OnDelete'")]
    found = non_negative(rolling or {}, "partition", f"{path}.rollingUpdate")
    allowed = (rolling or {}).get("maxUnavailable")
    if allowed is not None:
        faults = int_or_share(allowed, f"{path}.rollingUpdate.maxUnavailable")
        found += faults
        if not faults and not int_or_percent(allowed, 100, True):
            found.append(invalid(f"{path}.rollingUpdate.maxUnavailable", allowed, "cannot be 0"))
    return found


def stateful_changes(new: Object, old: Object) -> list[Cause]:
    after, before = ({k: v for k, v in (o.get("spec") or {}).items() if k not in _STATEFUL_MUTABLE}
                     for o in (new, old))
    for part in (after, before):  # a claim's status is no wish
        part["volumeClaimTemplates"] = [{k: v for k, v in c.items() if k != "status"}
                                        for c in part.get("volumeClaimTemplates") or ()]
    return [] if after == before else [forbidden("spec", STATEFUL_ONLY)]


def controller_revision(obj: Object) -> list[Cause]:
    found = [required("data", "data is mandatory")] if obj.get("data") is None else []
    if (obj.get("revision") or 0) < 0:
        found.append(invalid("revision", obj["revision"], NEGATIVE))
    return found


def revision_changes(new: Object, old: Object) -> list[Cause]:
    return [] if new.get("data") == old.get("data") else [invalid("data", new.get("data"), IMMUTABLE)]


def pod_template(obj: Object) -> list[Cause]:
    return pods.template(obj.get("template") or {}, "template")


def disruption_budget(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found: list[Cause] = []
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        found.append(invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"))
    for field in ("minAvailable", "maxUnavailable"):
        share = spec.get(field)
        if share is not None:
            faults = int_or_share(share, f"spec.{field}")
            found += faults
            if not faults and isinstance(share, str) and int(share[:-1]) > 100:
                found.append(invalid(f"spec.{field}", share, "must not be greater than 100%"))
    if spec.get("selector") is not None:
        found += label_selector(spec["selector"], "spec.selector")
    policy = spec.get("unhealthyPodEvictionPolicy")
    if policy is not None and policy not in ("AlwaysAllow", "IfHealthyBudget"):
        found.append(not_supported("spec.unhealthyPodEvictionPolicy", policy, ("AlwaysAllow", "IfHealthyBudget")))
    status = obj.get("status") or {}
    for field in ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"):
        found += non_negative(status, field, "status")
    return found
