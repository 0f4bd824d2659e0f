"""PodDisruptionBudgets: the arithmetic, and evictions against a budget that the controller counts."""

import asyncio

import pytest

from controlplane.controllers.workloads.disruption import budgets
from controlplane.machinery import objects
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.errors import TooManyRequests
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import PODS, cluster, deployment
from tests.unit.controllers.samples import pod

NOW = 1_800_000_000.0
BUDGETS = named("poddisruptionbudgets.policy")


def budget(selector=None, status=None, **spec):
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "status": status or {},
            "metadata": {"name": "b", "namespace": "default", "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "x"}} if selector is None else selector, **spec}}


@pytest.mark.parametrize(("spec", "scale", "expected", "desired", "allowed"), [
    ({"minAvailable": 2}, 0, 3, 2, 1),
    ({"minAvailable": "50%"}, 5, 5, 3, 0),  # rounded up, of what there should be, not of what there is
    ({"maxUnavailable": 1}, 3, 3, 2, 1),
    ({"maxUnavailable": "34%"}, 3, 3, 1, 2),
    ({"maxUnavailable": 9}, 3, 3, 0, 3),
    ({"maxUnavailable": 1}, 0, 0, 0, 0),  # pods of nobody: nothing can be told, so nothing is allowed
])
def test_counts_follow_upstream(spec, scale, expected, desired, allowed):
    pods = [pod(str(number), ready=NOW - 9) for number in range(3)]
    status = budgets.verdict(budget(**spec), pods, scale, NOW).status
    assert (status["expectedPods"], status["desiredHealthy"], status["disruptionsAllowed"]) == (
        expected, desired, allowed)
    assert (status["currentHealthy"], status["observedGeneration"]) == (3, 2)
    (condition,) = status["conditions"]
    assert (condition["status"], condition["reason"]) == (
        ("True", "SufficientPods") if allowed else ("False", "InsufficientPods"))


def test_a_granted_eviction_counts_until_it_is_seen_or_never_came():
    pods = [pod(name, ready=NOW - 9) for name in "abc"]
    granted = {"disruptedPods": {"a": rfc3339(NOW - 30), "b": rfc3339(NOW - 500), "gone": rfc3339(NOW)}}
    found = budgets.verdict(budget(minAvailable=1, status=granted), pods, 0, NOW)
    assert found.status["disruptedPods"] == {"a": rfc3339(NOW - 30)}
    assert found.status["currentHealthy"] == 2 and [objects.name(one) for one in found.overdue] == ["b"]
    assert found.wake == 90
    broken = budgets.failed(budget(status=found.status), "why", NOW)
    assert broken["disruptionsAllowed"] == 0 and broken["currentHealthy"] == 2
    assert (broken["conditions"][0]["reason"], broken["conditions"][0]["message"]) == ("SyncFailed", "why")


def test_selectors_and_stale_targets():
    assert budgets.selector(budget(selector={})).matches(objects.labels(pod("p")))
    assert not budgets.selector({"spec": {}}).matches(objects.labels(pod("p")))
    one = pod("p")
    one["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                                    "lastTransitionTime": rfc3339(NOW - 100)}]
    assert budgets.stale_in(one, NOW) == 20
    one["status"]["conditions"][0]["reason"] = budgets.BY_KUBELET
    assert budgets.stale_in(one, NOW) is None


def test_evictions_are_held_to_what_is_counted():
    async def play():
        async with cluster() as made:
            await made.client.create(named("deployments.apps"), deployment("web", 3))
            await made.client.create(BUDGETS, {**budget({"matchLabels": {"app": "web"}}, maxUnavailable="34%")})

            def counted(**fields):
                one = made.of("poddisruptionbudgets.policy").get("default", "b")
                status = (one or {}).get("status") or {}
                return one if one and status.get("observedGeneration") == one["metadata"]["generation"] and all(
                    status.get(key) == value for key, value in fields.items()) else None

            def evict(one):
                name = objects.name(one)
                return made.client.create(PODS, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {
                    "name": name, "namespace": "default"}}, "default", "eviction", name)

            await made.until(lambda: counted(disruptionsAllowed=2, expectedPods=3, currentHealthy=3))
            first = made.pods.items()[0]
            await evict(first)
            await made.until(lambda: made.pods.by_uid(objects.uid(first)) is None)
            await made.until(lambda: counted(disruptionsAllowed=2, currentHealthy=3, disruptedPods=None))
            await made.client.patch(BUDGETS, "b", {"spec": {"maxUnavailable": 0}}, "default", "merge")
            await made.until(lambda: counted(disruptionsAllowed=0, desiredHealthy=3))
            with pytest.raises(TooManyRequests):
                await evict(made.pods.items()[0])
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": True}
            bare = {"metadata": {"name": "job-pod", "namespace": "default", "labels": {"app": "web"},
                                 "ownerReferences": [owner]}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
            await made.client.create(PODS, bare)
            await made.until(lambda: (objects.condition(counted() or {}, "DisruptionAllowed") or {}).get(
                "message") == "jobs.batch does not implement the scale subresource")
    asyncio.run(play())
