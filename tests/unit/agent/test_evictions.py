"""A node that runs short: when thresholds are met, who goes, what is told, and what is cleared before anybody goes."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from agent.kubelet.admit import Place, judge
from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.host.nodestatus import Host, allocatable
from agent.kubelet.images.images import Image
from agent.kubelet.pressure import accounting, collection, thresholds, victims
from agent.kubelet.pressure.collection import Known
from agent.kubelet.pressure.eviction import Evictions
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.thresholds import Memory, Reading
from agent.kubelet.pressure.victims import Use
from controlplane.machinery.clock import FakeClock
from tests.unit.agent.pods import pod, seen, up

MI = 1 << 20


def named(name: str, priority: int = 0, **requests: str) -> dict[str, Any]:
    made = pod({"name": "c", "resources": {"requests": requests}} if requests else "c")
    made["metadata"].update(name=name, uid=name)
    made["spec"]["priority"] = priority
    return made


def test_a_threshold_once_met_holds_until_its_minimum_is_reclaimed_and_its_condition_longer():
    rules = thresholds.parse("memory.available<100Mi", reclaims="memory.available=50Mi")

    def look(free: int, before: Memory, now: float) -> thresholds.Judgement:
        return thresholds.judge(rules, {"memory.available": Reading(free * MI, 1000 * MI)}, before, now)

    first = look(120, Memory(), 0.0)
    assert not first.due and not first.conditions
    short = look(99, first.memory, 10.0)
    assert [t.resource for t in short.due] == ["memory"] and short.conditions == {"MemoryPressure"}
    assert look(120, short.memory, 20.0).due  # above the threshold, but not by the minimum
    over = look(151, short.memory, 20.0)
    assert not over.due and over.conditions == {"MemoryPressure"}
    assert look(500, over.memory, 10.0 + thresholds.TRANSITION_SECONDS).conditions == frozenset()


def test_a_soft_threshold_waits_for_its_grace_period():
    rules = thresholds.parse("", "nodefs.available<20%", "nodefs.available=1m30s")
    readings = {"nodefs.available": Reading(19, 100)}
    first = thresholds.judge(rules, readings, Memory(), 0.0)
    assert not first.due and first.conditions == {"DiskPressure"}
    assert thresholds.judge(rules, readings, first.memory, 90.0).due
    for wrong in (("memory.free<1",), ("", "memory.available<1Gi"), ("memory.available<110%",), ("memory.available",)):
        with pytest.raises(ValueError):
            thresholds.parse(*wrong)


def test_who_uses_more_than_asked_goes_first_then_the_lower_priority_and_critical_pods_never():
    entries = [(named("within", -5, memory="100Mi"), Use(memory=90 * MI)),
               (named("important", 1000), Use(memory=900 * MI)), (named("small"), Use(memory=5 * MI)),
               (named("large", memory="10Mi"), Use(memory=300 * MI)),
               (named("system", victims.admit.CRITICAL), Use(memory=999 * MI))]
    order = [p["metadata"]["name"] for p, _ in victims.rank(entries, "memory")]
    assert order == ["large", "small", "important", "within"]


def test_limits_of_local_storage_are_the_pods_and_its_containers():
    made = pod({"name": "c", "resources": {"limits": {"ephemeral-storage": "10Mi"}}},
               {"name": "d", "resources": {"limits": {"ephemeral-storage": "90Mi"}}}, "free")
    made["spec"]["volumes"] = [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]
    assert victims.limited(made) and not victims.limited(pod())
    made["spec"]["priority"] = victims.admit.CRITICAL
    assert not victims.limited(made)
    assert victims.overstepped(made, Use(volumes={"e": MI + 1})) == \
        'Usage of EmptyDir volume "e" exceeds the limit "1Mi". '
    assert victims.overstepped(made, Use(disk=50 * MI, containers={"c": 11 * MI})) == \
        'Container c exceeded its local ephemeral storage limit "10Mi". '
    alone = pod({"name": "c", "resources": {"limits": {"ephemeral-storage": "10Mi"}}})
    assert victims.overstepped(alone, Use(disk=11 * MI)) == \
        "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "
    assert victims.overstepped(alone, Use(disk=MI)) == ""


class Node:
    """A node whose readings are set, whose pods are given, and that remembers what was done to it."""

    def __init__(self, *pods: tuple[dict[str, Any], Use], free: int = 10) -> None:
        self.free, self.done = free, []
        self.uses = {p["metadata"]["uid"]: use for p, use in pods}
        self.pods = [SimpleNamespace(pod=p, seen=seen(up("c")), active=True, doom=self._doom(p)) for p, _ in pods]
        accounts: Any = SimpleNamespace(memory=lambda p, s: self.uses[p["metadata"]["uid"]], disk=self._disk,
                                        holds=lambda p: False)
        self.evictions = Evictions(
            Keeping(thresholds.parse("nodefs.available<15%,memory.available<5%")), self._signals, lambda: self.pods,
            accounts, self._reclaim, lambda p, reason, text, *notes: self.done.append((reason, text)), lambda: None,
            FakeClock())
        self.clears = 0

    def _doom(self, p: dict[str, Any]) -> Any:
        def doom(reason: str, message: str, grace: float, mark: tuple[str, ...]) -> None:
            self.done.append((p["metadata"]["name"], reason, grace, mark[:3]))
        return doom

    def _signals(self) -> dict[str, Reading]:
        return {"nodefs.available": Reading(self.free * MI, 100 * MI), "memory.available": Reading(50, 100)}

    async def _disk(self, pods: list[Any]) -> list[Use]:
        return [self.uses[p["metadata"]["uid"]] for p, _ in pods]

    async def _reclaim(self, resource: str) -> None:
        self.free += self.clears

    def look(self) -> list[Any]:
        self.done.clear()
        asyncio.run(self.evictions.look())
        return self.done


def test_programs_are_told_who_used_too_much():
    made = pod({"name": "c", "resources": {"requests": {"memory": "1Mi"}}}, "d", "e")
    use = Use(memories={"c": MI, "d": 3 * MI, "e": 1025})
    assert victims.offence(made, use, "memory") == {"offending_containers": "d,e", "starved_resource": "memory",
                                                    "offending_containers_usage": "3Mi,1025"}
    assert victims.offence(made, use, "pids")["offending_containers"] == ""


def test_what_nobody_needs_is_cleared_before_a_pod_goes_and_one_goes_at_a_time():
    node = Node((named("a"), Use(disk=5 * MI, containers={"c": 5 * MI})), (named("b"), Use(disk=9 * MI)))
    node.clears = 80
    assert node.look() == [("EvictionThresholdMet", "Attempting to reclaim ephemeral-storage")]
    node.free, node.clears = 10, 0
    told = node.look()
    assert told[1] == ("Evicted", "The node was low on resource: ephemeral-storage. Threshold quantity: 15360Ki, "
                                  "available: 10240Ki. ")
    assert told[2] == ("b", "Evicted", 1.0, ("DisruptionTarget", "True", "TerminationByKubelet"))
    assert node.evictions.conditions == {"DiskPressure"}
    assert node.look() == []  # b is still stopping
    node.pods[1].seen, node.pods[1].active = seen(), False
    assert ("a", "Evicted") in [entry[:2] for entry in node.look()]


def test_a_node_under_pressure_turns_new_pods_away():
    short = Place("n", pressures=frozenset({"MemoryPressure"}))
    assert judge(pod(), [], short) == ("Evicted", "The node had condition: [MemoryPressure]. ")
    assert judge(named("b", memory="1Mi"), [], short) is None
    assert judge(named("b", memory="1Mi"), [], Place("n", pressures=frozenset({"DiskPressure"}))) is not None
    assert judge(named("s", victims.admit.CRITICAL), [], short) is None


def test_images_go_by_their_last_use_and_what_cannot_be_had_again_stays():
    images = [Image(name, (f"r/{name}:1",), () if name == "imported" else (f"r/{name}@sha256:1",), 10, "",
                    name == "pinned") for name in ("old", "new", "imported", "pinned", "used", "young")]
    known = {i.id: Known(came=0.0, used={"old": 1.0, "new": 5.0}.get(i.id, 0.0)) for i in images}
    known["young"].came = 950.0
    used = collection.wanted([(pod({"name": "c", "image": "r.x/y"}), seen(up("c", image="r/used:1")))])
    found = collection.chosen(images, used, known, 1000.0, 120.0)
    assert [i.id for i in found] == ["old", "new"] and "r.x/y:latest" in used
    assert collection.too_much(Reading(10, 100), 85, 80) == 10 and collection.too_much(Reading(20, 100), 85, 80) == 0


def test_disk_is_counted_once_and_groups_of_unknown_pods_are_found(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    alone = accounting.occupied(tmp_path)[0]
    os.link(tmp_path / "f", tmp_path / "g")
    assert accounting.occupied(tmp_path)[0] == alone >= 100_000
    uid, known = "0a1b2c3d-0000-4000-8000-00000000000a", "0a1b2c3d-0000-4000-8000-00000000000b"
    for name in (f"memory/kubepods/burstable/pod{uid}", f"cpu/kubepods/pod{known}", "memory/kubepods/other"):
        (tmp_path / name).mkdir(parents=True)
    assert Cgroups(mount=tmp_path).orphans(lambda u: u == known, float("inf")) == [uid]
    assert Cgroups(mount=tmp_path).orphans(lambda u: False, 1.0) == []
    flat = uid.replace("-", "_")
    (tmp_path / f"systemd/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{flat}.slice").mkdir(
        parents=True)
    assert Cgroups(systemd=True, mount=tmp_path).orphans(lambda u: False, float("inf")) == [uid]


def test_pods_may_ask_for_what_is_not_reserved_nor_kept_free():
    keeping = Keeping(kube_reserved={"cpu": "100m", "memory": "200Mi"}, system_reserved={"memory": "100Mi"})
    host = Host("n", ("10.0.0.1",), 2, 1000 * MI, 1000 * MI, keeping=keeping, hugepages=(("hugepages-2Mi", 100 * MI),))
    assert allocatable(host) == {"cpu": "1900m", "ephemeral-storage": str(900 * MI), "memory": f"{500 * 1024}Ki",
                                 "pods": "110", "hugepages-2Mi": "100Mi"}
