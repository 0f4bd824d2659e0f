"""CronJobs: when they are due, and what they start, told over hours."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.controllers.workloads.cronjobs import runs, times
from controlplane.machinery import cron, objects
from controlplane.machinery.clock import parse_rfc3339, rfc3339

UTC, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
NOW = parse_rfc3339("2026-01-01T00:00:00Z")


def due(text, after, count=3, zone=UTC):
    coming = times.upcoming(cron.parse(text), parse_rfc3339(after), zone)
    return [datetime.fromtimestamp(next(coming), zone).strftime("%m-%d %H:%M") for _ in range(count)]


@pytest.mark.parametrize("text, times", [
    ("*/20 6 * * *", ["01-01 06:00", "01-01 06:20", "01-01 06:40"]),
    ("0 0 31 * *", ["01-31 00:00", "03-31 00:00", "05-31 00:00"]),
    ("0 12 13 * FRI", ["01-02 12:00", "01-09 12:00", "01-13 12:00"]),  # either, when both are restricted
    ("0 12 1-7 * ?", ["01-01 12:00", "01-02 12:00", "01-03 12:00"]),
    ("@every 90m", ["01-01 01:30", "01-01 03:00", "01-01 04:30"]),
    ("@weekly", ["01-04 00:00", "01-11 00:00", "01-18 00:00"]),
])
def test_schedules(text, times):
    assert due(text, "2026-01-01T00:00:00Z") == times


def test_summer_time_skips_and_repeats():
    assert due("30 2 * * *", "2026-03-28T00:00:00Z", 2, BERLIN) == ["03-28 02:30", "03-30 02:30"]
    assert due("30 2 * * *", "2026-10-24T22:00:00Z", 3, BERLIN) == ["10-25 02:30", "10-25 02:30", "10-26 02:30"]
    assert times.upcoming_first(cron.parse("0 0 30 2 *"), NOW, UTC) is None


FIELDS = [st.sampled_from(["*", "0", "*/7", "13,29"]), st.sampled_from(["*", "2", "1-3", "*/5"]),
          st.sampled_from(["*", "1", "28-31", "*/2"]), st.sampled_from(["*", "3", "10"]),
          st.sampled_from(["*", "0", "1-5"])]


@given(st.tuples(*FIELDS).map(" ".join), st.integers(0, 400 * 86400), st.integers(0, 3 * 86400))
def test_the_last_time_due_is_the_last_of_those_to_come(text, start, span):
    schedule, after = cron.parse(text), NOW + start
    last = None
    for when in times.upcoming(schedule, after, BERLIN):
        if when > after + span:
            break
        last = when
    assert times.latest(schedule, after, after + span, BERLIN) == last


class World:
    def __init__(self, schedule="0 * * * *", **spec):
        self.now, self.jobs, self.schedule = NOW, [], cron.parse(schedule)
        self.cron = {"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": {"spec": {}}, **spec},
                     "metadata": {"name": "c", "namespace": "default", "uid": "u", "creationTimestamp": rfc3339(NOW)}}

    def step(self, minutes):
        """Wait and look; what was done, jobs by their place in the order they were made."""
        self.now += minutes * 60
        plan = runs.observe(self.cron, self.jobs)
        runs.decide(self.cron, self.jobs, self.schedule, UTC, self.now, plan)
        told = [reason for _, reason, _ in plan.events]
        gone = [objects.uid(job) for job in (*plan.forget, *plan.replace)]
        told += [f"delete {uid}" for uid in gone]
        self.jobs = [job for job in self.jobs if objects.uid(job) not in gone]
        if plan.create:
            plan.create["metadata"]["uid"] = f"{(plan.due - NOW) / 60:.0f}m"
            self.jobs.append(plan.create)
            runs.started(plan.status, plan.create, plan.due)
            told.append(f"start {objects.uid(plan.create)}")
        self.cron["status"], self.wake = plan.status, plan.wake
        return told

    def end(self, uid, kind="Complete"):
        job = next(job for job in self.jobs if objects.uid(job) == uid)
        job["status"] = {"conditions": [{"type": kind, "status": "True"}], "startTime": rfc3339(self.now)}
        if kind == "Complete":
            job["status"]["completionTime"] = rfc3339(self.now)


def test_it_sleeps_until_the_next_time():
    w = World()
    assert w.step(10) == [] and w.wake == pytest.approx(50 * 60, abs=1)
    assert w.step(50) == ["start 60m"] and w.wake == pytest.approx(3600, abs=1)
    assert objects.name(w.jobs[0]) == f"c-{int(NOW) // 60 + 60}"
    assert w.jobs[0]["metadata"]["annotations"][runs.SCHEDULED] == "2026-01-01T01:00:00Z"
    assert w.step(0) == [] and w.cron["status"]["lastScheduleTime"] == "2026-01-01T01:00:00Z"
    w.end("60m")
    assert w.step(1) == ["SawCompletedJob"] and "active" not in w.cron["status"]
    assert w.cron["status"]["lastSuccessfulTime"] == "2026-01-01T01:00:00Z"


def test_concurrency_policies():
    said = {}
    for policy in ("Allow", "Forbid", "Replace"):
        w = World(concurrencyPolicy=policy)
        w.step(60)
        said[policy] = w.step(60)
    assert said == {"Allow": ["start 120m"], "Forbid": ["JobAlreadyActive"], "Replace": ["delete 60m", "start 120m"]}


def test_missed_times_start_one_job_or_none():
    assert World().step(5 * 60 + 30) == ["start 300m"]
    assert World(startingDeadlineSeconds=60).step(5 * 60 + 30) == []
    assert World(startingDeadlineSeconds=3600).step(5 * 60 + 30) == ["start 300m"]
    assert World("* * * * *").step(200) == ["TooManyMissedTimes", "start 200m"]


def test_history_is_kept_as_long_as_asked():
    w = World(successfulJobsHistoryLimit=1, failedJobsHistoryLimit=0)
    told = []
    for hour, kind in enumerate(["Complete", "Complete", "Failed"], 1):
        told += w.step(60)
        w.end(f"{hour * 60}m", kind)
    told += w.step(1)
    assert [one for one in told if one.startswith("delete")] == ["delete 60m", "delete 180m"]
    w.jobs = []
    w.cron["status"]["active"] = [{"name": "lost", "uid": "lost"}]
    assert w.step(1) == ["MissingJob"]
