"""HorizontalPodAutoscalers: upstream's formula and its limits, and one that scales a Deployment through the API."""

import asyncio

import pytest

from controlplane.controllers.scaling import behavior, proposals
from controlplane.controllers.scaling.behavior import Memory
from controlplane.controllers.scaling.metricsource import MetricSource, pod_samples, seconds
from controlplane.controllers.scaling.proposals import Sample, Tolerance
from controlplane.machinery import objects
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import PODS, cluster, deployment

NOW = 1_800_000_000.0
DEFAULT = Tolerance()


def pods(count, request="100m", ready=True, **status):
    return [{"metadata": {"name": f"p{number}", "namespace": "default"},
             "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": request}}}]},
             "status": {"phase": "Running", "startTime": rfc3339(NOW - 3600), "conditions": [
                 {"type": "Ready", "status": "True" if ready else "False",
                  "lastTransitionTime": rfc3339(NOW - 3590)}], **status}} for number in range(count)]


def samples(*millis):
    return {f"p{number}": Sample(value, NOW - 30) for number, value in enumerate(millis)}


def utilization(target, known, figures, count=None):
    return proposals.by_utilization(count or len(known), target, "cpu", "", known, figures, DEFAULT, NOW)


@pytest.mark.parametrize(("replicas", "percent", "target", "wanted"), [
    (1, 220, 70, 4), (3, 220, 70, 10), (5, 35, 70, 3), (4, 76, 70, 4), (4, 64, 70, 4), (4, 62, 70, 4),
    (10, 78, 70, 12)])
def test_replicas_times_actual_through_target(replicas, percent, target, wanted):
    found = utilization(target, pods(replicas), samples(*[percent] * replicas))
    assert (found.replicas, found.utilization) == (wanted, percent)


def test_missing_and_unready_pods_dampen_and_never_turn_the_change():
    assert utilization(70, pods(4), samples(140, 140)).replicas == 4  # the two without figures count as idle
    assert utilization(70, pods(4), samples(10, 10)).replicas == 4  # and here as full: 55 % of 70
    assert utilization(70, pods(3), samples(10)).replicas == 3
    fresh = pods(2) + [{**one, "metadata": {"name": f"n{i}"}} for i, one in enumerate(pods(2, phase="Pending"))]
    assert utilization(70, fresh, samples(210, 210), 4).replicas == 6  # 420/4 = 105 % of 70 over four pods
    with pytest.raises(ApiError, match="pods might be unready"):
        utilization(70, pods(2, phase="Pending"), samples(1, 1))
    with pytest.raises(ApiError, match="missing request for cpu in container c of Pod p0"):
        utilization(70, [{**pods(1)[0], "spec": {"containers": [{"name": "c"}]}}], samples(1))


def test_other_targets():
    assert proposals.by_average(3, 10_000, "", pods(3), samples(15_000, 15_000, 15_000), DEFAULT, NOW).replicas == 5
    assert proposals.by_value(2, 100_000, 300_000, pods(2), DEFAULT).replicas == 6
    assert proposals.by_value(0, 100_000, 250_000, [], DEFAULT).replicas == 3
    assert proposals.by_share(3, 100_000, 450_000, DEFAULT) == proposals.Proposal(5, 150_000)
    assert seconds("1m0.5s") == 60.5
    raw = [{"metadata": {"name": "p"}, "timestamp": rfc3339(NOW), "window": "10s", "containers": [
        {"name": "a", "usage": {"cpu": "1500u"}}, {"name": "b", "usage": {"cpu": "2"}}]}]
    assert pod_samples(raw, "cpu", "")["p"].value == 2002 and pod_samples(raw, "memory", "") == {}
    assert pod_samples(raw, "cpu", "b")["p"].value == 2000


def scaler(least=1, most=100, **behavior):
    return {"spec": {"minReplicas": least, "maxReplicas": most, **({"behavior": behavior} if behavior else {})}}


def test_limits_and_windows():
    def step(one, current, desired, memory=None, now=0.0):
        count, said = behavior.normalize(one, current, desired, memory or Memory(), now)
        return count, [reason for _, _, reason, _ in said]
    assert step(scaler(), 1, 50) == (4, ["ReadyForNewScale", "ScaleUpLimit"])
    assert step(scaler(most=3), 1, 50) == (3, ["ReadyForNewScale", "TooManyReplicas"])
    assert step(scaler(least=2), 5, 1) == (2, ["ReadyForNewScale", "TooFewReplicas"])
    memory = Memory([(0.0, 8)])
    assert step(scaler(), 8, 2, memory, 200.0)[1][0] == "ScaleDownStabilized"
    assert step(scaler(), 8, 2, memory, 301.0) == (2, ["ReadyForNewScale", "DesiredWithinRange"])
    slow = scaler(scaleUp={"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
                  scaleDown={"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                      {"type": "Percent", "value": 50, "periodSeconds": 60},
                      {"type": "Pods", "value": 1, "periodSeconds": 60}]})
    memory = Memory()
    assert step(slow, 4, 10, memory)[0] == 6
    memory.changed(4, 6, 0.0)
    assert step(slow, 6, 10, memory, 30.0)[0] == 6  # the period's two are spent
    assert step(slow, 6, 10, memory, 61.0)[0] == 8
    assert step(slow, 8, 1) == (7, ["ReadyForNewScale", "ScaleDownLimit"])
    assert step(scaler(scaleDown={"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}), 8, 1)[0] == 8


def test_each_direction_has_a_tolerance_of_its_own():
    patient = behavior.tolerance(scaler(scaleUp={"tolerance": "0.5"}, scaleDown={"tolerance": "0"}))
    known = pods(10)

    def count(percent, tolerance):
        return proposals.by_utilization(10, 70, "cpu", "", known, samples(*[percent] * 10), tolerance, NOW).replicas
    assert (count(100, DEFAULT), count(100, patient), count(106, patient)) == (15, 10, 16)
    assert (count(66, DEFAULT), count(66, patient)) == (10, 10)  # 66/70 of ten are ten again, rounded up
    assert (count(62, DEFAULT), count(62, patient)) == (9, 9)
    assert (count(63, DEFAULT), count(63, patient)) == (10, 9)


def test_one_container_may_be_what_counts():
    known = [{**one, "spec": {"containers": [*one["spec"]["containers"], {"name": "sidecar", "resources": {
        "requests": {"cpu": "900m"}}}]}} for one in pods(2)]
    assert proposals.by_utilization(2, 50, "cpu", "c", known, samples(100, 100), DEFAULT, NOW).replicas == 4
    assert proposals.by_utilization(2, 50, "cpu", "", known, samples(500, 500), DEFAULT, NOW).replicas == 2


def test_a_deployment_follows_its_metrics(monkeypatch):
    percent = {"now": 220}

    async def figures(self, path, api, **selectors):
        if not percent["now"]:
            raise NotFound("the server could not find the requested resource")
        assert selectors["labelSelector"] == "app=web"
        return [{"metadata": {"name": name}, "timestamp": rfc3339(NOW), "window": "15s", "containers": [
            {"name": "c", "usage": {"cpu": f"{percent['now']}m"}}]} for name in percent["names"]]

    async def play():
        monkeypatch.setattr(MetricSource, "_items", figures)
        async with cluster() as made:
            wanted = deployment("web", 1)
            wanted["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "100m"}}
            await made.client.create(named("deployments.apps"), wanted)
            await made.until(lambda: objects.get(made.of("deployments.apps").get("default", "web") or {},
                                                 "status.availableReplicas") == 1)
            (pod,) = made.pods.items()
            await made.client.patch(PODS, objects.name(pod), {"status": {"startTime": rfc3339(NOW - 3600)}}, "default",
                                    "merge", "status")
            await made.until(lambda: objects.get(made.pods.items()[0], "status.startTime"))
            percent["names"] = [objects.name(pod)]
            await made.client.create(named("horizontalpodautoscalers.autoscaling"), {
                "metadata": {"name": "web", "namespace": "default"}, "spec": {
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
                    "minReplicas": 1, "maxReplicas": 10, "metrics": [{"type": "Resource", "resource": {
                        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]}})

            def status():
                return (made.of("horizontalpodautoscalers.autoscaling").get("default", "web") or {}).get("status") or {}
            await made.until(lambda: status().get("desiredReplicas") == 4)
            assert status()["currentMetrics"] == [{"type": "Resource", "resource": {"name": "cpu", "current": {
                "averageUtilization": 220, "averageValue": "220m"}}}]
            assert {c["type"]: (c["status"], c["reason"]) for c in status()["conditions"]} == {
                "AbleToScale": ("True", "SucceededRescale"), "ScalingActive": ("True", "ValidMetricFound"),
                "ScalingLimited": ("False", "DesiredWithinRange")}
            await made.until(lambda: objects.get(made.of("deployments.apps").get("default", "web"),
                                                 "spec.replicas") == 4)
            other = {"metadata": {"name": "rival", "namespace": "default"}, "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 20}}
            await made.client.create(named("horizontalpodautoscalers.autoscaling"), other)
            await made.until(lambda: (objects.condition(made.of("horizontalpodautoscalers.autoscaling").get(
                "default", "rival") or {}, "ScalingActive") or {}).get("reason") == "AmbiguousSelector")
            await made.client.delete(named("horizontalpodautoscalers.autoscaling"), "rival", "default")
            await made.until(lambda: not made.of("horizontalpodautoscalers.autoscaling").get("default", "rival"))
            percent["now"] = 0
            await made.client.patch(named("horizontalpodautoscalers.autoscaling"), "web", {"spec": {
                "maxReplicas": 9}}, "default", "merge")
            await made.until(lambda: {c["type"]: c for c in status()["conditions"]}["ScalingActive"]["reason"]
                             == "FailedGetResourceMetric")
            assert status()["desiredReplicas"] == 4
    asyncio.run(play())
