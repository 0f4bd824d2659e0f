"""The node's own verdict on pods and on changed resources."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.kubelet import admit, plan, preemption
from agent.kubelet.compute import resize
from agent.kubelet.compute.resizer import Resizer
from agent.kubelet.model import LinuxResources
from agent.kubelet.staticpods import parse
from tests.unit.agent.pods import box, down, pod, seen, up

PLACE = admit.Place("n1", {"disk": "ssd", "cores": "8"}, {"cpu": "2", "memory": "1Gi", "pods": "2"})


def asking(cpu, **more):
    made = pod({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    made["spec"].update(more)
    return made


def required(*rules):
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": list(rules)}]}}}


def test_a_pod_is_refused_for_what_the_node_lacks_and_for_nothing_else():
    assert admit.judge(asking("2"), [], PLACE) is None
    assert admit.judge(asking("500m"), [asking("1600m")], PLACE) == (
        "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 1600, "
                    "capacity: 2000")
    assert admit.judge(pod(), [pod(), pod()], PLACE)[0] == "OutOfpods"
    side = {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}
    once = {"name": "i", "resources": {"requests": {"cpu": "1500m"}}}
    assert admit.amounts(pod("c", init=(once, side)))["cpu"] == 1500  # the sidecar comes later
    assert admit.amounts(pod("c", init=(side, once)))["cpu"] == 2500
    many = required({"key": "cores", "operator": "Gt", "values": ["4"]})
    assert admit.judge(asking("1", affinity=many), [], PLACE) is None
    assert admit.judge(asking("1", affinity=required()), [], PLACE)[0] == "NodeAffinity"  # an empty term fits nothing
    allowed = admit.Place("n1", sysctls=("net.core.*",))
    tuned = asking("1", securityContext={"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]})
    assert admit.judge(tuned, [], allowed) is None
    assert admit.judge(tuned, [], admit.Place("n1"))[0] == "SysctlForbidden"
    foreign, armoured = pod(), pod({"name": "c", "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}})
    foreign["spec"]["os"] = {"name": "windows"}
    assert admit.judge(foreign, [], PLACE)[0] == "PodOSNotSupported"
    assert admit.judge(armoured, [], PLACE)[0] == "AppArmor"
    assert admit.judge(armoured, [], replace(PLACE, apparmor=True)) is None


def test_a_critical_pod_takes_the_room_of_few_and_of_the_least_guaranteed():
    place = admit.Place("n", allocatable={"cpu": "2", "memory": "4Gi", "pods": "10"})

    def of(name, cpu="0", guaranteed=False, **more):
        asked = {"requests": {"cpu": cpu}} if cpu != "0" else {}
        limits = {"limits": {"cpu": cpu, "memory": "1Mi"}} if guaranteed else {}
        made = pod({"name": "c", "resources": {**asked, **limits}})
        made["metadata"].update(name=name, uid=name)
        made["spec"].update(more)
        return made
    others = [of("best"), of("small", "100m"), of("large", "500m"), of("sure", "900m", True),
              of("other", "300m", priority=admit.CRITICAL)]

    def gone(cpu, priority=admit.CRITICAL):
        return {p["metadata"]["name"] for p in preemption.victims(of("new", cpu, priority=priority), others, place)}
    assert gone("200m") == set() == gone("1500m", priority=5)  # it fits, or is not critical
    assert gone("300m") == {"small"} and gone("400m") == {"large"} and gone("800m") == {"small", "large"}
    assert gone("900m") == {"sure"} and gone("1700m") == {"small", "large", "sure"}
    assert gone("2") == set()  # all of them would not be enough
    assert gone("2", priority=admit.CRITICAL + 1000) == {"small", "large", "sure", "other"}


def test_host_ports_clash_by_address_and_protocol():
    def on(**port):
        return pod({"name": "c", "ports": [{"containerPort": 1, "hostPort": 53, **port}]})
    assert admit.judge(on(), [on(hostIP="10.0.0.1")], PLACE)[0] == "NodePorts"
    assert admit.judge(on(protocol="UDP"), [on()], PLACE) is None
    assert admit.judge(on(hostIP="10.0.0.2"), [on(hostIP="10.0.0.1")], PLACE) is None


def test_a_wish_is_granted_deferred_or_impossible():
    assert resize.verdict(asking("1"), [asking("1")], PLACE) == ("", "")
    assert resize.verdict(asking("1500m"), [asking("1")], PLACE)[0] == "Deferred"
    assert resize.verdict(asking("3"), [], PLACE)[0] == "Infeasible"
    old, new = {"c": {"limits": {"cpu": "1"}}}, {"c": {"limits": {"cpu": "2"}}}
    assert resize.changes(pod(), new, old, ["c"]) == [resize.Change("c", False)]
    assert resize.changes(pod(), {"c": {"limits": {"cpu": "1000m"}}}, old, ["c"]) == []  # the same, written otherwise
    assert resize.wider(LinuxResources(2, 100, 9, 50), LinuxResources(4, 0, 9, 20)) == LinuxResources(4, 0, 9, 50)


def test_what_a_pod_has_as_a_whole_is_resized_with_the_containers_that_live_by_it():
    def whole(memory: str) -> dict:
        made = pod({"name": "own", "resources": {"limits": {"memory": "1Mi"}}}, "free", {
            "name": "again", "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]})
        made["spec"]["resources"] = {"requests": {"memory": "2Mi"}, "limits": {"memory": memory}}
        return made
    before, after = resize.wished(whole("8Mi")), resize.wished(whole("9Mi"))
    assert resize.changes(whole("9Mi"), after, before, ["own", "free", "again"]) == [
        resize.Change("", False), resize.Change("free", False), resize.Change("again", True)]
    made = resize.with_resources(whole("9Mi"), before)
    assert made["spec"] == whole("8Mi")["spec"] | {"containers": [
        c | {"resources": c.get("resources", {})} for c in whole("8Mi")["spec"]["containers"]]}
    assert resize.changes(whole("9Mi"), before, before, ["own", "free", "again"]) == []


def test_a_container_has_what_it_was_made_with_whatever_is_granted_meanwhile(tmp_path):
    before, after = asking("100m"), asking("200m")
    resizer = Resizer(SimpleNamespace(node=SimpleNamespace(pod_folder=lambda uid: tmp_path)), before)  # type: ignore[arg-type]
    resizer.allocated = resize.wished(after)
    resizer.started("c", before)  # its image took long to pull
    assert resize.changes(after, resizer.allocated, resizer.actual, ["c"]) == [resize.Change("c", False)]
    resizer.started("c", resizer.view(before))
    assert not resize.changes(after, resizer.allocated, resizer.actual, ["c"])
    resizer.started("some-init-container", before)
    assert resizer.actual.keys() == {"c"}


def test_huge_pages_are_held_to_what_is_asked_and_others_to_none(tmp_path, monkeypatch):
    from agent.kubelet.compute import cgroups, resources
    monkeypatch.setattr(cgroups, "PAGES", tmp_path / "pages")
    for size in (2048, 1048576):
        (tmp_path / f"pages/hugepages-{size}kB").mkdir(parents=True)
    mount = tmp_path / "mount"
    for name in ("", "kubepods", "kubepods/burstable", "kubepods/burstable/podu"):
        (mount / name).mkdir(parents=True, exist_ok=True)
        (mount / name / "cgroup.controllers").write_text("cpu memory hugetlb")
        (mount / name / "cgroup.subtree_control").write_text("cpu memory hugetlb")
        for size in ("2MB", "1GB"):
            (mount / name / f"hugetlb.{size}.max").write_text("max")
    groups = cgroups.Cgroups(mount=mount)
    made = pod("free", {"name": "own", "resources": {"limits": {"hugepages-2Mi": "2Mi", "memory": "1Mi"}}})
    made["spec"]["resources"] = {"limits": {"hugepages-2Mi": "6Mi", "cpu": "1"}, "requests": {"cpu": "1m"}}
    assert groups.pages == ("2MB", "1GB")
    limits = [dict(resources.linux_resources(made, c, 1 << 30, groups.pages).hugepages)
              for c in made["spec"]["containers"]]
    assert limits == [{"1GB": 0, "2MB": 6 << 20}, {"1GB": 0, "2MB": 2 << 20}]
    asyncio.run(groups.make(made))
    held = {size: (mount / f"kubepods/burstable/podu/hugetlb.{size}.max").read_text() for size in groups.pages}
    assert held == {"2MB": str(6 << 20), "1GB": "0"}
    asyncio.run(groups.weigh(100))  # the groups of the classes are not held
    assert (mount / "kubepods/burstable/hugetlb.2MB.max").read_text() == "max"


def test_what_systemd_does_not_know_is_handed_down_to_its_slices(tmp_path, monkeypatch):
    from agent.kubelet.compute import cgroups

    async def made(wanted):
        """As systemd would make them."""
    monkeypatch.setattr(cgroups, "PAGES", tmp_path / "pages")
    (tmp_path / "pages/hugepages-2048kB").mkdir(parents=True)
    at, mount = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu.slice", tmp_path / "mount"
    (mount / at).mkdir(parents=True)
    (mount / at / "hugetlb.2MB.max").write_text("max")
    folders = [mount, *(mount / part for part in Path(at).parents if part.name), mount / at]
    for folder in folders:
        (folder / "cgroup.controllers").write_text("cpu memory hugetlb")
        (folder / "cgroup.subtree_control").write_text("cpu memory")
    groups = cgroups.Cgroups(systemd=True, mount=mount)
    monkeypatch.setattr(groups._slices, "set", made)
    asyncio.run(groups.make(pod({"name": "own", "resources": {"requests": {"cpu": "1m"}}})))
    assert [(folder / "cgroup.subtree_control").read_text() for folder in folders] == ["+hugetlb"] * 4
    assert (mount / at / "hugetlb.2MB.max").read_text() == "0"


def test_a_sidecar_does_not_go_before_those_it_serves():
    from agent.kubelet.compute.resources import oom_score
    def asks(name, memory, **more):
        return {"name": name, "resources": {"requests": {"memory": memory}}, **more}
    made = pod(asks("a", "512Mi"), asks("b", "256Mi"),
               init=(asks("s", "1Mi", restartPolicy="Always"), asks("i", "1Mi")))
    scores = [oom_score(made, c, 1 << 30) for c in (*made["spec"]["initContainers"], *made["spec"]["containers"])]
    assert scores == [750, 999, 500, 750]


def test_a_container_that_died_with_its_old_sandbox_waits_for_nothing():
    from agent.kubelet.backoff import BackOff
    backing = plan.Facts(backoffs={"c": BackOff(300.0, down("c").finished_at)})
    young = seen(box(1), box(0, ready=False), down("c", 137))
    assert plan.plan(pod(), young, down("c").finished_at + 1, backing).actions == ()
    old = seen(box(1), box(0, ready=False), down("c", 137, at=down("c").finished_at + 60))
    assert [type(a).__name__ for a in plan.plan(pod(), old, down("c").finished_at + 61, backing).actions] == [
        "StartContainer"]
    assert plan.plan(pod(), seen(box(), up("c")), 0.0, plan.Facts(resized=frozenset({"c"}))).actions[0].reason \
        == "Resized"


def test_a_manifest_is_a_pod_of_this_node_or_a_reason():
    text = b'{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": ' \
           b'[{"name": "c", "image": "i"}]}}'
    first = parse(text, "/m/a.json", "n1", "2026-01-01T00:00:00Z")
    assert first["metadata"]["name"] == "a-n1" and first["spec"]["restartPolicy"] == "Always"
    assert first["metadata"]["uid"] == parse(text, "/m/a.json", "n1", "later")["metadata"]["uid"]
    assert first["metadata"]["uid"] != parse(text + b" ", "/m/a.json", "n1", "")["metadata"]["uid"]
    for wrong, why in ((b"kind: [", "neither YAML"), (b"kind: Service", "does not describe a Pod"),
                       (text.replace(b'"image": "i"', b'"image": 1'), "image")):
        with pytest.raises(ValueError, match=why):
            parse(wrong, "/m/a.json", "n1", "")
