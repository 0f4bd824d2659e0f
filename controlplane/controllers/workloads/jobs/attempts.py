"""The pods of a Job: what a new one looks like, when one counts as failed, how long to wait after failures.

Pure. Owns completion indexes as pods see them, the failure counts that follow an index from pod to pod, and the delays
between tries. Called by `completion`.

Upstream: pkg/controller/job (indexed_job_utils.go, backoff_utils.go).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.controllers.workloads import templates
from controlplane.controllers.workloads.jobs import rules
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339

FINALIZER = "batch.kubernetes.io/job-tracking"  # kept by a pod until its end is counted
FAILURES = "batch.kubernetes.io/job-index-failure-count"
IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
DELAY_FIRST, DELAY_LIMIT = 10.0, 600.0  # seconds after the first failure, doubled with each to at most: upstream's
INDEX_ENVIRONMENT = "JOB_COMPLETION_INDEX"

Obj = dict[str, Any]


def tracked(pod: Obj) -> bool:
    return FINALIZER in (pod["metadata"].get("finalizers") or ())


def indexed(job: Obj) -> bool:
    return objects.get(job, "spec.completionMode") == "Indexed"


def replaces_failed_only(job: Obj) -> bool:
    """Whether a pod counts as failed only when it has ended, not as soon as it is told to."""
    policy = objects.get(job, "spec.podReplacementPolicy")
    return policy == "Failed" or (not policy and objects.get(job, "spec.podFailurePolicy") is not None)


def failed(job: Obj, pod: Obj) -> bool:
    phase = objects.get(pod, "status.phase")
    return phase == "Failed" or (phase != "Succeeded" and objects.deleting(pod) and not replaces_failed_only(job))


def succeeded(pod: Obj) -> bool:
    return objects.get(pod, "status.phase") == "Succeeded"


def restarts(pods: Iterable[Obj]) -> int:
    """How often the containers of the running and pending pods were restarted."""
    return sum(one.get("restartCount", 0) for pod in pods
               if objects.get(pod, "status.phase") in ("Running", "Pending")
               for field in ("initContainerStatuses", "containerStatuses")
               for one in objects.get(pod, f"status.{field}", []))


# --- failures per index ------------------------------------------------------------------------------------------

def count_of(pod: Obj, note: str = FAILURES) -> int:
    text = objects.annotations(pod).get(note, "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def tries(pod: Obj) -> int:
    """How many pods of its index failed before it, counted or not."""
    return count_of(pod) + count_of(pod, IGNORED)


def index_failed(job: Obj, pod: Obj) -> bool:
    """Whether this pod's failure is the failure of its index."""
    action, _ = rules.failure_action(objects.get(job, "spec.podFailurePolicy"), pod)
    if action == "FailIndex":
        return True
    return action != "Ignore" and count_of(pod) >= objects.get(job, "spec.backoffLimitPerIndex", 0)


def _counts_after(job: Obj, before: Obj | None) -> dict[str, str]:
    """The failure counts of the pod that replaces `before`."""
    if before is None:
        return {FAILURES: "0"}
    action, _ = rules.failure_action(objects.get(job, "spec.podFailurePolicy"), before)
    ignored = count_of(before, IGNORED) + (action == "Ignore")
    result = {FAILURES: str(count_of(before) + (action != "Ignore"))}
    return result | ({IGNORED: str(ignored)} if ignored else {})


# --- delays ------------------------------------------------------------------------------------------------------

def finished_at(pod: Obj) -> float:
    """When the pod ended (wall seconds), as well as it is known."""
    ends = [at for field in ("containerStatuses", "initContainerStatuses")
            for one in objects.get(pod, f"status.{field}", [])
            if (at := objects.get(one, "state.terminated.finishedAt"))]
    if ends:
        return max(map(parse_rfc3339, ends))
    ready = objects.condition(pod, "Ready") or {}
    stamp = pod["metadata"].get("deletionTimestamp") or ready.get("lastTransitionTime") or \
        pod["metadata"].get("creationTimestamp")
    return parse_rfc3339(stamp) if stamp else 0.0


def delay(failures: int, last: float, now: float) -> float:
    """Seconds until the next try, after `failures` in a row, the last at `last`."""
    if failures <= 0:
        return 0.0
    pause = min(DELAY_LIMIT, DELAY_FIRST * 2 ** min(failures - 1, 10))
    return max(0.0, last + pause - now)


def delay_after(job: Obj, pods: Iterable[Obj], now: float) -> float:
    """Seconds until the next pod may start: by the failures since the last success among the pods that are known."""
    failures, last = 0, 0.0
    ended = sorted((finished_at(pod), succeeded(pod)) for pod in pods
                   if succeeded(pod) or (failed(job, pod) and (tracked(pod) or not objects.deleting(pod))))
    for when, well in ended:
        failures, last = (0, 0.0) if well else (failures + 1, when)
    return delay(failures, last, now)


# --- new pods ----------------------------------------------------------------------------------------------------

def child(job: Obj, index: int | None = None, before: Obj | None = None) -> Obj:
    """The pod of the template, without a name; `before` is the failed pod of `index` that it replaces."""
    pod = templates.pod_of(job)
    meta, spec = pod["metadata"], pod["spec"]
    meta["finalizers"] = [*meta.get("finalizers", ()), FINALIZER]
    if index is None:
        return pod
    notes = meta.setdefault("annotations", {})
    notes[rules.INDEX] = meta.setdefault("labels", {})[rules.INDEX] = str(index)
    if objects.get(job, "spec.backoffLimitPerIndex") is not None:
        notes.update(_counts_after(job, before))
    spec["hostname"] = f"{objects.name(job)}-{index}"
    source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{rules.INDEX}']"}}
    for container in (*spec.get("containers", ()), *(spec.get("initContainers") or ())):
        environment = container.setdefault("env", [])
        if not any(one.get("name") == INDEX_ENVIRONMENT for one in environment):
            environment.append({"name": INDEX_ENVIRONMENT, "valueFrom": source})
    return pod


def prefix(job: Obj, pod: Obj) -> str:
    """What the pod's generated name begins with."""
    index = rules.index_of(pod)
    return f"{objects.name(job)}-{index}-" if index >= 0 else f"{objects.name(job)}-"
