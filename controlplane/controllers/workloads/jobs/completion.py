"""A Job's next step: its verdict, the pods to make and end, and its status.

Pure. Owns when a Job has failed or succeeded and in which order that is decided, its parallelism, suspension and
conditions. The verdict (FailureTarget, SuccessCriteriaMet) comes first and ends the pods; the end (Failed, Complete)
follows when all of them are counted and gone. Called by `controller`.

Upstream: pkg/controller/job/job_controller.go.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.workloads.jobs import attempts, rules, tally
from controlplane.controllers.workloads.jobs.tally import Tally, completions
from controlplane.controllers.workloads.replicasets import replicas
from controlplane.machinery import objects, podfacts
from controlplane.machinery.clock import parse_rfc3339

BURST = 500  # pods made or ended in one go: upstream's limit
MANAGER = "kubernetes.io/job-controller"

Obj = dict[str, Any]
Verdict = tuple[str, str, str]  # condition type, reason, message


@dataclass(slots=True)
class Plan:
    """Make `create`; end `drop` without counting them and `delete` counting them; write `status`; let `settle` go.

    `events` are (type, reason, message); `wake` is when to look again, in seconds."""

    status: Obj = field(default_factory=dict)
    create: list[Obj] = field(default_factory=list)
    drop: list[Obj] = field(default_factory=list)
    delete: list[Obj] = field(default_factory=list)
    settle: list[Obj] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    wake: float | None = None

    def look_again(self, seconds: float) -> None:
        self.wake = seconds if self.wake is None else min(self.wake, seconds)


def ours(job: Obj) -> bool:
    return objects.get(job, "spec.managedBy", MANAGER) == MANAGER


def finished(job: Obj) -> bool:
    return objects.holds(job, "Complete") or objects.holds(job, "Failed")


def suspended(job: Obj) -> bool:
    return bool(objects.get(job, "spec.suspend"))


def plan(job: Obj, pods: list[Obj], now: float, stamp: str) -> Plan:
    """The step from these pods, which show all earlier steps. `stamp` is `now` as text."""
    found = tally.tally(job, pods)
    result = Plan(status=objects.deep_copy(job.get("status") or {}))
    status = result.status
    status.setdefault("conditions", [])
    if suspended(job):
        status.pop("startTime", None)  # the deadline does not run, and begins anew
    elif not status.get("startTime") and not objects.deleting(job):
        status["startTime"] = stamp
    verdict = _standing(job)
    if verdict is None and not objects.deleting(job):
        verdict = _verdict(job, pods, found, status, now, result)
    if verdict is None and not objects.deleting(job):
        _manage(job, pods, found, now, result)
        if _complete(job, found):
            verdict = ("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
            result.create, result.drop = [], []
        else:
            _suspension(job, result, stamp)
    if verdict is not None:
        result.delete = found.active
        _condition(status, verdict, stamp)
    failing = verdict is not None and verdict[0] == "FailureTarget"
    tally.settle(job, pods, found, status, verdict is not None or objects.deleting(job), failing)
    result.settle = found.settle
    if found.waiting:
        result.look_again(0.0)
    gone = len(result.drop) + len(result.delete)
    _counts(status, "active", len(found.active) - gone + len(result.create))
    gone_uids = {objects.uid(pod) for pod in (*result.drop, *result.delete)}
    status["ready"] = sum(podfacts.ready_since(pod) is not None for pod in found.active
                          if objects.uid(pod) not in gone_uids)
    status["terminating"] = found.terminating + gone
    if verdict is not None and not any(status["uncountedTerminatedPods"].values()) and not found.settle \
            and status["terminating"] == 0:
        _finish(status, verdict, stamp, result)
    if not status["conditions"]:
        del status["conditions"]
    return result


def _counts(status: Obj, name: str, value: int) -> None:
    status.pop(name, None)
    if value:
        status[name] = value


def _condition(status: Obj, verdict: Verdict, stamp: str) -> None:
    kind, reason, message = verdict
    if not any(one["type"] == kind and one["status"] == "True" for one in status["conditions"]):
        status["conditions"] = [one for one in status["conditions"] if one["type"] != kind]
        status["conditions"].append({"type": kind, "status": "True", "lastProbeTime": stamp,
                                     "lastTransitionTime": stamp, "reason": reason, "message": message})


def _finish(status: Obj, verdict: Verdict, stamp: str, result: Plan) -> None:
    kind, reason, message = verdict
    if kind == "FailureTarget":
        _condition(status, ("Failed", reason, message), stamp)
        result.events.append(("Warning", reason, message))
    else:
        _condition(status, ("Complete", reason, message), stamp)
        status["completionTime"] = stamp
        result.events.append(("Normal", "Completed", "Job completed"))


def _suspension(job: Obj, result: Plan, stamp: str) -> None:
    status, now = result.status, suspended(job)
    before = next((one for one in status["conditions"] if one["type"] == "Suspended"), None)
    if (before is None and not now) or (before is not None and before["status"] == str(now)):
        return
    reason, message, event = ("JobSuspended", "Job suspended", "Suspended") if now else \
        ("JobResumed", "Job resumed", "Resumed")
    status["conditions"] = [one for one in status["conditions"] if one["type"] != "Suspended"]
    status["conditions"].append({"type": "Suspended", "status": str(now), "lastProbeTime": stamp,
                                 "lastTransitionTime": stamp, "reason": reason, "message": message})
    result.events.append(("Normal", event, message))


# --- the verdict -------------------------------------------------------------------------------------------------

def _standing(job: Obj) -> Verdict | None:
    """The verdict that has been given already."""
    for kind in ("FailureTarget", "SuccessCriteriaMet"):
        if objects.holds(job, kind):
            one = objects.condition(job, kind) or {}
            return kind, one.get("reason", ""), one.get("message", "")
    return None


def _verdict(job: Obj, pods: list[Obj], found: Tally, status: Obj, now: float, result: Plan) -> Verdict | None:
    spec = job["spec"]
    reason = _failure(job, pods, found, status, now, result)
    if reason:
        return "FailureTarget", *reason
    if attempts.indexed(job):
        if spec.get("backoffLimitPerIndex") is not None:
            limit = spec.get("maxFailedIndexes")
            if limit is not None and len(found.broken) > limit:
                return "FailureTarget", "MaxFailedIndexesExceeded", \
                    "Job has exceeded the specified maximal number of failed indexes"
            if found.broken and len(found.broken) + len(found.done) >= (completions(job) or 0):
                return "FailureTarget", "FailedIndexes", "Job has failed indexes"
        if message := rules.success(spec.get("successPolicy"), found.done, completions(job) or 0):
            return "SuccessCriteriaMet", "SuccessPolicy", message
    return None


def _failure(job: Obj, pods: list[Obj], found: Tally, status: Obj, now: float,
             result: Plan) -> tuple[str, str] | None:
    spec = job["spec"]
    if policy := spec.get("podFailurePolicy"):
        for pod in pods:
            action, why = rules.failure_action(policy, pod)
            if action == "FailJob":
                return "PodFailurePolicy", why
    limit = spec.get("backoffLimit", 6 if spec.get("backoffLimitPerIndex") is None else 2**31 - 1)
    over = found.failed > limit
    if objects.get(spec, "template.spec.restartPolicy") == "OnFailure":
        again = attempts.restarts(pods)
        over = over or (again > 0 if limit == 0 else again >= limit)
    if over:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    deadline, since = spec.get("activeDeadlineSeconds"), status.get("startTime")
    if deadline is not None and since and not suspended(job):
        left = parse_rfc3339(since) + deadline - now
        if left <= 0:
            return "DeadlineExceeded", "Job was active longer than specified deadline"
        result.look_again(left)
    return None


def _complete(job: Obj, found: Tally) -> bool:
    wanted = completions(job)
    if wanted is None:
        return found.succeeded > 0 and not found.active
    return found.succeeded >= wanted


# --- pods --------------------------------------------------------------------------------------------------------

def _manage(job: Obj, pods: list[Obj], found: Tally, now: float, result: Plan) -> None:
    """How many pods run: `drop` or `create`, never both."""
    active = found.active
    wanted = 0 if suspended(job) else _wanted(job, found)
    surplus = _surplus(job, active, max(0, len(active) - wanted), now)
    if surplus:
        result.drop = surplus[:BURST]
        return
    if suspended(job):
        return
    room = wanted - len(active) - (found.terminating if attempts.replaces_failed_only(job) else 0)
    if room <= 0:
        return
    if objects.get(job, "spec.backoffLimitPerIndex") is not None:
        result.create = _per_index(job, pods, found, min(room, BURST), now, result)
        return
    if (wait := attempts.delay_after(job, pods, now)) > 0:
        result.look_again(wait)
    elif attempts.indexed(job):
        result.create = [attempts.child(job, index) for index in _free(job, pods, found)[:min(room, BURST)]]
    else:
        result.create = [attempts.child(job)] * min(room, BURST)


def _wanted(job: Obj, found: Tally) -> int:
    parallelism = objects.get(job, "spec.parallelism", 1)
    total = completions(job)
    if total is None:  # a work queue: once one pod has succeeded, no new ones start
        return len(found.active) if found.succeeded > 0 else parallelism
    return max(0, min(parallelism, total - found.succeeded - len(found.broken)))


def _surplus(job: Obj, active: list[Obj], least: int, now: float) -> list[Obj]:
    """The pods to end: those of an index that is taken or no more, and as many others as `least` needs."""
    crowd: Counter[str] = Counter()
    order = sorted(active, key=lambda pod: replicas.deletion_rank(pod, crowd, now))
    if not attempts.indexed(job):
        return order[:least]
    kept: dict[int, Obj] = {}
    gone = []
    for pod in reversed(order):  # the most precious first: it keeps its index
        index = rules.index_of(pod)
        if 0 <= index < (completions(job) or 0) and index not in kept:
            kept[index] = pod
        else:
            gone.append(pod)
    rest = [pod for pod in order if kept.get(rules.index_of(pod)) is pod]
    return gone + rest[:max(0, least - len(gone))]


def _free(job: Obj, pods: list[Obj], found: Tally) -> list[int]:
    """The indexes that have no pod and need one, the lowest first."""
    taken = {rules.index_of(pod) for pod in found.active} | found.done | found.broken
    if attempts.replaces_failed_only(job):
        taken |= {rules.index_of(pod) for pod in pods if podfacts.terminating(pod)}
    return [index for index in range(completions(job) or 0) if index not in taken]


def _per_index(job: Obj, pods: list[Obj], found: Tally, room: int, now: float, result: Plan) -> list[Obj]:
    """New pods of indexes that have waited for as long as their own failures ask."""
    made: list[Obj] = []
    for index in _free(job, pods, found):
        if len(made) == room:
            break
        before = found.last_failed.get(index)
        wait = 0.0 if before is None else attempts.delay(attempts.tries(before) + 1, attempts.finished_at(before), now)
        if wait > 0:
            result.look_again(wait)
        else:
            made.append(attempts.child(job, index, before))
    return made
