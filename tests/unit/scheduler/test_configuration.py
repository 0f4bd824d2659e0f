"""What a KubeSchedulerConfiguration changes in decisions, and what is said of one that is wrong."""

import asyncio

import pytest
import yaml

from controlplane.cli import node as cli_node
from controlplane.cli.settings import Settings
from controlplane.controllers import __main__ as controllers
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from controlplane.scheduler import configuration
from controlplane.scheduler.decider import Decider
from controlplane.scheduler.imagined import Cluster
from netsetup.ledger import Ledger

HEAD = {"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"}


def profile(text):
    """The one profile of a file with these lines under it."""
    (found,) = configuration.parse({**HEAD, "profiles": [yaml.safe_load(text)]}).profiles.values()
    return found


def node(name, cpu="4", zone="a", **spec):
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
            "spec": spec, "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10", "x.io/gpu": "8"}}}


def pod(name, labels=None, requests=None, **spec):
    return {"metadata": {"name": name, "namespace": "d", "uid": name, "labels": labels or {}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests or {"cpu": "1"}}}],
                     **spec}}


def chosen(made, wanted, nodes, running=(), services=()):
    """The node and, where there is none, the message."""
    decider = Decider(Cluster({"services": services}))
    decider.snapshot.set_namespace("d", {})
    for one in nodes:
        decider.snapshot.set_node(one)
    for one, at in running:
        decider.snapshot.place(one, at)
    found = decider.decide(decider.ask(wanted, made), made)
    return found.node or found.message


def args(plugin, **given):
    return yaml.safe_dump({"pluginConfig": [{"name": plugin, "args": given}]})


def test_plugins_are_merged_with_the_defaults_as_upstream_does_it():
    found = profile("""
      schedulerName: mine
      plugins:
        multiPoint: {disabled: [{name: ImageLocality}], enabled: [{name: NodeAffinity, weight: 7}]}
        score: {disabled: [{name: "*"}], enabled: [{name: TaintToleration}, {name: NodeResourcesFit, weight: 5}]}
        filter: {disabled: [{name: NodePorts}]}
        postFilter: {disabled: [{name: DefaultPreemption}]}""")
    weights = found.weights
    assert (found.name, weights.taints, weights.fit, weights.affinity, weights.images) == ("mine", 1, 5, 0, 0)
    assert found.off == {"NodePorts"} and not found.preempts
    found = profile("plugins: {multiPoint: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 3}]}}")
    assert (found.weights.fit, found.weights.taints) == (3, 0)
    assert "NodeResourcesFit" not in found.off and "TaintToleration" in found.off


def test_a_filter_that_is_off_refuses_no_node():
    full, wanted = [node("n", unschedulable=True, taints=[{"key": "k", "effect": "NoSchedule"}])], pod("p", requests={
        "cpu": "9"}, nodeSelector={"no": "where"})
    wanted["spec"]["containers"][0]["ports"] = [{"containerPort": 1, "hostPort": 1}]
    other = pod("o", requests={"cpu": "1m"})
    other["spec"]["containers"][0]["ports"] = wanted["spec"]["containers"][0]["ports"]
    off = []
    for plugin, reason in (("NodeUnschedulable", "were unschedulable"), ("TaintToleration", "untolerated taint"),
                           ("NodeAffinity", "node affinity/selector"), ("NodePorts", "free ports"),
                           ("NodeResourcesFit", "Insufficient cpu")):
        made = profile(yaml.safe_dump({"plugins": {"filter": {"disabled": off}}}))
        assert reason in chosen(made, wanted, full, [(other, "n")])
        off.append({"name": plugin})
    made = profile(yaml.safe_dump({"plugins": {"filter": {"disabled": off}}}))
    assert chosen(made, wanted, full, [(other, "n")]) == "n"


@pytest.mark.parametrize("strategy, best", [
    ({"type": "LeastAllocated"}, "empty"), ({"type": "MostAllocated"}, "full"),
    ({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": {"shape": [
        {"utilization": 0, "score": 0}, {"utilization": 60, "score": 10}, {"utilization": 100, "score": 0}]}}, "half"),
    ({"type": "MostAllocated", "resources": [{"name": "x.io/gpu", "weight": 3}]}, "gpu")])
def test_nodes_are_liked_by_the_strategy(strategy, best):
    nodes = [node(name) for name in ("empty", "half", "full", "gpu")]
    running = [(pod("a", requests={"cpu": "1", "memory": "3Gi"}), "half"),
               (pod("b", requests={"cpu": "2800m", "memory": "5Gi"}), "full"),
               (pod("c", requests={"cpu": "1m", "x.io/gpu": "6"}), "gpu")]
    made = profile(args("NodeResourcesFit", scoringStrategy=strategy))
    assert chosen(made, pod("p", requests={"cpu": "1", "memory": "1Gi", "x.io/gpu": "1"}), nodes, running) == best


def test_default_constraints_spread_pods_of_a_service():
    made = profile(args("PodTopologySpread", defaultingType="List", defaultConstraints=[
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}]))
    nodes, web = [node("n1", "64"), node("n2", "1", zone="b")], {"app": "web"}
    service = {"metadata": {"name": "s", "namespace": "d"}, "spec": {"selector": web}}
    running = [(pod("a", web), "n1"), (pod("b", requests={"cpu": "1"}), "n2")]
    assert "topology spread constraints" in chosen(made, pod("p", web), nodes, running, [service])
    assert chosen(made, pod("p", web), nodes, running) == "n1"  # of no Service: nothing to be spread among
    assert chosen(profile("{}"), pod("p", web), nodes, running, [service]) == "n1"


def test_running_pods_pull_as_hard_as_is_said():
    near = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}
    nodes, running = [node("n1"), node("n2")], [(pod("a", {"app": "web"}, affinity=near, requests={"cpu": "2"}), "n1")]
    web = pod("p", {"app": "web"})
    assert chosen(profile(args("InterPodAffinity", hardPodAffinityWeight=100)), web, nodes, running) == "n1"
    assert chosen(profile(args("InterPodAffinity", hardPodAffinityWeight=0)), web, nodes, running) == "n2"
    shy = profile(args("InterPodAffinity", ignorePreferredTermsOfExistingPods=True))
    assert chosen(shy, web, nodes, running) == "n2"


def test_an_added_affinity_is_every_pods():
    def zone(value):
        return {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": [value]}]}
    nodes = [node("n1", "64"), node("n2", zone="b"), node("n3", zone="b")]
    made = profile(args("NodeAffinity", addedAffinity={
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone("b")]},
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n3"]}]}}]}))
    assert chosen(made, pod("p"), nodes) == "n3"


def test_resources_that_somebody_else_counts_are_ignored():
    found = configuration.parse({**HEAD, "podInitialBackoffSeconds": 2, "podMaxBackoffSeconds": 20, "parallelism": 8,
                                 "percentageOfNodesToScore": 50, "extenders": [
        {"urlPrefix": "http://e/", "filterVerb": "f", "httpTimeout": "1m30s", "managedResources": [
            {"name": "e.io/thing", "ignoredByScheduler": True}]}]})
    extender = found.extenders[0]
    assert (extender.url, extender.seconds, extender.resources) == ("http://e", 90.0, {"e.io/thing"})
    assert (found.backoff_first, found.backoff_most) == (2.0, 20.0)
    wanted = pod("p", requests={"cpu": "1", "e.io/thing": "1"})
    assert chosen(found.profiles["default-scheduler"], wanted, [node("n")]) == "n"
    assert "Insufficient e.io/thing" in chosen(profile("{}"), wanted, [node("n")])
    assert chosen(profile(args("NodeResourcesFit", ignoredResourceGroups=["e.io"])), wanted, [node("n")]) == "n"


@pytest.mark.parametrize("text, place", [
    ("parallelism: many", "parallelism is 'many'"),
    ("percentageOfNodesToScore: 101", "percentageOfNodesToScore is 101"),
    ("parallel: 3", "parallel is no known field"),
    ("{podInitialBackoffSeconds: 9, podMaxBackoffSeconds: 3}", "podMaxBackoffSeconds 3 is less than"),
    ("profiles: [{schedulerName: a}, {schedulerName: a}]", "profiles[1].schedulerName a is the name of another"),
    ("profiles: [{plugins: {score: {enabled: [{name: Nothing}]}}}]", "profiles[0].plugins.score.enabled[0].name is"),
    ("profiles: [{plugins: {filter: {disabled: [{name: VolumeBinding}]}}}]",
     "profiles[0].plugins.filter.disabled[0].name is VolumeBinding, which cannot be switched off"),
    ("profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Best}}}]}]",
     "profiles[0].pluginConfig[0].args.scoringStrategy.type is 'Best'"),
    ("profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}]",
     "profiles[0].pluginConfig[0].args.hardPodAffinityWeight is 101"),
    ("extenders: [{filterVerb: f}]", "extenders[0].urlPrefix is missing"),
    ("a: [", "is no YAML")])
def test_a_bad_file_is_told_with_its_place_and_the_way_out(text, place, tmp_path):
    file = tmp_path / "scheduler.yaml"
    file.write_text(text if text == "a: [" else yaml.safe_dump({**HEAD, **yaml.safe_load(text)}))
    with pytest.raises(Finding) as caught:
        configuration.read(file)
    assert str(file) in caught.value.fact and place in caught.value.fact and caught.value.fix


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(Finding, match="cannot read"):
        configuration.read(tmp_path / "none.yaml")


def test_a_node_keeps_the_file_it_was_given_and_its_scheduler_takes_it(tmp_path):
    paths, ledger = Paths(tmp_path / "host"), Ledger(tmp_path / "host/ledger.jsonl")
    given, settings = tmp_path / "given.yaml", Settings("n", "10.0.0.1")

    def flag():
        (controllers,) = (c for c in cli_node.components(paths, settings) if c.name == "controllers")
        return [word for word in controllers.argv if word.startswith("--scheduler-config=")]
    given.write_text("kind: Something")
    with pytest.raises(Finding):
        cli_node.take_scheduler_config(paths, given, ledger)
    assert flag() == []
    given.write_text(yaml.safe_dump(HEAD))
    assert cli_node.take_scheduler_config(paths, given, ledger)
    assert flag() == [f"--scheduler-config={paths.scheduler_config}"]
    assert not cli_node.take_scheduler_config(paths, given, ledger)


def test_a_process_with_a_bad_file_ends_with_the_sentence(tmp_path):
    file = tmp_path / "scheduler.yaml"
    file.write_text(yaml.safe_dump({**HEAD, "extenders": {}}))
    options = controllers.parser(Paths(tmp_path)).parse_args(["--scheduler-config", str(file)])
    with pytest.raises(Finding, match=r"scheduler\.yaml: extenders is \{\}"):
        asyncio.run(controllers.run(options))
