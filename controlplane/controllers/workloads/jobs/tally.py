"""What has become of a Job's pods: exact counts from its status and the pods that still wait to be counted.

Pure. A pod keeps its finalizer until its end is in the status: first by uid in `uncountedTerminatedPods`, then, when
the finalizer is gone, as a number. So that nothing is counted twice or lost, whatever is written, repeated or missed in
between. Called by `completion`.

Upstream: pkg/controller/job (job_controller.go: trackJobStatusAndRemoveFinalizers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.workloads.jobs import attempts, rules
from controlplane.machinery import objects, podfacts

UNCOUNTED_LIMIT = 500  # uids in the status at once: upstream's limit, which bounds the object's size

Obj = dict[str, Any]


@dataclass(slots=True)
class Tally:
    """`succeeded` and `failed` include what is not yet counted; `settle` are pods whose finalizer may go now."""

    active: list[Obj] = field(default_factory=list)
    terminating: int = 0
    succeeded: int = 0
    failed: int = 0
    done: set[int] = field(default_factory=set)  # indexes
    broken: set[int] = field(default_factory=set)
    last_failed: dict[int, Obj] = field(default_factory=dict)  # index -> the latest failed pod, not yet replaced
    settle: list[Obj] = field(default_factory=list)
    waiting: bool = False  # more ends to count than fit the status


def completions(job: Obj) -> int | None:
    return objects.get(job, "spec.completions")


def tally(job: Obj, pods: list[Obj]) -> Tally:
    """The counts as of now."""
    status = job.get("status") or {}
    uncounted = status.get("uncountedTerminatedPods") or {}
    known = {*(uncounted.get("succeeded") or ()), *(uncounted.get("failed") or ())}
    policy = objects.get(job, "spec.podFailurePolicy")
    found = Tally()
    new_succeeded = new_failed = 0
    for pod in pods:
        found.terminating += podfacts.terminating(pod)
        if podfacts.active(pod):
            found.active.append(pod)
        elif attempts.tracked(pod) and objects.uid(pod) not in known:
            new_succeeded += attempts.succeeded(pod)
            new_failed += attempts.failed(job, pod) and rules.failure_action(policy, pod)[0] != "Ignore"
    found.failed = status.get("failed", 0) + new_failed + len(uncounted.get("failed") or ())
    found.succeeded = status.get("succeeded", 0) + new_succeeded + len(uncounted.get("succeeded") or ())
    if attempts.indexed(job):
        _tally_indexes(job, pods, found)
    return found


def _tally_indexes(job: Obj, pods: list[Obj], found: Tally) -> None:
    limit = completions(job) or 0
    status = job.get("status") or {}
    found.done = rules.parse_indexes(status.get("completedIndexes") or "", limit)
    found.done |= {index for pod in pods if attempts.succeeded(pod) and attempts.tracked(pod)
                   and 0 <= (index := rules.index_of(pod)) < limit}
    found.succeeded = len(found.done)
    if objects.get(job, "spec.backoffLimitPerIndex") is None:
        return
    found.broken = rules.parse_indexes(status.get("failedIndexes") or "", limit)
    for pod in pods:
        index = rules.index_of(pod)
        if not attempts.tracked(pod) or not attempts.failed(job, pod) or not 0 <= index < limit:
            continue
        if attempts.index_failed(job, pod):
            found.broken.add(index)
        elif index not in found.last_failed or attempts.tries(pod) > attempts.tries(found.last_failed[index]):
            found.last_failed[index] = pod
    found.broken -= found.done
    for pod in pods:  # whoever has taken over carries the count on
        index = rules.index_of(pod)
        last = found.last_failed.get(index)
        if last is not None and (index in found.done | found.broken or attempts.tries(pod) > attempts.tries(last)):
            del found.last_failed[index]


def settle(job: Obj, pods: list[Obj], found: Tally, status: Obj, ending: bool, failing: bool) -> None:
    """Count ends in `status`, in place, and list in `found.settle` the pods that are counted by it.

    `ending`: the Job has its verdict or is being deleted, so that no pod must be waited for; `failing`: it failed, and
    whatever still runs counts as failed."""
    uncounted = status.get("uncountedTerminatedPods") or {}
    held = {objects.uid(pod) for pod in pods if attempts.tracked(pod)}
    waiting: dict[str, list[str]] = {}
    for kind in ("succeeded", "failed"):
        before = uncounted.get(kind) or []
        waiting[kind] = [one for one in before if one in held]
        if gone := len(before) - len(waiting[kind]):
            status[kind] = status.get(kind, 0) + gone
    done = rules.parse_indexes(status.get("completedIndexes") or "", completions(job) or 0)
    keep = {objects.uid(pod) for pod in found.last_failed.values()} if not ending else set()
    for pod in pods:
        if not attempts.tracked(pod) or objects.uid(pod) in keep:
            continue
        if not (ending or attempts.succeeded(pod) or attempts.failed(job, pod)):
            continue
        if len(waiting["succeeded"]) + len(waiting["failed"]) >= UNCOUNTED_LIMIT:
            found.waiting = True
            break
        if _count(job, pod, waiting, done, failing) or ending:
            found.settle.append(pod)
    status["uncountedTerminatedPods"] = {kind: uids for kind, uids in waiting.items() if uids}
    if attempts.indexed(job):
        status["succeeded"] = len(done)
        status["completedIndexes"] = rules.format_indexes(done)
        if not done:
            del status["succeeded"], status["completedIndexes"]
        if objects.get(job, "spec.backoffLimitPerIndex") is not None:
            status["failedIndexes"] = rules.format_indexes(found.broken)


def _count(job: Obj, pod: Obj, waiting: dict[str, list[str]], done: set[int], failing: bool) -> bool:
    """Enter the pod's end; whether it has one that counts or need not be counted."""
    uid, index, limit = objects.uid(pod), rules.index_of(pod), completions(job) or 0
    if uid in waiting["succeeded"] or uid in waiting["failed"]:
        return True
    known = not attempts.indexed(job) or 0 <= index < limit
    if attempts.succeeded(pod):
        if attempts.indexed(job):
            if known:
                done.add(index)
        else:
            waiting["succeeded"].append(uid)
        return True
    if not (attempts.failed(job, pod) or failing):
        return False
    action, _ = rules.failure_action(objects.get(job, "spec.podFailurePolicy"), pod)
    if known and action != "Ignore":
        waiting["failed"].append(uid)
    return True
