"""Rows of workloads: deployments, replica sets, stateful and daemon sets, jobs, and what scales or guards them.

Pure functions from an object and the time to its cells. Called by the package.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.tables.text import (
    NONE,
    Object,
    Printer,
    age,
    containers,
    created,
    human_duration,
    name,
    pairs,
    seconds_of,
    selector,
    spec,
    status,
    truth,
)


def _count(part: Object, field: str) -> int:
    return part.get(field) or 0


def _desired(obj: Object) -> int:
    replicas = spec(obj).get("replicas")
    return 1 if replicas is None else replicas


def deployment(obj: Object, now: float) -> list[Any]:
    seen = status(obj)
    return [name(obj), f"{_count(seen, 'readyReplicas')}/{_desired(obj)}", _count(seen, "updatedReplicas"),
            _count(seen, "availableReplicas"), created(obj, now), *containers(spec(obj).get("template")),
            selector(spec(obj).get("selector"))]


def replica_set(obj: Object, now: float) -> list[Any]:
    return [*_replicas(obj, now), selector(spec(obj).get("selector"))]


def replication_controller(obj: Object, now: float) -> list[Any]:
    return [*_replicas(obj, now), pairs(spec(obj).get("selector"))]


def _replicas(obj: Object, now: float) -> list[Any]:
    seen = status(obj)
    return [name(obj), _desired(obj), _count(seen, "replicas"), _count(seen, "readyReplicas"), created(obj, now),
            *containers(spec(obj).get("template"))]


def stateful_set(obj: Object, now: float) -> list[Any]:
    return [name(obj), f"{_count(status(obj), 'readyReplicas')}/{_desired(obj)}", created(obj, now),
            *containers(spec(obj).get("template"))]


def daemon_set(obj: Object, now: float) -> list[Any]:
    fields = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled",
              "numberAvailable")
    template = spec(obj).get("template") or {}
    return [name(obj), *(_count(status(obj), f) for f in fields), pairs(spec(template).get("nodeSelector")),
            created(obj, now), *containers(template), selector(spec(obj).get("selector"))]


def job(obj: Object, now: float) -> list[Any]:
    wanted, seen = spec(obj), status(obj)
    done = _count(seen, "succeeded")
    parallel = wanted.get("parallelism") or 0
    if wanted.get("completions") is not None:
        completions = f"{done}/{wanted['completions']}"
    else:
        completions = f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"
    start, end = seconds_of(seen.get("startTime")), seconds_of(seen.get("completionTime"))
    duration = "" if start is None else human_duration((now if end is None else end) - start)
    return [name(obj), _job_state(obj), completions, duration, created(obj, now), *containers(wanted.get("template")),
            selector(wanted.get("selector"))]


def _job_state(obj: Object) -> str:
    true = {c.get("type") for c in status(obj).get("conditions") or () if c.get("status") == "True"}
    for word in ("Complete", "Failed"):
        if word in true:
            return word
    if (obj.get("metadata") or {}).get("deletionTimestamp"):
        return "Terminating"
    return next((w for w in ("Suspended", "FailureTarget", "SuccessCriteriaMet") if w in true), "Running")


def cron_job(obj: Object, now: float) -> list[Any]:
    wanted, seen = spec(obj), status(obj)
    template = spec(wanted.get("jobTemplate") or {})
    last = seen.get("lastScheduleTime")
    return [name(obj), wanted.get("schedule", ""), wanted.get("timeZone") or NONE, truth(wanted.get("suspend")),
            len(seen.get("active") or ()), age(last, now) if last else NONE, created(obj, now),
            *containers(template.get("template")), selector(template.get("selector"))]


def controller_revision(obj: Object, now: float) -> list[Any]:
    owner = next((r for r in (obj.get("metadata") or {}).get("ownerReferences") or () if r.get("controller")), None)
    controller = NONE
    if owner is not None:
        group = owner.get("apiVersion", "").rpartition("/")[0]
        controller = f"{owner.get('kind', '').lower()}{'.' + group if group else ''}/{owner.get('name', '')}"
    return [name(obj), controller, obj.get("revision", 0), created(obj, now)]


def disruption_budget(obj: Object, now: float) -> list[Any]:
    limits = [spec(obj).get(k) for k in ("minAvailable", "maxUnavailable")]
    return [name(obj), *("N/A" if v is None else str(v) for v in limits), _count(status(obj), "disruptionsAllowed"),
            created(obj, now)]


def autoscaler(obj: Object, now: float) -> list[Any]:
    wanted, seen = spec(obj), status(obj)
    target = wanted.get("scaleTargetRef") or {}
    least = wanted.get("minReplicas")
    return [name(obj), f"{target.get('kind', '')}/{target.get('name', '')}", _targets(wanted, seen) or NONE,
            "<unset>" if least is None else str(least), wanted.get("maxReplicas", 0), _count(seen, "currentReplicas"),
            created(obj, now)]


def _targets(wanted: Object, seen: Object) -> str:
    if (goal := wanted.get("targetCPUUtilizationPercentage")) is not None:  # autoscaling/v1
        current = seen.get("currentCPUUtilizationPercentage")
        return f"cpu: {'<unknown>' if current is None else f'{current}%'}/{goal}%"
    measured = {m.get("type", ""): m for m in seen.get("currentMetrics") or ()}
    texts = []
    for metric in wanted.get("metrics") or ():
        kind = metric.get("type", "")
        part = metric.get(kind[:1].lower() + kind[1:]) or {}
        current = ((measured.get(kind) or {}).get(kind[:1].lower() + kind[1:]) or {}).get("current") or {}
        goal = part.get("target") or {}
        label = f"{part['name']}: " if part.get("name") else ""
        if goal.get("averageUtilization") is not None:
            use = current.get("averageUtilization")
            texts.append(f"{label}{'<unknown>' if use is None else f'{use}%'}/{goal['averageUtilization']}%")
        else:
            field = "averageValue" if goal.get("averageValue") else "value"
            suffix = " (avg)" if field == "averageValue" and not label else ""
            texts.append(f"{label}{current.get(field, '<unknown>')}/{goal.get(field, '<auto>')}{suffix}")
    return ", ".join(texts)


_REPLICAS = "Name, Desired:integer, Current:integer, Ready:integer, Age, Containers*, Images*, Selector*"
PRINTERS = {
    "replicationcontrollers": Printer(_REPLICAS, replication_controller),
    "controllerrevisions.apps": Printer("Name, Controller, Revision, Age", controller_revision),
    "daemonsets.apps": Printer("Name, Desired:integer, Current:integer, Ready:integer, Up-to-date:integer, "
                               "Available:integer, Node Selector, Age, Containers*, Images*, Selector*", daemon_set),
    "deployments.apps": Printer("Name, Ready, Up-to-date, Available, Age, Containers*, Images*, Selector*",
                                deployment),
    "replicasets.apps": Printer(_REPLICAS, replica_set),
    "statefulsets.apps": Printer("Name, Ready, Age, Containers*, Images*", stateful_set),
    "cronjobs.batch": Printer("Name, Schedule, Timezone, Suspend:boolean, Active:integer, Last Schedule, Age, "
                              "Containers*, Images*, Selector*", cron_job),
    "jobs.batch": Printer("Name, Status, Completions, Duration, Age, Containers*, Images*, Selector*", job),
    "poddisruptionbudgets.policy": Printer("Name, Min Available, Max Unavailable, Allowed Disruptions:integer, Age",
                                           disruption_budget),
    "horizontalpodautoscalers.autoscaling": Printer("Name, Reference, Targets, MinPods, MaxPods, Replicas, Age",
                                                    autoscaler),
}
