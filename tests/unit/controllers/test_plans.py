"""The pure halves: rollout arithmetic, deletion order, slices, taints, ownership."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from controlplane.controllers.namespaces import ownership
from controlplane.controllers.namespaces.ownership import Owner, Verdict
from controlplane.controllers.nodes import health, podgc
from controlplane.controllers.nodes.podcidrs import Blocks
from controlplane.controllers.services import backends, slices, subsets
from controlplane.controllers.workloads import templates
from controlplane.controllers.workloads.deployments import progress, rollout
from controlplane.controllers.workloads.replicasets import replicas
from controlplane.machinery import objects, podfacts
from controlplane.machinery.clock import parse_rfc3339
from tests.unit.controllers.samples import deployment, pod, replica_set, service

NUMBERS = itertools.count()


def zone_of(node):
    return f"zone-of-{node}"
NOW = parse_rfc3339("2026-01-01T01:00:00Z")


# --- rollouts --------------------------------------------------------------------------------------------

def run_rollout(wanted, surge, unavailable, ready):
    """Step a rollout with sets whose pods become available by `ready(step)`; the sizes and availabilities seen."""
    one = deployment("d", wanted, strategy={"type": "RollingUpdate", "rollingUpdate": {
        "maxSurge": surge, "maxUnavailable": unavailable}})
    old, new = replica_set("d-old", wanted, available=wanted, created=1), replica_set("d-new", 0, created=2)
    seen = []
    for step in range(200):
        for target, count in rollout.roll(one, new, [old]):
            target["spec"]["replicas"] = count
            target["status"]["availableReplicas"] = min(count, target["status"]["availableReplicas"])
        new["status"]["availableReplicas"] = min(new["spec"]["replicas"],
                                                 new["status"]["availableReplicas"] + ready(step))
        seen.append((sum(max(s["spec"]["replicas"], s["status"]["replicas"]) for s in (new, old)),
                     new["status"]["availableReplicas"] + old["status"]["availableReplicas"]))
        for each in (new, old):  # a set that was scaled follows a step later
            each["status"]["replicas"] = each["spec"]["replicas"]
        if old["spec"]["replicas"] == 0 and new["status"]["availableReplicas"] == wanted:
            return one, seen
    raise AssertionError(f"no end: {seen[-3:]}")


@given(st.integers(1, 30), st.one_of(st.integers(0, 5), st.integers(0, 100).map("{}%".format)),
       st.one_of(st.integers(0, 5), st.integers(0, 100).map("{}%".format)), st.integers(1, 4))
def test_a_rollout_ends_and_keeps_its_bounds(wanted, surge, unavailable, pace):
    one, seen = run_rollout(wanted, surge, unavailable, lambda step: pace)
    assert max(total for total, _ in seen) <= wanted + rollout.max_surge(one)
    assert min(available for _, available in seen) >= wanted - rollout.max_unavailable(one)


def test_broken_pods_of_old_sets_go_first():
    one = deployment("d", 10, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 2}})
    broken, fine = replica_set("d-1", 3, available=0, created=1), replica_set("d-2", 7, available=7, created=2)
    new = replica_set("d-3", 0, created=3)
    assert [(objects.name(s), n) for s, n in rollout.roll(one, new, [broken, fine])] == [("d-1", 1)]


def test_a_set_told_to_shrink_counts_as_shrunk():
    """Its last report still shows the pod it is about to lose: taken at its word, two would go where one may."""
    one = deployment("d", 4, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}})
    old, new = replica_set("d-1", 3, available=3, created=1), replica_set("d-2", 1, available=0, created=2)
    old["status"].update(replicas=4, availableReplicas=4)
    assert rollout.roll(one, new, [old]) == []


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(0, 60), st.integers(0, 5))
def test_proportional_scaling_hits_the_size(sizes, wanted, surge):
    """Rounding is made up for by the largest set alone; where that cannot give enough, the rollout's next step does."""
    one = deployment("d", wanted, strategy={"type": "RollingUpdate", "rollingUpdate": {
        "maxSurge": surge, "maxUnavailable": 1}})
    sets = [replica_set(f"d-{n}", size, created=n) for n, size in enumerate(sizes)]
    for each in sets:
        each["metadata"]["annotations"] = {rollout.MAXIMUM: str(sum(sizes)), rollout.DESIRED: str(sum(sizes))}
    result = {objects.name(each): count for each, count in rollout.rescale(one, sets[-1], sets[:-1])}
    target = wanted + surge if wanted else 0
    assert min(result.values()) >= 0
    largest = sizes.index(max(sizes))  # of equals the oldest, when shrinking
    assert sum(result.values()) == target or (sum(result.values()) > target and result[f"d-{largest}"] == 0)


def test_pods_that_are_leaving_are_told():
    leaving, ended = pod("a", ready=NOW), pod("b", phase="Failed")
    for one in (leaving, ended):
        one["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert [podfacts.terminating(one) for one in (leaving, ended, pod("c"))] == [True, False, False]
    told = replica_set("d-1", 1)
    told["status"] = replicas.status(told, [pod("c")], None, NOW, "t", 1)
    silent = replica_set("d-2", 1)
    assert told["status"]["terminatingReplicas"] == 1
    assert progress.base(deployment("d", 2), told, [], "t")["terminatingReplicas"] == 1
    assert "terminatingReplicas" not in progress.base(deployment("d", 2), told, [silent], "t")


def test_templates_hash_by_meaning():
    one = deployment("d", 1)["spec"]["template"]
    labelled = objects.deep_copy(one)
    labelled["metadata"]["labels"][templates.HASH_LABEL] = "x"
    labelled["metadata"]["creationTimestamp"] = None
    assert templates.hash_of(one) == templates.hash_of(labelled) != templates.hash_of(one, 1)


def test_history_keeps_the_newest_revisions():
    one = deployment("d", 1, revisionHistoryLimit=1)
    old = [replica_set(f"d-{n}", 0, created=n, revision=n) for n in (1, 2, 3)]
    old[1]["status"]["replicas"] = 1  # still runs something
    assert [objects.name(s) for s in rollout.expired_sets(one, old)] == ["d-1"]


def test_a_stuck_rollout_says_so_at_its_deadline():
    one = deployment("d", 1, progressDeadlineSeconds=600)
    one["metadata"]["generation"] = 1
    new = replica_set("d-1", 1)
    one["status"] = progress.rolling_out(one, new, [], NOW, "2026-01-01T01:00:00Z", made=True)
    assert objects.condition(one, "Progressing")["reason"] == "NewReplicaSetCreated"
    assert progress.deadline(one, one["status"]) == NOW + 600
    one["status"] = progress.rolling_out(one, new, [], NOW + 599, "2026-01-01T01:09:59Z")
    assert objects.condition(one, "Progressing")["reason"] == "NewReplicaSetCreated"
    one["status"] = progress.rolling_out(one, new, [], NOW + 600, "2026-01-01T01:10:00Z")
    stuck = objects.condition(one, "Progressing")
    assert (stuck["status"], stuck["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert stuck["message"] == 'ReplicaSet "d-1" has timed out progressing.'
    new["status"] = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    one["status"] = progress.rolling_out(one, new, [], NOW + 700, "2026-01-01T01:11:40Z")
    assert objects.condition(one, "Progressing")["message"] == 'ReplicaSet "d-1" has successfully progressed.'


def test_a_pause_stops_the_deadline_and_a_resume_starts_it():
    one, new = deployment("d", 1, progressDeadlineSeconds=600, paused=True), replica_set("d-1", 1)
    one["status"] = progress.rolling_out(one, new, [], NOW, "2026-01-01T01:00:00Z", made=True)
    one["status"] = progress.paused(one, new, [], "2026-01-01T01:00:00Z")
    assert objects.condition(one, "Progressing")["reason"] == "DeploymentPaused"
    assert progress.deadline(one, one["status"]) is None
    one["spec"]["paused"] = False
    one["status"] = progress.rolling_out(one, new, [], NOW + 900, "2026-01-01T01:15:00Z")
    assert objects.condition(one, "Progressing")["reason"] == "DeploymentResumed"
    assert progress.deadline(one, one["status"]) == NOW + 1500


# --- replicas --------------------------------------------------------------------------------------------

def test_the_cheapest_pods_go_first():
    pods = [pod("old-ready", node="a", ready=NOW - 3000), pod("young-ready", node="a", ready=NOW - 2),
            pod("costly", node="a", annotations={replicas.DELETION_COST: "5"}, ready=NOW - 2),
            pod("unready", node="a"), pod("pending", node="a", phase="Pending"), pod("unassigned", phase="Pending"),
            pod("crowded", node="b", ready=NOW - 3000)]
    related = [*pods, pod("sibling", node="b"), *(pod(f"more-{n}", node="b") for n in range(9))]
    order = [objects.name(p) for p in replicas.plan(0, pods, related, NOW).delete]
    assert order == ["unassigned", "pending", "unready", "crowded", "young-ready", "old-ready", "costly"]
    assert replicas.plan(9, pods, related, NOW) == replicas.Plan(2, [])


def test_availability_waits_for_min_ready_seconds():
    owner = {"metadata": {"generation": 2}, "spec": {"minReadySeconds": 30, "template": {
        "metadata": {"labels": {"app": "x"}}}}}
    pods = [pod("a", node="n", ready=NOW - 40), pod("b", node="n", ready=NOW - 10), pod("c")]
    status = replicas.status(owner, pods, ("FailedCreate", "quota"), NOW, "t")
    assert (status["replicas"], status["readyReplicas"], status["availableReplicas"]) == (3, 2, 1)
    assert status["conditions"] == [{"type": "ReplicaFailure", "status": "True", "lastTransitionTime": "t",
                                     "reason": "FailedCreate", "message": "quota"}]
    assert podfacts.next_available(pods, 30, NOW) == 20
    assert "conditions" not in replicas.status(owner | {"status": status}, pods, None, NOW, "t")


# --- services --------------------------------------------------------------------------------------------

def apply(plan, current):
    gone = {objects.name(one) for one in [*plan.delete, *plan.update]}
    fresh = [{**one, "metadata": {**one["metadata"], "name": f"s-{next(NUMBERS)}"}} for one in plan.create]
    return [one for one in current if objects.name(one) not in gone] + plan.update + fresh


@given(st.lists(st.integers(0, 320), min_size=1, max_size=5))
def test_slices_follow_the_pods_and_settle(counts):
    current = []
    for count in counts:
        pods = [pod(f"p{n}", ip=f"10.0.{n // 200}.{n % 200 + 1}", ready=NOW) for n in range(count)]
        plan = slices.plan(service("s"), backends.backends(service("s"), pods), current, zone_of)
        current = apply(plan, current)
        addresses = [e["addresses"][0] for one in current for e in one["endpoints"]]
        assert sorted(addresses) == sorted(objects.get(p, "status.podIP") for p in pods)
        assert all(len(one["endpoints"]) <= slices.LIMIT for one in current) and current
        again = slices.plan(service("s"), backends.backends(service("s"), pods), current, zone_of)
        assert not (again.create or again.update or again.delete)


def test_one_changed_pod_rewrites_one_slice():
    pods = [pod(f"p{n}", ip=f"10.0.{n // 200}.{n % 200 + 1}", ready=NOW) for n in range(250)]
    current = apply(slices.plan(service("s"), backends.backends(service("s"), pods), [], zone_of), [])
    pods[120]["status"]["conditions"] = []
    plan = slices.plan(service("s"), backends.backends(service("s"), pods), current, zone_of)
    assert (len(plan.create), len(plan.update), len(plan.delete)) == (0, 1, 0)


def test_states_and_named_ports_of_backends():
    going = pod("going", ip="10.0.0.3", ready=NOW)
    going["metadata"]["deletionTimestamp"] = "t"
    pods = [pod("up", ip="10.0.0.1", ready=NOW), pod("down", ip="10.0.0.2"), going, pod("new"),
            pod("done", ip="10.0.0.4", phase="Succeeded")]
    pods[1]["spec"]["containers"][0]["ports"][0]["containerPort"] = 9090
    svc = service("s", targetPort="http")
    found = {objects.name(b.pod): (b.ready, b.serving, b.terminating) for b in backends.backends(svc, pods)}
    assert found == {"up": (True, True, False), "down": (False, False, False), "going": (False, True, True)}
    made = slices.plan(svc, backends.backends(svc, pods), [], zone_of).create
    assert sorted(one["ports"][0]["port"] for one in made) == [8080, 9090]
    wanted = subsets.desired(svc, backends.backends(svc, pods), None)
    assert [(len(s.get("addresses", [])), len(s.get("notReadyAddresses", []))) for s in wanted["subsets"]] == \
        [(1, 0), (0, 1)]
    assert subsets.desired(svc, backends.backends(svc, pods), wanted) is wanted
    svc["spec"]["publishNotReadyAddresses"] = True
    assert {objects.name(b.pod): (b.ready, b.serving) for b in backends.backends(svc, pods)} == {
        "up": (True, True), "down": (True, False), "going": (True, True)}  # all are shown, as what they are


# --- nodes -----------------------------------------------------------------------------------------------

def node(ready, **spec):
    return {"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def test_taints_follow_conditions_and_leave_others_alone():
    foreign, initial = {"key": "gpu", "effect": "NoSchedule"}, {"key": health.NOT_READY, "effect": "NoSchedule"}
    assert health.taints(node("True", taints=[foreign, initial]), "t") == [foreign]
    assert health.taints(node("True", taints=[foreign]), "t") is None
    silent = node("Unknown", taints=[initial], unschedulable=True)
    assert [(t["key"], t["effect"]) for t in health.taints(silent, "t")] == [
        (health.UNREACHABLE, "NoSchedule"), (health.UNREACHABLE, "NoExecute"), (health.UNSCHEDULABLE, "NoSchedule")]
    one = node("True")
    one["status"]["conditions"] = health.silenced(one, "t")
    assert {c["type"]: c["reason"] for c in one["status"]["conditions"]} == {
        "Ready": "NodeStatusUnknown", "MemoryPressure": "NodeStatusNeverUpdated",
        "DiskPressure": "NodeStatusNeverUpdated", "PIDPressure": "NodeStatusNeverUpdated"}
    assert health.silenced(one, "u") is None


def test_eviction_waits_as_long_as_tolerated():
    one = node("Unknown", taints=[{"key": health.UNREACHABLE, "effect": "NoExecute",
                                   "timeAdded": "2026-01-01T00:59:00Z"}])
    patient = {"key": health.UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}
    assert health.evict_at(pod("p"), one, NOW) == NOW
    assert health.evict_at(pod("p", tolerations=[{**patient, "tolerationSeconds": 300}]), one, NOW) == NOW + 240
    assert health.evict_at(pod("p", tolerations=[patient]), one, NOW) is None
    assert health.evict_at(pod("p"), node("True"), NOW) is None


def test_blocks_are_never_given_twice():
    blocks, given_out = Blocks("10.244.0.0/22"), []
    blocks.take("10.244.1.0/24")
    while (block := blocks.free()) is not None:
        given_out.append(block)
        blocks.take(block)
    assert given_out == ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]
    blocks.release("10.244.2.0/24")
    assert blocks.free() == "10.244.2.0/24"


def test_blocks_keep_clear_of_what_others_gave_out():
    blocks = Blocks("fd00::/60")
    blocks.take("no network")
    blocks.take("10.0.0.0/24")
    blocks.take("fd00::/63")
    blocks.take("fd00:0:0:2:8000::/65")
    assert blocks.free() == "fd00:0:0:3::/64"
    blocks.release("fd00::/63")
    assert blocks.free() == "fd00::/64"


def test_only_the_oldest_finished_pods_go():
    pods = [{"metadata": {"name": f"p{n}", "creationTimestamp": f"2026-01-0{9 - n}T00:00:00Z"}} for n in range(5)]
    assert [objects.name(p) for p in podgc.surplus(pods, 3)] == ["p4", "p3"] and podgc.surplus(pods, 5) == []


# --- ownership -------------------------------------------------------------------------------------------

def test_an_object_lives_as_long_as_one_owner_does():
    one = {"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b"}]}}
    both = {"a": Owner.ABSENT, "b": Owner.SOLID}
    assert ownership.decide(one, both, False) == Verdict(drop=("a",))
    assert ownership.decide(one, {"a": Owner.SOLID, "b": Owner.SOLID}, False) == Verdict()
    assert ownership.decide(one, dict.fromkeys("ab", Owner.ABSENT), False) == Verdict(delete="Background")
    assert ownership.decide(one, {"a": Owner.ABSENT, "b": Owner.WAITING}, True) == Verdict(delete="Foreground")
    one["metadata"]["finalizers"] = ["orphan"]
    assert ownership.decide(one, dict.fromkeys("ab", Owner.ABSENT), False) == Verdict(delete="Orphan")
    assert ownership.decide({"metadata": {}}, {}, True) == Verdict()


def test_endpoints_know_their_zone_and_whom_they_are_for():
    near = {**service("s"), "spec": {**service("s")["spec"], "trafficDistribution": "PreferSameNode"}}
    one = pod("p", node="n", ready=1, ip="10.0.0.1")
    (made,) = slices.plan(near, backends.backends(near, [one]), [], zone_of).create
    (found,) = made["endpoints"]
    assert (found["zone"], found["hints"]) == ("zone-of-n", {"forZones": [{"name": "zone-of-n"}],
                                                            "forNodes": [{"name": "n"}]})
    near["spec"]["trafficDistribution"] = "PreferClose"
    assert slices.endpoint(near, backends.backends(near, [one])[0], ["10.0.0.1"], str)["hints"] == {
        "forZones": [{"name": "n"}]}
    assert "hints" not in slices.endpoint(service("s"), backends.backends(near, [one])[0], ["10.0.0.1"], zone_of)
