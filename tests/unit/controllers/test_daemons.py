"""DaemonSets: eligibility, and updates told step by step on a model of a few nodes."""

import pytest

from controlplane.controllers.workloads import history
from controlplane.controllers.workloads.daemonsets import daemons, eligibility
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339, rfc3339
from tests.unit.controllers.samples import pod

NOW = parse_rfc3339("2026-01-01T01:00:00Z")


def node(name, taints=(), labels=None, **spec):
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {"taints": list(taints), **spec}}


def daemonset(template=None, **update):
    return {"apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "d", "namespace": "default", "uid": "u", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "x"}}, "updateStrategy": update or {"type": "RollingUpdate"},
                     "template": {"metadata": {"labels": {"app": "x"}},
                                  "spec": {"containers": [{"name": "c"}], **(template or {})}}}}


def daemon(name, on, revision, ready=True, phase="Running"):
    one = pod(name, on, phase, NOW - 60 if ready else None)
    one["metadata"]["labels"][history.HASH_LABEL] = revision
    return one


def taint(key, effect="NoSchedule"):
    return {"key": key, "effect": effect}


@pytest.mark.parametrize("template, where, verdict", [
    ({}, node("a"), (True, True)),
    ({}, node("a", [taint("gpu")]), (False, True)),  # new ones are kept off, running ones stay
    ({}, node("a", [taint("gpu", "NoExecute")]), (False, False)),
    ({}, node("a", [taint("gpu", "PreferNoSchedule")]), (True, True)),
    ({"tolerations": [{"operator": "Exists"}]}, node("a", [taint("gpu", "NoExecute")]), (True, True)),
    ({}, node("a", [taint("node.kubernetes.io/not-ready", "NoExecute")], unschedulable=True), (True, True)),
    ({}, node("a", [taint("node.kubernetes.io/network-unavailable")]), (False, True)),
    ({"hostNetwork": True}, node("a", [taint("node.kubernetes.io/network-unavailable")]), (True, True)),
    ({"nodeSelector": {"disk": "ssd"}}, node("a"), (False, False)),
    ({"nodeName": "b"}, node("a"), (False, False)),
    ({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["3"]}]}]}}}},
     node("a", labels={"size": "4"}), (True, True)),
])
def test_eligibility(template, where, verdict):
    assert eligibility.judge(daemonset(template), where) == verdict


def test_a_pod_is_pinned_to_its_node_and_keeps_its_preferences():
    preferred = [{"weight": 1, "preference": {}}]
    one = daemonset({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]},
        "preferredDuringSchedulingIgnoredDuringExecution": preferred}}})
    made = eligibility.child(one, "n7", "h")
    assert eligibility.node_of(made) == "n7" and objects.labels(made)[history.HASH_LABEL] == "h"
    assert made["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == preferred
    assert len(made["spec"]["tolerations"]) == 6 and "tolerations" not in one["spec"]["template"]["spec"]


def told(owner, nodes, pods, now=NOW):
    plan = daemons.plan(owner, nodes, pods, "new", now)
    return [f"+{name}" for name in plan.create] + [f"-{objects.name(p)}" for p in plan.delete] + [
        f"!{objects.name(p)}" for p in plan.finished]


def play(owner, count, steps=40):
    """A whole update on `count` nodes; each step's pods become ready in the next. The transcript."""
    nodes = [node(f"n{i}") for i in range(count)]
    pods = [daemon(f"old{i}", f"n{i}", "old") for i in range(count)]
    transcript = []
    for _ in range(steps):
        plan = told(owner, nodes, pods)
        for one in pods:
            one["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(NOW - 9)}]
        if not plan and all(objects.labels(p)[history.HASH_LABEL] == "new" for p in pods):
            return transcript
        if plan:
            transcript.append(" ".join(plan))
        pods = [p for p in pods if f"-{objects.name(p)}" not in plan]
        pods += [daemon(f"new{one[2:]}", one[1:], "new", ready=False) for one in plan if one[0] == "+"]
    raise AssertionError(transcript)


def test_updates_keep_to_their_bounds():
    rolling = {"type": "RollingUpdate"}
    assert play(daemonset(**rolling), 3) == ["-old0", "+n0", "-old1", "+n1", "-old2", "+n2"]
    assert play(daemonset(**rolling, rollingUpdate={"maxUnavailable": "50%"}), 3) == [
        "-old0 -old1", "+n0 +n1", "-old2", "+n2"]
    assert play(daemonset(**rolling, rollingUpdate={"maxUnavailable": 0, "maxSurge": 2}), 3) == [
        "+n0 +n1", "-old0 -old1", "+n2", "-old2"]


def test_useless_old_pods_go_at_once_and_count():
    nodes = [node("a"), node("b"), node("c")]
    pods = [daemon("pa", "a", "old", ready=False), daemon("pb", "b", "old"), daemon("pc", "c", "new")]
    assert told(daemonset(type="RollingUpdate"), nodes, pods) == ["-pa"]
    assert told(daemonset(type="OnDelete"), nodes, pods) == []


def test_each_node_has_one_pod_and_finished_ones_are_named():
    nodes = [node("a"), node("b"), node("c", [taint("x", "NoExecute")]), node("d")]
    twin = daemon("twin", "a", "new")
    twin["metadata"]["creationTimestamp"] = "2026-01-01T00:30:00Z"
    pods = [daemon("pa", "a", "new"), twin, daemon("pb", "b", "new", phase="Failed"), daemon("pc", "c", "new")]
    assert told(daemonset(), nodes, pods) == ["+d", "-twin", "-pc", "!pb"]
    status = daemons.status(daemonset(), nodes, pods, "new", NOW)
    assert status == {"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "numberMisscheduled": 1,
                      "numberReady": 2, "numberAvailable": 2, "updatedNumberScheduled": 2, "numberUnavailable": 1,
                      "observedGeneration": 1}


def test_revisions_follow_templates():
    one = daemonset()
    first = history.plan(one, [])
    assert first.create and first.current["revision"] == 1
    assert history.template(first.current) == one["spec"]["template"]
    one["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2"
    second = history.plan(one, [first.current])
    assert (second.create, second.current["revision"]) == (True, 2)
    back = history.plan(daemonset(), [first.current, second.current])
    assert (objects.name(back.current), back.create, back.renumber) == (objects.name(first.current), False, 3)
    one["spec"]["revisionHistoryLimit"] = 0
    assert history.surplus(one, [first.current, second.current], {objects.name(second.current)}) == [first.current]
