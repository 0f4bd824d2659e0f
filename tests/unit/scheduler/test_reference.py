"""The incremental tables give what judging every node and every pod anew would give, whatever happened in between."""

import random
from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.scheduler import constraints, fit, preemption, verdict
from controlplane.scheduler.snapshot import Snapshot
from controlplane.scheduler.table import Tables
from tests.unit.scheduler import reference

ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
NAMESPACES = {"a": {"team": "x"}, "b": {"team": "y"}}


def a_node(rng, name):
    labels = {HOST: name} | ({ZONE: rng.choice("uvw")} if rng.random() < 0.85 else {})
    labels |= {"disk": "ssd"} if rng.random() < 0.5 else {}
    taints = [{"key": "t", "value": rng.choice("12"), "effect": rng.choice(["NoSchedule", "PreferNoSchedule"])}
              for _ in range(rng.random() < 0.3)]
    return {"metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints, "unschedulable": rng.random() < 0.1},
            "status": {"allocatable": {"cpu": rng.choice(["1", "2"]), "memory": "2Gi", "pods": rng.choice(["3", "9"])}}}


def a_selector(rng):
    return rng.choice([{"matchLabels": {"app": rng.choice("pq")}}, {},
                       {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["p"]}]}])


def a_term(rng):
    term = {"topologyKey": rng.choice([ZONE, HOST]), "labelSelector": a_selector(rng)}
    where = rng.random()
    return term | ({"namespaceSelector": rng.choice([{}, {"matchLabels": {"team": "y"}}])} if where < 0.4 else
                   {"namespaces": ["a", "b"]} if where < 0.6 else {})


def an_affinity(rng):
    required, preferred = (f"{s}DuringSchedulingIgnoredDuringExecution" for s in ("required", "preferred"))
    found = {}
    for kind in ("podAffinity", "podAntiAffinity"):
        if rng.random() < 0.3:
            found[kind] = {required: [a_term(rng) for _ in range(rng.choice([1, 1, 2]))]}
        elif rng.random() < 0.3:
            found[kind] = {preferred: [{"weight": rng.choice([1, 50]), "podAffinityTerm": a_term(rng)}]}
    return found


def a_spread(rng):
    return {"topologyKey": rng.choice([ZONE, HOST]), "maxSkew": rng.choice([1, 2]), "labelSelector": a_selector(rng),
            "whenUnsatisfiable": rng.choice(["DoNotSchedule", "ScheduleAnyway"]),
            "nodeTaintsPolicy": rng.choice(["Honor", "Ignore"]), "nodeAffinityPolicy": "Honor",
            "minDomains": rng.choice([1, 1, 3])}


def a_template(rng):
    spec = {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": rng.choice(["100m", "500m"])}
                                                                     if rng.random() < 0.7 else {}}}]}
    if rng.random() < 0.5:
        spec["affinity"] = an_affinity(rng)
    if rng.random() < 0.5:
        # Of two constraints on one key only one may be soft and one hard, as validation has it.
        made = [a_spread(rng) for _ in range(rng.choice([1, 1, 2]))]
        spec["topologySpreadConstraints"] = list({(c["topologyKey"], c["whenUnsatisfiable"]): c for c in made}.values())
    if rng.random() < 0.3:
        spec["tolerations"] = [{"key": "t", "operator": "Exists"}]
    if rng.random() < 0.3:
        spec["nodeSelector"] = {"disk": "ssd"}
    return {"metadata": {"namespace": rng.choice("ab"), "labels": {"app": rng.choice("pqr")}}, "spec": spec}


def a_pod(template, number):
    return {"metadata": {**template["metadata"], "name": f"p{number}", "uid": f"u{number}"},
            "spec": {**template["spec"], "priority": number % 3}}


class History:
    """The same events told to the snapshot and kept as plain lists."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.snapshot = Snapshot()
        for name, labels in NAMESPACES.items():
            self.snapshot.set_namespace(name, labels)
        self.tables = Tables(self.snapshot)
        self.nodes, self.pods = {}, {}
        self.templates = [a_template(self.rng) for _ in range(4)]
        for number in range(self.rng.randint(1, 6)):
            self.set_node(f"n{number}")

    def set_node(self, name):
        self.nodes[name] = a_node(self.rng, name)
        self.snapshot.set_node(self.nodes[name])

    def world(self):
        return reference.World(list(self.nodes.values()), list(self.pods.values()), NAMESPACES)

    def disturb(self):
        event = self.rng.random()
        if event < 0.2:
            self.set_node(self.rng.choice(sorted(self.nodes)))
        elif event < 0.3:
            self.set_node(f"n{len(self.nodes)}")
        elif event < 0.5 and self.pods:
            uid = self.rng.choice(sorted(self.pods))
            del self.pods[uid]
            self.snapshot.remove(uid)

    def place(self, pod, node):
        self.snapshot.place(pod, node)
        self.pods[pod["metadata"]["uid"]] = (pod, node)


@given(st.integers(0, 10**9))
@example(2466)  # a pod that says the same twice
@settings(max_examples=60, deadline=None)
def test_tables_agree_with_judging_everything_anew(seed):
    # Hosts are counted dimensions in half of the histories, as they are in clusters of more than a few nodes.
    with patch.object(constraints, "FEW_DOMAINS", 3 if seed % 2 else 64):
        history = History(seed)
        for number in range(20):
            history.disturb()
            pod, world = a_pod(history.rng.choice(history.templates), number), history.world()
            found = verdict.decide(fit.ask(pod), history.snapshot, history.tables)
            against = {name: reference.reasons(pod, node, world) for name, node in history.nodes.items()}
            fitting = [node for name, node in history.nodes.items() if not against[name]]
            if not fitting:
                assert found.refusals == Counter(reason for found in against.values() for reason in found)
                continue
            points = dict(zip((n["metadata"]["name"] for n in fitting), reference.scores(pod, fitting, world)))
            assert found.node in points, against
            assert points[found.node] == pytest.approx(max(points.values()), abs=1e-3)
            history.place(pod, found.node)


@given(st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_a_trial_without_some_pods_agrees(seed):
    history = History(seed)
    for number in range(12):
        pod = a_pod(history.rng.choice(history.templates), number)
        history.place(pod, history.rng.choice(sorted(history.nodes)))
    wanted = a_pod(history.rng.choice(history.templates), 99)
    wants = fit.ask(wanted)
    rules = constraints.Constraints(wants, history.snapshot)
    for name, node in history.nodes.items():
        gone = {uid for uid, (_, at) in history.pods.items() if at == name and history.rng.random() < 0.5}
        rest = [pair for uid, pair in history.pods.items() if uid not in gone]
        world = reference.World(list(history.nodes.values()), rest, NAMESPACES)
        possible = preemption.fits(wants, rules, history.snapshot.node(name),
                                   [history.snapshot.placed(uid) for uid in gone])
        assert possible == (not reference.reasons(wanted, node, world))
