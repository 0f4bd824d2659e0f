"""The scheduler's decisions: demand, fit, score, verdict and the queue, without any I/O."""

import pytest

from controlplane.machinery import podresources, quantity
from controlplane.machinery.selectors import from_map
from controlplane.scheduler import demand, fit, verdict
from controlplane.scheduler.queue import Queue
from controlplane.scheduler.snapshot import Snapshot
from controlplane.scheduler.table import Tables


def node(name, cpu="2", memory="4Gi", pods="110", labels=None, taints=None, unschedulable=False):
    return {"metadata": {"name": name, "labels": labels or {}},
            "spec": {"taints": taints or [], "unschedulable": unschedulable},
            "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": pods}}}


def pod(name, cpu=None, memory=None, **spec):
    requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}
    return {"metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}], **spec}}


def snapshot(*nodes):
    made = Snapshot()
    for n in nodes:
        made.set_node(n)
    return made


def decide(wanted, *nodes, placed=()):
    made = snapshot(*nodes)
    for p, on in placed:
        made.place(p, on)
    return verdict.decide(fit.ask(wanted), made, Tables(made))


def test_demand_is_the_worst_moment():
    asked = pod("a", cpu="500m", initContainers=[
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
        {"name": "init", "resources": {"requests": {"cpu": "1"}}}], overhead={"cpu": "10m"})
    assert demand.of(asked).requests["cpu"] == 1000 + 100 + 10
    assert demand.of(pod("b", cpu="2")).requests == {"cpu": 2000}


def test_limits_stand_in_for_missing_requests():
    wanted = pod("a")
    wanted["spec"]["containers"][0]["resources"] = {"limits": {"memory": "1Gi"}}
    assert demand.of(wanted).requests == {"memory": 1 << 30}


def test_a_resized_pod_counts_as_what_it_asks_and_still_has():
    resized = pod("a", cpu="2", initContainers=[
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}])
    resized["status"] = {"containerStatuses": [{"name": "c", "allocatedResources": {"cpu": "1"}}],
                         "initContainerStatuses": [{"name": "side", "allocatedResources": {"cpu": "3"}}]}
    assert demand.of(resized).requests == {"cpu": 2000 + 3000}, "one grows, the other has not shrunk yet"
    resized["status"]["conditions"] = [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]
    assert demand.of(resized).requests == {"cpu": 1000 + 3000}, "it cannot grow here"
    del resized["status"]["conditions"]
    resized["status"]["containerStatuses"][0]["resources"] = {"requests": {"cpu": "4"}}
    assert demand.of(resized).requests == {"cpu": 4000 + 3000}, "it was granted less and has not given back the rest"


def test_a_pod_resized_as_a_whole_counts_as_what_it_asks_and_still_has():
    resized = pod("a", resources={"requests": {"cpu": "2"}}, overhead={"cpu": "100m"})
    resized["status"] = {"allocatedResources": {"cpu": "2100m"}, "resources": {"requests": {"cpu": "3100m"}}}
    assert demand.of(resized).requests == {"cpu": 3100}, "it still has what it was granted before"
    assert podresources.requests(resized, resizing=True) == {"cpu": quantity.parse("3100m")}
    resized["spec"]["resources"]["requests"]["cpu"] = "4"
    assert demand.of(resized).requests == {"cpu": 4100}, "it grows"
    resized["status"]["conditions"] = [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]
    assert demand.of(resized).requests == {"cpu": 3100}, "it cannot grow here"


def test_a_node_that_has_the_images_of_volumes_is_preferred():
    nodes = [node("a"), node("b")]
    nodes[1]["status"]["images"] = [{"names": ["models:v1"], "sizeBytes": 900 << 20}]
    assert decide(pod("p"), *nodes).node == "a"
    assert decide(pod("p", volumes=[{"name": "m", "image": {"reference": "models:v1"}}]), *nodes).node == "b"


@pytest.mark.parametrize("wanted, at, why", [
    (pod("a", cpu="4"), node("n"), "0/1 nodes are available: 1 Insufficient cpu."),
    (pod("a", cpu="4", memory="8Gi"), node("n"), "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."),
    (pod("a"), node("n", pods="0"), "0/1 nodes are available: 1 Too many pods."),
    (pod("a"), node("n", unschedulable=True), "0/1 nodes are available: 1 node(s) were unschedulable."),
    (pod("a", nodeSelector={"disk": "ssd"}), node("n"),
     "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
    (pod("a", nodeName="other"), node("n"),
     "0/1 nodes are available: 1 node(s) didn't match the requested node name."),
    (pod("a"), node("n", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
     "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}."),
])
def test_says_why_as_upstream_does(wanted, at, why):
    assert decide(wanted, at).message == why


def test_no_nodes():
    assert decide(pod("a")).message == "no nodes available to schedule pods"


def test_reasons_are_counted_over_nodes():
    found = decide(pod("a", cpu="3"), node("x"), node("y"), node("z", unschedulable=True))
    assert found.message == "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."


def test_tolerations_open_tainted_nodes():
    tainted = node("n", taints=[{"key": "gpu", "value": "yes", "effect": "NoExecute"}])
    assert decide(pod("a", tolerations=[{"key": "gpu", "operator": "Exists"}]), tainted).node == "n"
    assert decide(pod("a", tolerations=[{"operator": "Exists"}]), tainted).node == "n"
    assert not decide(pod("a", tolerations=[{"key": "gpu", "value": "no"}]), tainted).node


def test_affinity_terms_are_alternatives():
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["7"]}]}, term]}}}
    found = decide(pod("a", affinity=affinity), node("x", labels={"zone": "a"}), node("y", labels={"zone": "b"}))
    assert found.node == "y"


def test_host_ports_clash_by_address():
    def with_port(name, ip=None):
        made = pod(name)
        port = {"containerPort": 80, "hostPort": 80, **({"hostIP": ip} if ip else {})}
        made["spec"]["containers"][0]["ports"] = [port]
        return made
    assert decide(with_port("a"), node("n"), placed=[(with_port("b"), "n")]).message.endswith(
        "1 node(s) didn't have free ports for the requested pod ports.")
    assert decide(with_port("a", "10.0.0.1"), node("n"), placed=[(with_port("b", "10.0.0.2"), "n")]).node == "n"


def test_replicas_spread():
    made = snapshot(node("x"), node("y"), node("z"))
    tables, chosen = Tables(made), []
    family = from_map({"app": "web"})
    for i in range(6):
        wanted = pod(f"p{i}")
        wanted["metadata"]["labels"] = {"app": "web"}
        found = verdict.decide(fit.ask(wanted, family), made, tables)
        made.place(wanted, found.node)
        chosen.append(found.node)
    assert sorted(chosen) == ["x", "x", "y", "y", "z", "z"]


def test_counters_return_to_zero():
    made = snapshot(node("x"))
    wanted = pod("a", cpu="1")
    made.place(wanted, "x")
    made.place(wanted, "x")
    assert made.nodes[0].requested["cpu"] == 1000
    made.remove("uid-a")
    made.remove("uid-a")
    assert (made.nodes[0].requested["cpu"], made.nodes[0].pods) == (0, 0)
    made.drop_node("x")
    assert made.nodes == []


def test_a_refused_pod_waits_for_change_and_back_off():
    queue = Queue()
    queue.put(pod("a"), 0)
    assert queue.pop(0).uid == "uid-a"
    assert queue.pop(0) is None
    queue.refused("uid-a", 0)
    assert queue.pop(5) is None, "parked: time alone does not help"
    queue.cluster_changed(5)
    assert queue.pop(5).uid == "uid-a"
    queue.refused("uid-a", 5)
    assert queue.pop(5.5) is None, "still backing off"
    assert queue.deadline() == 305
    queue.cluster_changed(5.5, lambda waiting: False)
    assert queue.deadline() == 305, "a change that does not help wakes nobody"
    queue.cluster_changed(5.5, lambda waiting: True)
    queue.put(pod("b"), 5.5)
    assert queue.pop(5.5).uid == "uid-b", "others go first"
    assert queue.deadline() == 7.0
    assert queue.pop(5.5).uid == "uid-a", "with nothing else to do, a pod whom a change helps need not wait"
    assert queue.pop(500) is None, "taken while it is being bound"


def test_a_failed_binding_backs_off():
    queue = Queue()
    queue.put(pod("a"), 0)
    queue.pop(0)
    queue.refused("uid-a", 0, park=False)
    assert queue.pop(0.9) is None
    assert queue.deadline() == 1.0
    assert queue.pop(1.0).uid == "uid-a"


def test_parked_pods_are_tried_after_five_minutes():
    queue = Queue()
    queue.put(pod("a"), 0)
    queue.pop(0)
    queue.refused("uid-a", 0)
    assert queue.deadline() == 300
    assert queue.pop(300).uid == "uid-a"


def test_priority_goes_first():
    queue = Queue()
    queue.put(pod("low"), 0)
    queue.put(pod("high", priority=10), 1)
    assert [queue.pop(2).uid, queue.pop(2).uid] == ["uid-high", "uid-low"]
