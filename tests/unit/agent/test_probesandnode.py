"""Probe thresholds as rows of results, and what the Node says of its host."""

from __future__ import annotations

from agent.kubelet.host import nodestatus
from agent.kubelet.host.addresswatch import AddressWatch
from agent.kubelet.host.clockwatch import ClockWatch
from agent.kubelet.host.nodestatus import Health, Host
from agent.kubelet.probing.probes import EAGER, Timing, Verdict, judge
from controlplane.machinery.clock import FakeClock


def row(results, kind="liveness", **probe):
    """Verdicts after each result (`+` or `-`) and which failures counted."""
    verdict, timing, out, counted = Verdict(), Timing.of(probe), "", 0
    for result in results:
        verdict, _, counts = judge(verdict, timing, result == "+", kind)
        counted += counts
        out += {None: "?", True: "Y", False: "N"}[verdict.good]
    return out, counted


def test_thresholds_need_results_in_a_row():
    assert row("+--+---", failureThreshold=3) == ("YYYYYYN", 5)
    assert row("-+-+++", "liveness", failureThreshold=2, successThreshold=3) == ("?????Y", 2)


def test_readiness_is_tried_eagerly_at_first_and_early_misses_do_not_count():
    verdict, timing, pauses = Verdict(), Timing.of({"periodSeconds": 10, "failureThreshold": 1}), []
    for _ in range(len(EAGER)):
        verdict, pause, counts = judge(verdict, timing, False, "readiness")
        assert verdict.good is None and not counts
        pauses.append(pause)
    assert tuple(pauses) == EAGER and sum(EAGER) < 10
    verdict, pause, counts = judge(verdict, timing, False, "readiness")
    assert (verdict.good, pause, counts) == (False, 10.0, True)
    short = judge(Verdict(early=4), Timing.of({"periodSeconds": 1}), False, "readiness")
    assert short[1] == 1.0 and short[2]


HOST = Host("n1", ("10.0.0.1",), 2, 4 << 30, 100 << 30, runtime_version="containerd://1.6.20")


def test_a_node_is_ready_only_with_runtime_and_network():
    made = nodestatus.node(HOST, "2026-01-01T00:00:00Z", Health())
    assert made["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
    assert made["status"]["capacity"] == {"cpu": "2", "ephemeral-storage": "104857600Ki", "hugepages-1Gi": "0",
                                          "hugepages-2Mi": "0", "memory": "4194304Ki", "pods": "110"}
    assert [(c["type"], c["status"], c["reason"]) for c in made["status"]["conditions"]] == [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID"), ("Ready", "True", "KubeletReady")]
    short = Health(network="no pod range", pressures=frozenset({"MemoryPressure"}))
    later = nodestatus.status(HOST, short, "2026-01-01T00:01:00Z", made["status"])
    ready = later["conditions"][-1]
    assert ready["reason"] == "KubeletNotReady" and ready["message"].endswith("message:no pod range")
    assert later["conditions"][0]["status"] == "True"
    assert later["conditions"][1]["lastTransitionTime"] == "2026-01-01T00:00:00Z"


def test_a_node_says_when_its_address_is_gone():
    present, told = {"10.0.0.1"}, []
    watch = AddressWatch(HOST.ips, lambda: told.append(watch.problem), FakeClock(), lambda: present)
    watch.look()
    assert told == []
    present.clear()
    watch.look()
    status = nodestatus.status(HOST, Health(unreachable=watch.problem), "2026-01-01T00:00:00Z", {})
    assert status["conditions"][-1]["message"] == 'node IP: "10.0.0.1" not found in the host\'s network interfaces'
    present.add("10.0.0.1")
    watch.look()
    assert told[1:] == [""]


def test_a_clock_that_is_set_is_told_and_one_that_is_steered_is_not():
    class Clock(FakeClock):
        ahead = 0.0

        def now(self):
            return super().now() + self.ahead
    clock, told = Clock(), []
    watch = ClockWatch(told.append, clock)
    for ahead, want in ((1.0, []), (3601.0, ["forward by 3600"]), (3598.0, []), (-20.0, ["back by 3618"]), (-20.0, [])):
        clock.ahead = ahead
        told.clear()
        watch.look()
        assert told == [f"the node's clock was set {text} seconds" for text in want]


def test_only_a_real_change_is_told():
    first = nodestatus.status(HOST, Health(), "2026-01-01T00:00:00Z", {})
    assert not nodestatus.differs(first, nodestatus.status(HOST, Health(), "2026-01-01T00:00:30Z", first))
    images = Health(images=tuple(((f"i{n}",), n) for n in range(60)))
    changed = nodestatus.status(HOST, images, "2026-01-01T00:00:30Z", first)
    assert nodestatus.differs(first, changed) and len(changed["images"]) == 50
    assert changed["images"][0] == {"names": ["i59"], "sizeBytes": 59}
