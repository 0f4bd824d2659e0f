"""What starts is waited for as long as it gets on, and given up when it stands still or ends again and again."""

import asyncio
import os

import pytest

from controlplane.cli import patience
from controlplane.cli.patience import ENDINGS, Patience
from controlplane.machinery.clock import FakeClock, rfc3339_micro
from controlplane.machinery.errors import Finding


def waits(signs, seconds=10.0, quiet=15.0, most=100.0):
    """How long a patience lasts when it is shown one sign after the other, `seconds` apart; the last one for ever."""
    clock = FakeClock()
    patient, begun = Patience(quiet, most, clock), clock.monotonic()
    for number in range(1000):
        if patient.ended(signs[min(number, len(signs) - 1)]):
            return clock.monotonic() - begun
        asyncio.run(clock.advance(seconds))
    return None


def test_it_lasts_while_something_changes_and_not_for_ever():
    assert waits(["still"]) == 20
    assert waits(["one", "one", "two", "two", "three"]) == 60, "two looks without a change are no end"
    assert waits(range(1000)) == 110, "what changes for ever gets nowhere"


def row(state="starting", restarts=0, pid=0):
    return {"name": "agent", "state": state, "restarts": restarts, "pid": pid, "reason": "no socket", "log": "a.log"}


def test_processes_that_come_up_and_one_that_never_will():
    shown = [None, [], [row()], [row("waiting")], [row("running")]]
    asyncio.run(patience.processes_run(lambda: shown.pop(0)))
    assert not shown
    dying = [[row(restarts=7 + number)] for number in range(100)]
    with pytest.raises(Finding, match="agent does not start: no socket"):
        asyncio.run(patience.processes_run(lambda: dying.pop(0)))
    assert len(dying) == 100 - ENDINGS - 1, "those of former days do not count"


def test_work_is_processor_time_of_what_lives():
    before = sum(os.times()[:2])
    found = patience.work([os.getpid(), 2 ** 22 + 1])  # there is no such process
    assert before // patience.WORK - 1 <= found <= sum(os.times()[:2]) // patience.WORK + 1
    assert patience.work([2 ** 22 + 1]) == 0


def test_what_keeps_pods_away():
    node = {"status": {"conditions": [{"type": "Ready", "status": "False", "message": "no network"}]}}
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    lease = {"spec": {"renewTime": rfc3339_micro(1000.0)}}
    assert patience.keeps_pods_away({}, {}, 0.0) == "it has not reported yet"
    assert patience.keeps_pods_away(node, {}, 0.0) == "no network"
    assert patience.keeps_pods_away(ready, {}, 0.0) == patience.keeps_pods_away(ready, lease, 1000.5) == ""
    assert patience.keeps_pods_away(ready, lease, 1002.0) == "it has not reported since"
    for taint, told in (("node.kubernetes.io/network-unavailable", True), ("node.kubernetes.io/unschedulable", False),
                        ("node.cloudprovider.kubernetes.io/uninitialized", False)):
        assert bool(patience.keeps_pods_away({**ready, "spec": {"taints": [{"key": taint}]}}, {}, 0.0)) == told
