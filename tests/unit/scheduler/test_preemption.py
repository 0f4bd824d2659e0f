"""Who must go: the fewest broken budgets, the least important, the youngest; and never in vain."""

from controlplane.scheduler import preemption
from controlplane.scheduler.configuration import Profile
from controlplane.scheduler.decider import Decider
from controlplane.scheduler.imagined import Cluster
from tests.unit.scheduler.test_decisions import node, pod

PROFILE = Profile()


def running(name, cpu, priority=0, started="2026-01-01T00:00:00Z", labels=None, **spec):
    made = pod(name, cpu=cpu, priority=priority, **spec)
    made["metadata"]["labels"] = labels or {}
    made["status"] = {"startTime": started}
    return made


def plan(wanted, placed, nodes=("x", "y"), budgets=()):
    decider = Decider(Cluster({"poddisruptionbudgets.policy": budgets}))
    for name in nodes:
        decider.snapshot.set_node(node(name))
    for one, at in placed:
        decider.snapshot.place(one, at)
    wants = decider.ask(wanted, PROFILE)
    found = decider.decide(wants, PROFILE)
    assert not found.node
    plans, why = decider.preempt(wants, found)
    chosen = preemption.choose(plans)
    return (chosen.node, [v.pod["metadata"]["name"] for v in chosen.victims]) if chosen else why


def test_the_fewest_broken_budgets_come_first():
    budget = {"metadata": {"name": "b", "namespace": "default"}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
              "status": {"disruptionsAllowed": 0}}
    placed = [(running("kept", "2", labels={"app": "web"}), "x"), (running("free", "2", priority=5), "y")]
    assert plan(pod("p", cpu="1", priority=10), placed, budgets=[budget]) == ("y", ["free"])
    assert plan(pod("p", cpu="1", priority=10), placed) == ("x", ["kept"])


def test_no_more_victims_than_needed_and_the_more_important_stay():
    placed = [(running("a", "1", 1), "x"), (running("b", "500m", 2), "x"), (running("c", "500m", 3), "x")]
    assert plan(pod("p", cpu="1", priority=10), placed, nodes=("x",)) == ("x", ["a"])
    assert plan(pod("p", cpu="1500m", priority=10), placed, nodes=("x",)) == ("x", ["b", "a"])


def test_among_equals_the_younger_goes():
    placed = [(running("old", "2"), "x"), (running("young", "2", started="2026-02-01T00:00:00Z"), "y")]
    assert plan(pod("p", cpu="1", priority=10), placed) == ("y", ["young"])


def test_what_removing_pods_cannot_mend_is_said_as_upstream_says_it():
    assert plan(pod("p", cpu="1", nodeSelector={"a": "b"}, priority=10), [(running("a", "2"), "x")]) == \
        "0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    placed = [(running("a", "2", 10), "x"), (running("b", "2", 10), "y")]
    assert plan(pod("p", cpu="1", priority=10), placed) == \
        "0/2 nodes are available: 2 No preemption victims found for incoming pod."
    assert plan(pod("p", cpu="1", priority=20, preemptionPolicy="Never"), placed) == \
        "not eligible due to preemptionPolicy=Never."


def test_an_enemy_in_the_zone_leaves_only_where_that_helps():
    enemies = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "enemy"}}}]}}
    decider = Decider(Cluster({}))
    for name in ("x", "y"):
        decider.snapshot.set_node(node(name, labels={"zone": "z"}))
    decider.snapshot.place(running("e", "1", labels={"app": "enemy"}), "x")
    wants = decider.ask(pod("p", cpu="1", priority=10, affinity=enemies), PROFILE)
    plans, _ = decider.preempt(wants, decider.decide(wants, PROFILE))
    assert [(p.node, len(p.victims)) for p in plans] == [("x", 1)], "emptying y would not make room"
