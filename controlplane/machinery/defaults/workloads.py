"""Defaults of what runs pods beside Deployments: daemons, stateful sets, jobs, cron jobs, autoscalers, pod templates.

In place, pure, idempotent, as `defaults` promises for all kinds; that module finds these by kind. Services, volumes,
policies and the rest are in `cluster`.

Upstream: the defaults.go of apps/v1, batch/v1 and autoscaling/{v1,v2}.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import quantity
from controlplane.machinery.defaults import pods
from controlplane.machinery.defaults.pods import absent, unset

Object = dict[str, Any]
HISTORY = 10  # revisions kept for a rollback
BACKOFF_LIMIT = 6
CPU_PERCENT = 80  # the autoscaler's aim when no metric is named
CLAIM_KIND = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
_NEVER = 2**31 - 1  # the back-off limit of a job whose indexes have limits of their own
_SCALE_UP = {"selectPolicy": "Max", "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15},
                                                 {"type": "Percent", "value": 100, "periodSeconds": 15}]}
_SCALE_DOWN = {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}


def _spec(obj: Object) -> Object:
    spec: Object = obj.get("spec") or {}
    obj["spec"] = spec
    return spec


def _template(spec: Object) -> Object:
    template: Object = spec.get("template") or {}
    spec["template"] = template
    pods.template(template)
    return template


def daemon_set(obj: Object) -> None:
    spec = _spec(obj)
    _template(spec)
    strategy = spec["updateStrategy"] = spec.get("updateStrategy") or {}
    unset(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy["rollingUpdate"] = strategy.get("rollingUpdate") or {}
        absent(rolling, "maxUnavailable", 1)
        absent(rolling, "maxSurge", 0)
    absent(spec, "revisionHistoryLimit", HISTORY)
    status = obj["status"] = obj.get("status") or {}
    for field in ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"):
        status.setdefault(field, 0)


def stateful_set(obj: Object) -> None:
    spec = _spec(obj)
    _template(spec)
    unset(spec, "podManagementPolicy", "OrderedReady")
    strategy = spec["updateStrategy"] = spec.get("updateStrategy") or {}
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
        strategy["rollingUpdate"] = strategy.get("rollingUpdate") or {}
    if strategy["type"] == "RollingUpdate" and strategy.get("rollingUpdate") is not None:
        absent(strategy["rollingUpdate"], "partition", 0)
    retention = spec["persistentVolumeClaimRetentionPolicy"] = spec.get("persistentVolumeClaimRetentionPolicy") or {}
    unset(retention, "whenDeleted", "Retain")
    unset(retention, "whenScaled", "Retain")
    absent(spec, "replicas", 1)
    absent(spec, "revisionHistoryLimit", HISTORY)
    spec.setdefault("serviceName", "")
    for claim in spec.get("volumeClaimTemplates") or ():
        claim.update({k: claim.get(k) or v for k, v in CLAIM_KIND.items()})
        claim["metadata"] = claim.get("metadata") or {}
        persistent_volume_claim(claim)
    status = obj["status"] = obj.get("status") or {}
    for field in ("replicas", "availableReplicas"):
        status.setdefault(field, 0)


def persistent_volume_claim(obj: Object) -> None:
    spec = _spec(obj)
    absent(spec, "volumeMode", "Filesystem")
    resources = spec["resources"] = spec.get("resources") or {}
    for field in ("limits", "requests"):
        pods.quantities(resources, field)
    status = obj["status"] = obj.get("status") or {}
    unset(status, "phase", "Pending")
    for field in ("capacity", "allocatedResources"):
        pods.quantities(status, field)


def _job_template(spec: Object) -> None:
    """What a Job and the jobs a CronJob makes have in common."""
    for rule in (spec.get("podFailurePolicy") or {}).get("rules") or ():
        for pattern in rule.get("onPodConditions") or ():
            unset(pattern, "status", "True")
    _template(spec)


def job(obj: Object) -> None:
    spec = _spec(obj)
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = spec["parallelism"] = 1
    absent(spec, "parallelism", 1)
    absent(spec, "backoffLimit", BACKOFF_LIMIT if spec.get("backoffLimitPerIndex") is None else _NEVER)
    absent(spec, "completionMode", "NonIndexed")
    absent(spec, "suspend", False)
    absent(spec, "manualSelector", False)
    absent(spec, "podReplacementPolicy", "TerminatingOrFailed" if spec.get("podFailurePolicy") is None else "Failed")
    _job_template(spec)
    obj["status"] = obj.get("status") or {}
    labels = (spec["template"].get("metadata") or {}).get("labels")
    meta = obj["metadata"] = obj.get("metadata") or {}
    if labels and not meta.get("labels"):
        meta["labels"] = dict(labels)


def cron_job(obj: Object) -> None:
    spec = _spec(obj)
    unset(spec, "concurrencyPolicy", "Allow")
    absent(spec, "suspend", False)
    absent(spec, "successfulJobsHistoryLimit", 3)
    absent(spec, "failedJobsHistoryLimit", 1)
    template = spec["jobTemplate"] = spec.get("jobTemplate") or {}
    template["metadata"] = template.get("metadata") or {}
    _job_template(_spec(template))
    obj["status"] = obj.get("status") or {}


def autoscaler(obj: Object) -> None:
    """autoscaling/v2."""
    spec = _spec(obj)
    absent(spec, "minReplicas", 1)
    if not spec.get("metrics"):
        spec["metrics"] = [{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": CPU_PERCENT}}}]
    for metric in spec["metrics"]:
        for source in metric.values():
            if isinstance(source, dict) and source.get("target"):
                _amounts(source["target"])
    behavior = spec.get("behavior")
    if behavior is not None:
        behavior["scaleUp"] = {"stabilizationWindowSeconds": 0, **_filled(behavior.get("scaleUp"), _SCALE_UP)}
        behavior["scaleDown"] = _filled(behavior.get("scaleDown"), _SCALE_DOWN)
    _autoscaled(obj)


def _amounts(target: Object) -> None:
    for field in ("value", "averageValue"):
        if target.get(field) is not None:
            target[field] = quantity.canonical(target[field])


def _filled(rules: Object | None, otherwise: Object) -> Object:
    """Scaling rules with what they leave out; the defaults are copied, for they are shared."""
    found = {k: v for k, v in (rules or {}).items() if v is not None}
    return {"selectPolicy": otherwise["selectPolicy"], **found,
            "policies": found.get("policies") or [dict(p) for p in otherwise["policies"]]}


def _autoscaled(obj: Object) -> None:
    status = obj["status"] = obj.get("status") or {}
    status.setdefault("desiredReplicas", 0)


def autoscaler_v1(obj: Object) -> None:
    spec = _spec(obj)
    absent(spec, "minReplicas", 1)
    _autoscaled(obj)
    obj["status"].setdefault("currentReplicas", 0)


def pod_template(obj: Object) -> None:
    _template(obj)


BY_KIND = {("apps", "DaemonSet"): daemon_set, ("apps", "StatefulSet"): stateful_set, ("batch", "Job"): job,
           ("batch", "CronJob"): cron_job, ("autoscaling", "HorizontalPodAutoscaler"): autoscaler,
           ("", "PodTemplate"): pod_template, ("", "PersistentVolumeClaim"): persistent_volume_claim}
