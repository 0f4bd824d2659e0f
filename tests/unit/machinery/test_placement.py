"""Which nodes a pod is meant for, asked alike by the scheduler, the DaemonSets and whoever drives pods away."""

import pytest

from controlplane.machinery import placement
from controlplane.machinery.placement import Named

TAINT = {"key": "rank", "value": "5", "effect": "NoExecute"}
NODE = Named("n", {"zone": "a", "cores": "8"})


@pytest.mark.parametrize(("toleration", "covers"), [
    ({"operator": "Exists"}, True),
    ({"key": "rank", "operator": "Exists", "effect": "NoExecute"}, True),
    ({"key": "rank", "operator": "Exists", "effect": "NoSchedule"}, False),
    ({"key": "rank", "value": "5"}, True),
    ({"key": "rank", "value": "6"}, False),
    ({"value": "5"}, False),  # without a key only Exists covers anything
    ({"key": "rank", "operator": "Gt", "value": "4"}, True),
    ({"key": "rank", "operator": "Gt", "value": "5"}, False),
    ({"key": "rank", "operator": "Lt", "value": "6"}, True),
    ({"key": "rank", "operator": "Lt", "value": "five"}, False),
])
def test_a_toleration_covers_a_taint(toleration, covers):
    assert placement.tolerates(toleration, TAINT) is covers
    assert (placement.untolerated([toleration], [TAINT]) is None) is covers


@pytest.mark.parametrize(("term", "matches"), [
    ({}, False),
    ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}, True),
    ({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}, True),
    ({"matchExpressions": [{"key": "disk", "operator": "Exists"}]}, False),
    ({"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}, True),
    ({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["7"]}]}, True),
    ({"matchExpressions": [{"key": "zone", "operator": "Lt", "values": ["7"]}]}, False),
    ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}, True),
    ({"matchExpressions": [{"key": "zone", "operator": "Exists"}],
      "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n"]}]}, False),
])
def test_a_term_matches_a_node(term, matches):
    assert placement.term_matches(term, NODE) is matches
    assert placement.takes({"nodeSelectorTerms": [{}, term]}, NODE) is matches
    assert placement.selects({"zone": "a"}, [term], NODE) is matches
    assert not placement.selects({"zone": "b"}, [term], NODE)
    assert placement.selects({}, None, NODE) and not placement.takes(None, NODE)
