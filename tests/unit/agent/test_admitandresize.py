"""The node's own verdict on pods and on changed resources."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.kubelet import admit, plan
from agent.kubelet.compute import resize
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
