"""Kinds served in two forms: what one form says survives the other."""

import json

from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery import conversion, objects, schema, strategy
from controlplane.machinery.resources import BUILTIN
from controlplane.machinery.validate.nodes import event_v1_changes

REFERENCE = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}
METRICS = [
    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {
        "type": "Utilization", "averageUtilization": 5}}},
    {"type": "Pods", "pods": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}}, "target": {
        "type": "AverageValue", "averageValue": "5"}}},
    {"type": "Object", "object": {"metric": {"name": "m"}, "describedObject": REFERENCE, "target": {
        "type": "Value", "value": "5"}}},
    {"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value", "value": "5"}}}]


def scaler(**spec):
    obj = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
           "metadata": {"name": "h", "namespace": "default"},
           "spec": {"maxReplicas": 3, "scaleTargetRef": REFERENCE, **spec}}
    strategy.of(BUILTIN.of("autoscaling/v2", "HorizontalPodAutoscaler")).default(obj)
    return obj


@given(st.lists(st.sampled_from(METRICS), min_size=1, max_size=4, unique_by=str), st.booleans(), st.booleans())
def test_an_autoscaler_survives_its_old_form(metrics, behaves, measured):
    metrics = sorted(objects.deep_copy(metrics), key=lambda m: m != METRICS[0])
    obj = scaler(metrics=metrics, **({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 5}}} if behaves else {}))
    if measured:
        obj["status"] = {"desiredReplicas": 1, "currentReplicas": 1, "conditions": [{"type": "AbleToScale",
                                                                                     "status": "True"}],
                         "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {
                             "averageUtilization": 50, "averageValue": "10m"}}}]}
    old = conversion.from_storage("autoscaling/v1", obj)
    assert not schema.check("io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler", old)
    back = conversion.to_storage("autoscaling/v1", old)
    back["status"].setdefault("currentReplicas", 0)
    obj["status"].setdefault("currentReplicas", 0)
    assert back == obj


def test_the_old_form_names_what_its_clients_look_for():
    obj = scaler(metrics=METRICS, behavior={})
    old = conversion.from_storage("autoscaling/v1", obj)
    assert old["spec"] == {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": REFERENCE,
                           "targetCPUUtilizationPercentage": 70}
    notes = {k.rpartition("/")[2]: json.loads(v) for k, v in old["metadata"]["annotations"].items()}
    assert notes["metrics"][0] == {"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}}
    assert notes["metrics"][3] == {"type": "Object", "object": {"metricName": "m", "target": REFERENCE,
                                                                "targetValue": "5"}}
    assert notes["behavior"]["ScaleDown"]["Policies"] == [{"Type": "Percent", "Value": 100, "PeriodSeconds": 15}]
    bare = conversion.to_storage("autoscaling/v1", {"metadata": {"name": "h"}, "spec": {"maxReplicas": 1}})
    assert bare["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 80


def test_events_have_one_life_under_two_names():
    event = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "n", "reason": "r",
             "regarding": {"kind": "Pod"}, "reportingController": "c", "deprecatedCount": 2}
    stored = conversion.to_storage("events.k8s.io/v1", event)
    assert stored == {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "n", "reason": "r",
                      "involvedObject": {"kind": "Pod"}, "reportingComponent": "c", "count": 2}
    assert conversion.from_storage("events.k8s.io/v1", stored) == event


def test_what_happened_does_not_change_by_the_names_it_is_stored_under():
    old = {"note": "n", "regarding": {"kind": "Pod"}, "series": {"count": 2}}
    assert [c.field for c in event_v1_changes({**old, "note": "m", "regarding": {}, "series": {"count": 3}}, old)] == [
        "involvedObject", "message"]
