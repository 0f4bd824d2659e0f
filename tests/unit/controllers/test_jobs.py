"""Jobs, told as transcripts of a small world: what the plan does after each thing that happens to the pods."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from controlplane.controllers.workloads.jobs import attempts, completion, expiry, rules
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339, rfc3339

NOW = parse_rfc3339("2026-01-01T00:00:00Z")


class World:
    """A Job and its pods. `step` runs the plan until nothing changes and tells what it did."""

    def __init__(self, **spec):
        self.now, self.numbers = NOW, itertools.count()
        template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c"}],
                                                                  "restartPolicy": spec.pop("restart", "Never")}}
        self.job = {"apiVersion": "batch/v1", "kind": "Job",
                    "metadata": {"name": "j", "namespace": "default", "uid": "u"},
                    "spec": {"parallelism": 1, "template": template, **spec}}
        self.pods = {}
        self.wake = None

    @property
    def status(self):
        return self.job.get("status") or {}

    def conditions(self):
        return [f"{c['type']}={c['status']}:{c['reason']}" for c in self.status.get("conditions", ())]

    def step(self):
        told = []
        for _ in range(20):
            plan = completion.plan(self.job, list(self.pods.values()), self.now, rfc3339(self.now))
            self.wake = plan.wake
            before = objects.deep_copy([self.job, self.pods])
            for pod in plan.drop:
                told.append(f"drop {objects.name(pod)}")
                pod["metadata"]["finalizers"] = []
                self.delete(objects.name(pod))
            for pod in plan.delete:
                told.append(f"delete {objects.name(pod)}")
                self.delete(objects.name(pod))
            for pod in plan.create:
                name = f"p{next(self.numbers)}"
                index = rules.index_of(pod)
                told.append(f"create {name}" + (f"[{index}]" if index >= 0 else ""))
                self.pods[name] = objects.deep_copy(pod)
                self.pods[name]["metadata"] |= {"name": name, "uid": name, "creationTimestamp": rfc3339(self.now)}
                self.pods[name]["status"] = {"phase": "Pending"}
            self.job["status"] = plan.status
            told += [f"{reason}: {message}" for _, reason, message in plan.events]
            for pod in plan.settle:
                self.pods[objects.name(pod)]["metadata"]["finalizers"] = []
            self.collect()
            if before == [self.job, self.pods]:
                return told
            if completion.finished(self.job):
                return told
        raise AssertionError(told)

    def delete(self, name):
        self.pods[name]["metadata"].setdefault("deletionTimestamp", rfc3339(self.now))

    def collect(self):
        """A deleted pod goes when nothing holds it any more."""
        self.pods = {name: pod for name, pod in self.pods.items()
                     if not objects.deleting(pod) or pod["metadata"]["finalizers"]}

    def end(self, name, phase, code=0, **conditions):
        ended = {"exitCode": code, "finishedAt": rfc3339(self.now)}
        self.pods[name]["status"] = {
            "phase": phase, "containerStatuses": [{"name": "c", "state": {"terminated": ended}}],
            "conditions": [{"type": kind, "status": value} for kind, value in conditions.items()]}

    def counts(self):
        return tuple(self.status.get(field, 0) for field in ("active", "succeeded", "failed"))


def test_a_job_runs_to_completion():
    w = World(parallelism=2, completions=3)
    assert w.step() == ["create p0", "create p1"] and w.counts() == (2, 0, 0)
    w.end("p0", "Succeeded")
    assert w.step() == ["create p2"] and w.counts() == (2, 1, 0)
    assert not w.pods["p0"]["metadata"]["finalizers"]
    w.end("p1", "Succeeded"), w.end("p2", "Succeeded")
    assert w.step() == ["Completed: Job completed"] and w.counts() == (0, 3, 0)
    assert w.conditions() == ["SuccessCriteriaMet=True:CompletionsReached", "Complete=True:CompletionsReached"]
    assert w.status["completionTime"] and w.status["uncountedTerminatedPods"] == {}


def test_failures_wait_ever_longer_until_the_limit():
    w = World(completions=2, backoffLimit=2)
    w.step()
    waits = []
    for number in range(3):
        w.end(f"p{number}", "Failed", 1)
        told = w.step()
        if told:
            break
        waits.append(w.wake)
        w.now += w.wake
        assert w.step() == [f"create p{number + 1}"]
    assert waits == [10, 20]
    assert told == ["BackoffLimitExceeded: Job has reached the specified backoff limit"] and w.counts() == (0, 0, 3)
    assert w.conditions() == ["FailureTarget=True:BackoffLimitExceeded", "Failed=True:BackoffLimitExceeded"]


def test_a_lost_answer_counts_nothing_twice():
    """The status was written, the finalizer not yet removed: the same end is met again and counted once."""
    w = World(completions=2, parallelism=2)
    w.step()
    w.end("p0", "Succeeded")
    first = completion.plan(w.job, list(w.pods.values()), w.now, rfc3339(w.now))
    assert first.status["uncountedTerminatedPods"] == {"succeeded": ["p0"]}
    w.job["status"] = first.status
    again = completion.plan(w.job, list(w.pods.values()), w.now, rfc3339(w.now))
    assert again.status == first.status and [objects.name(p) for p in again.settle] == ["p0"]
    w.step()
    assert w.counts() == (1, 1, 0)


def test_indexes_are_kept_and_elastic():
    w = World(completions=3, parallelism=3, completionMode="Indexed")
    assert w.step() == ["create p0[0]", "create p1[1]", "create p2[2]"]
    one = w.pods["p1"]
    assert one["spec"]["hostname"] == "j-1" and one["metadata"]["labels"][rules.INDEX] == "1"
    assert one["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX"
    w.end("p1", "Succeeded")
    w.now += 1
    w.end("p2", "Failed", 1)
    w.step()
    assert (w.status["completedIndexes"], w.wake, w.counts()) == ("1", 10, (1, 1, 1))
    w.now += 10
    assert w.step() == ["create p3[2]"]
    w.job["spec"].update(completions=2, parallelism=2)
    assert w.step() == ["drop p3"]
    w.job["spec"].update(completions=4, parallelism=4)
    w.step()
    assert sorted(rules.index_of(p) for p in w.pods.values() if objects.get(p, "status.phase") == "Pending") == \
        [0, 2, 3]


def test_each_index_has_its_own_limit():
    w = World(completions=2, parallelism=2, completionMode="Indexed", backoffLimitPerIndex=1)
    w.step()
    w.end("p0", "Failed", 1)
    assert w.step() == [] and w.wake == 10
    assert w.pods["p0"]["metadata"]["finalizers"], "kept until its count has a successor"
    w.now += 10
    assert w.step() == ["create p2[0]"] and w.pods["p2"]["metadata"]["annotations"][attempts.FAILURES] == "1"
    assert not w.pods["p0"]["metadata"]["finalizers"]
    w.end("p2", "Failed", 1)
    assert w.step() == [] and w.status["failedIndexes"] == "0"
    w.end("p1", "Succeeded")
    assert w.step() == ["FailedIndexes: Job has failed indexes"] and w.counts() == (0, 1, 2)


def test_too_many_failed_indexes_end_the_rest():
    w = World(completions=3, parallelism=3, completionMode="Indexed", backoffLimitPerIndex=0, maxFailedIndexes=1)
    w.step()
    w.end("p0", "Failed", 1), w.end("p1", "Failed", 1)
    assert w.step() == ["delete p2", "MaxFailedIndexesExceeded: Job has exceeded the specified maximal number of failed"
                        " indexes"]
    assert w.status["failedIndexes"] == "0,1" and w.counts() == (0, 0, 3)


def test_pod_failure_policy():
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
             {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
             {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [42]}}]
    w = World(completions=1, backoffLimit=0, podFailurePolicy={"rules": rules}, podReplacementPolicy="Failed")
    w.step()
    w.end("p0", "Failed", 1, DisruptionTarget="True")
    w.step()
    w.now += 10
    assert w.step() == ["create p1"] and w.counts() == (1, 0, 0), "a disruption is no failure"
    w.end("p1", "Failed", 42)
    assert w.step() == ["PodFailurePolicy: Container c for pod default/p1 failed with exit code 42 matching FailJob "
                        "rule at index 1"]


def test_success_policy_ends_what_still_runs():
    policy = {"rules": [{"succeededIndexes": "0-1", "succeededCount": 1}]}
    w = World(completions=3, parallelism=3, completionMode="Indexed", successPolicy=policy)
    w.step()
    w.end("p2", "Succeeded")
    assert w.step() == []
    w.end("p1", "Succeeded")
    assert w.step() == ["delete p0", "Completed: Job completed"]
    assert w.conditions() == ["SuccessCriteriaMet=True:SuccessPolicy", "Complete=True:SuccessPolicy"]
    assert w.counts() == (0, 2, 0)


def test_deadline_and_suspension():
    w = World(activeDeadlineSeconds=60, suspend=True)
    assert w.step() == ["Suspended: Job suspended"] and "startTime" not in w.status
    w.now += 100
    w.job["spec"]["suspend"] = False
    assert w.step() == ["create p0", "Resumed: Job resumed"] and w.status["startTime"] == rfc3339(w.now)
    assert w.wake == 60
    w.job["spec"]["suspend"] = True
    assert w.step() == ["drop p0", "Suspended: Job suspended"] and w.counts() == (0, 0, 0)
    assert "startTime" not in w.status
    w.now += 100
    w.job["spec"]["suspend"] = False
    assert w.step() == ["create p1", "Resumed: Job resumed"] and w.status["startTime"] == rfc3339(w.now)
    w.now += 60
    assert w.step() == ["delete p1", "DeadlineExceeded: Job was active longer than specified deadline"]


def test_a_replacement_may_wait_for_the_end():
    for policy, told in (("Failed", []), ("TerminatingOrFailed", ["create p1"])):
        w = World(completions=1, podReplacementPolicy=policy)
        w.step()
        w.delete("p0")
        assert w.step() == told


def test_a_job_of_another_controller_is_left_alone():
    assert completion.ours({"spec": {}}) and completion.ours({"spec": {"managedBy": "kubernetes.io/job-controller"}})
    assert not completion.ours({"spec": {"managedBy": "kueue.x-k8s.io/multikueue"}})


def test_restarts_count_where_pods_are_restarted():
    w = World(completions=1, backoffLimit=2, restart="OnFailure")
    w.step()
    w.pods["p0"]["status"] = {"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 2}]}
    assert w.step() == ["delete p0", "BackoffLimitExceeded: Job has reached the specified backoff limit"]


def test_a_work_queue_ends_with_its_last_pod():
    w = World(parallelism=2)
    w.step()
    w.end("p0", "Succeeded")
    assert w.step() == [] and w.counts() == (1, 1, 0)
    w.end("p1", "Succeeded")
    assert w.step() == ["Completed: Job completed"]


def test_time_to_live():
    w = World(completions=0, ttlSecondsAfterFinished=30)
    assert expiry.due(w.job) is None
    w.step()
    assert expiry.due(w.job) == NOW + 30


@given(st.sets(st.integers(0, 40)))
def test_indexes_read_as_written(indexes):
    assert rules.parse_indexes(rules.format_indexes(indexes), 100) == indexes
    assert rules.parse_indexes(rules.format_indexes(indexes), 20) == {i for i in indexes if i < 20}


@given(st.data())
def test_every_end_is_counted_exactly_once(data):
    """Pods end and vanish in any order, answers are lost at any point: the counts are right at the end."""
    total = data.draw(st.integers(1, 4))
    w = World(completions=total, parallelism=data.draw(st.integers(1, 3)), backoffLimit=99)
    failures = 0
    for _ in range(60):
        w.step()
        if completion.finished(w.job):
            break
        running = [name for name, pod in w.pods.items() if pod["status"]["phase"] == "Pending"]
        if running:
            name = data.draw(st.sampled_from(running))
            well = data.draw(st.booleans()) or failures > 8
            w.end(name, "Succeeded" if well else "Failed", 0 if well else 1)
            failures += not well
            if data.draw(st.booleans()):  # the status is written, then we die
                plan = completion.plan(w.job, list(w.pods.values()), w.now, rfc3339(w.now))
                w.job["status"] = plan.status
        w.now += 700
    assert (w.status.get("succeeded"), w.status.get("failed", 0)) == (total, failures)
