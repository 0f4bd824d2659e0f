"""The runs of a CronJob: which Job to start, which to replace or forget, and when to look again.

Pure. Owns concurrency policies, starting deadlines, missed times and history limits. Promises that one scheduled time
makes one Job, whose name is the time. Called by `controller`.

Upstream: pkg/controller/cronjob (cronjob_controllerv2.go, utils.go).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any

from controlplane.controllers.workloads.cronjobs import times
from controlplane.controllers.workloads.jobs import completion
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339, rfc3339
from controlplane.machinery.cron import Schedule

SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
MANY = 100  # missed times that are worth a warning: upstream's
LATE = 0.1  # seconds after the due time to look, so that rounding never makes it too early

Obj = dict[str, Any]
Event = tuple[str, str, str]


@dataclass(slots=True)
class Plan:
    """Delete `forget` and `replace`, then create `create`, the Job of the time `due`.

    `wake` is when to look again, in seconds."""

    status: Obj
    forget: list[Obj] = field(default_factory=list)
    replace: list[Obj] = field(default_factory=list)
    create: Obj | None = None
    due: float = 0.0
    events: list[Event] = field(default_factory=list)
    wake: float | None = None


def observe(cron: Obj, children: list[Obj]) -> Plan:
    """The status as the CronJob's Jobs show it, and the finished ones beyond the history's limits."""
    status = objects.deep_copy(cron.get("status") or {})
    result = Plan(status)
    listed = {ref.get("uid"): ref for ref in status.get("active") or ()}
    for job in sorted(children, key=objects.name):
        uid, name, over = objects.uid(job), objects.name(job), completion.finished(job)
        if uid not in listed and not over:
            result.events.append(("Warning", "UnexpectedJob",
                                  f"Saw a job that the controller did not create or forgot: {name}"))
        elif over and listed.pop(uid, None):
            how = "Complete" if objects.holds(job, "Complete") else "Failed"
            result.events.append(("Normal", "SawCompletedJob", f"Saw completed job: {name}, condition: {how}"))
        ended = objects.get(job, "status.completionTime")
        if objects.holds(job, "Complete") and ended and ended > status.get("lastSuccessfulTime", ""):
            status["lastSuccessfulTime"] = ended
    present = {objects.uid(job) for job in children}
    for uid in [uid for uid in listed if uid not in present]:
        result.events.append(("Normal", "MissingJob", f"Active job went missing: {listed.pop(uid).get('name')}"))
    status.pop("active", None)
    if listed:
        status["active"] = list(listed.values())
    result.forget = _surplus(cron, children)
    return result


def _surplus(cron: Obj, children: list[Obj]) -> list[Obj]:
    surplus = []
    for kind, limit in (("Complete", objects.get(cron, "spec.successfulJobsHistoryLimit")),
                        ("Failed", objects.get(cron, "spec.failedJobsHistoryLimit"))):
        ended = sorted((job for job in children if objects.holds(job, kind) and not objects.deleting(job)),
                       key=lambda job: (objects.get(job, "status.startTime", ""), objects.name(job)))
        if limit is not None:
            surplus += ended[:max(0, len(ended) - limit)]
    return surplus


def decide(cron: Obj, children: list[Obj], schedule: Schedule, zone: tzinfo, now: float, result: Plan) -> None:
    """Add to `result` what the schedule asks for now."""
    following = times.upcoming_first(schedule, now, zone)
    result.wake = None if following is None else following - now + LATE
    due = _due(cron, schedule, zone, now, result)
    if due is None:
        return
    deadline = objects.get(cron, "spec.startingDeadlineSeconds")
    if deadline is not None and due + deadline < now:
        result.events.append(("Warning", "MissSchedule",
                              f"Missed scheduled time to start a job: {_shown(due, zone)}"))
        return
    name = job_name(cron, due)
    active = result.status.get("active") or []
    if any(ref.get("name") == name for ref in active) or result.status.get("lastScheduleTime") == rfc3339(due):
        return
    policy = objects.get(cron, "spec.concurrencyPolicy", "Allow")
    if policy == "Forbid" and active:
        result.events.append(("Normal", "JobAlreadyActive", "Not starting job because prior execution is running and "
                              "concurrency policy is Forbid"))
        return
    if policy == "Replace":
        running = {ref.get("uid") for ref in active}
        result.replace = [job for job in children if objects.uid(job) in running]
        result.status.pop("active", None)
    result.create, result.due = child(cron, due, zone), due


def _due(cron: Obj, schedule: Schedule, zone: tzinfo, now: float, result: Plan) -> float | None:
    """The last time that was due and not yet served."""
    since = parse_rfc3339(objects.get(cron, "status.lastScheduleTime") or cron["metadata"]["creationTimestamp"])
    deadline = objects.get(cron, "spec.startingDeadlineSeconds")
    if deadline is not None:
        since = max(since, now - deadline)
    due = times.latest(schedule, since, now, zone)
    if due is not None and times.missed(schedule, since, now, zone, MANY + 1) > MANY:
        result.events.append(("Warning", "TooManyMissedTimes", f"too many missed start times: more than {MANY}. Set or "
                              "decrease .spec.startingDeadlineSeconds or check clock skew"))
    return due


def _shown(when: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(when, zone).isoformat().replace("+00:00", "Z")


def job_name(cron: Obj, due: float) -> str:
    return f"{objects.name(cron)}-{int(due) // 60}"


def child(cron: Obj, due: float, zone: tzinfo) -> Obj:
    """The Job of one scheduled time."""
    template = objects.deep_copy(objects.get(cron, "spec.jobTemplate") or {})
    source = template.get("metadata") or {}
    meta: Obj = {"name": job_name(cron, due), "namespace": objects.namespace(cron),
                 "annotations": {**(source.get("annotations") or {}), SCHEDULED: _shown(due, zone)},
                 "ownerReferences": [objects.owner_reference(cron)]}
    if source.get("labels"):
        meta["labels"] = source["labels"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": template.get("spec") or {}}


def started(status: Obj, job: Obj, due: float) -> None:
    """Enter the Job just made in the status, in place."""
    meta = job["metadata"]
    status.setdefault("active", []).append({
        "kind": "Job", "apiVersion": "batch/v1", "namespace": meta["namespace"], "name": meta["name"],
        "uid": meta["uid"], "resourceVersion": objects.revision(job)})
    status["lastScheduleTime"] = rfc3339(due)
