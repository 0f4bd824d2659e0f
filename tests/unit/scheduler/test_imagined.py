"""What-if: workloads become pods, nodes are lost, and nothing but the answer comes of it."""

import argparse
import json

from controlplane.cli import whatif
from controlplane.scheduler import imagined
from tests.unit.scheduler.test_decisions import node, pod


def deployment(name, replicas, cpu, **spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
            "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}], **spec}}}}


def running(name, cpu, at, owner=None, **spec):
    made = pod(name, cpu=cpu, nodeName=at, **spec)
    if owner:
        made["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": owner, "uid": f"uid-{owner}",
                                                "controller": True}]
    return made


def test_a_deployment_takes_the_place_of_its_own_pods():
    owner = {"metadata": {"name": "web-1", "uid": "uid-web-1", "ownerReferences": [
        {"kind": "Deployment", "name": "web", "uid": "d", "controller": True}]}}
    cluster = {"nodes": [node("x")], "pods": [running("web-1-a", "1500m", "x", "web-1")], "replicasets.apps": [owner]}
    found = imagined.outcomes(cluster, [deployment("web", 2, "1")])
    assert [o.node for o in found] == ["x", "x"]
    other = imagined.outcomes(cluster, [deployment("other", 1, "1")])
    assert other[0].nearest == {"node": "x", "reasons": ["Insufficient cpu"],
                                "advice": "lacks 500m cpu; request at most 500m cpu, or free as much there"}


def test_a_lost_node_sends_its_pods_elsewhere_but_not_what_belongs_to_it():
    cluster = {"nodes": [node("x"), node("y")],
               "pods": [running("a", "1", "x", "rs"), running("bare", "1", "x"), running("b", "1500m", "y", "rs")]}
    found = imagined.outcomes(cluster, [], frozenset({"x"}))
    assert [(o.pod["metadata"]["name"], o.node) for o in found] == [("a", "")]
    assert found[0].message == "0/1 nodes are available: 1 Insufficient cpu."


def test_daemons_go_to_each_node_and_important_pods_push_others_out():
    daemon = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "namespace": "default"},
              "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}
    barred = node("z", taints=[{"key": "k", "effect": "NoSchedule"}])  # no daemon is made for it
    cluster = {"nodes": [node("x", unschedulable=True), node("y"), barred],
               "pods": [running("low", "2", "y", "rs")],
               "priorityclasses.scheduling.k8s.io": [{"metadata": {"name": "high"}, "value": 1000}]}
    found = imagined.outcomes(cluster, [daemon, deployment("web", 1, "1", priorityClassName="high")])
    assert [(o.node, o.leaving) for o in found] == [("y", ["default/low"]), ("x", []), ("y", [])]


def test_whatif_prints_json_and_fails_when_something_does_not_fit(tmp_path, monkeypatch, capsys):
    async def fetch(args):
        return {"nodes": [node("x")], "pods": []}, "default"
    monkeypatch.setattr(whatif, "fetch", fetch)
    file = tmp_path / "app.yaml"
    file.write_text(json.dumps(deployment("web", 3, "1")))
    args = argparse.Namespace(filename=[str(file)], without=[], namespace="", output="json", kubeconfig=None)
    assert whatif.run(args) == whatif.UNFIT
    answer = json.loads(capsys.readouterr().out)
    assert [p["node"] for p in answer["pods"]] == ["x", "x", ""]
    assert answer["pods"][2]["nearestMiss"]["node"] == "x"
