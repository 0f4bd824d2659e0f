"""The rules of what bounds pods and tells of nodes, and upstream's words for what breaks them: LimitRanges,
ResourceQuotas, Nodes, Secrets."""

import pytest

from controlplane.machinery.validate import config, nodes, policies


def quota(hard, *scopes, expressions=()):
    return {"spec": {"hard": dict.fromkeys(hard, "1"), "scopes": list(scopes),
                     "scopeSelector": {"matchExpressions": list(expressions)}}}


def limits(kind="Container", **fields):
    return {"spec": {"limits": [{"type": kind, **fields}]}}


def told(causes):
    return [f"{c.field}: {c.message}" for c in causes]


@pytest.mark.parametrize("good", [
    quota(["pods", "count/jobs.batch"], "BestEffort"),
    quota(["cpu", "example.com/gpu"], "NotBestEffort", "Terminating"),
    quota(["requests.storage"], expressions=[
        {"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["gold"]}])])
def test_good_quotas_pass(good):
    assert told(policies.resource_quota(good)) == []


@pytest.mark.parametrize(("bad", "want"), [
    (quota(["cpu"], "BestEffort"), 'spec.scopes: Invalid value: ["BestEffort"]: unsupported scope applied to resource'),
    (quota(["services"], expressions=[{"scopeName": "PriorityClass", "operator": "Exists"}]),
     "unsupported scope applied to resource"),
    (quota([], expressions=[{"scopeName": "Terminating", "operator": "Exists"},
                            {"scopeName": "NotTerminating", "operator": "Exists"}]), "conflicting scopes"),
    (quota([], expressions=[{"scopeName": "x", "operator": "y"}]),
     'matchExpressions.operator: Invalid value: "y": not a valid selector operator'),
    (quota([], expressions=[{"scopeName": "BestEffort", "operator": "In", "values": ["a"]}]), "must be 'Exists' when")])
def test_quotas_are_held_to_what_their_scopes_can_bound(bad, want):
    assert any(want in text for text in told(policies.resource_quota(bad)))


@pytest.mark.parametrize(("bad", "want"), [
    (limits("Node"), 'type: Invalid value: "Node": must be a standard limit type or fully qualified'),
    (limits(max={"storage": "1"}),
     'max[storage]: Invalid value: "storage": must be a standard resource for containers'),
    (limits(min={"cpu": "2"}, max={"cpu": "1"}),
     'min[cpu]: Invalid value: "2": min value 2 is greater than max value 1'),
    (limits(min={"cpu": "2"}, defaultRequest={"cpu": "1"}),
     'defaultRequest[cpu]: Invalid value: "1": min value 2 is greater than default request value 1'),
    (limits(defaultRequest={"cpu": "2"}, default={"cpu": "1"}),
     'defaultRequest[cpu]: Invalid value: "2": default request value 2 is greater than default limit value 1'),
    (limits(min={"cpu": "2"}, default={"cpu": "1"}),
     'default[cpu]: Invalid value: "2": min value 2 is greater than default value 1'),
    (limits(default={"cpu": "2"}, max={"cpu": "1"}),
     'default[cpu]: Invalid value: "1": default value 2 is greater than max value 1'),
    (limits(min={"cpu": "1"}, max={"cpu": "2"}, maxLimitRequestRatio={"cpu": "3"}),
     'maxLimitRequestRatio[cpu]: Invalid value: "3": ratio 3 is greater than max/min = 2.000000'),
    (limits(default={"a.b/c": "2"}, defaultRequest={"a.b/c": "1"}),
     "default value 2 must equal to defaultRequest value 1 in a.b/c")])
def test_limits_come_in_order(bad, want):
    assert any(want in text for text in told(policies.limit_range(bad)))


@pytest.mark.parametrize(("bad", "want"), [
    ({"spec": {"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}}, "may specify no more than one CIDR for each IP family"),
    ({"spec": {"podCIDRs": ["10.0.0.0/24", "10.0.0.0/24"]}}, 'spec.podCIDRs[1]: Duplicate value: "10.0.0.0/24"'),
    ({"status": {"capacity": {"pods": "1500m"}}}, 'status.capacity.pods: Invalid value: "1500m": must be an integer'),
    ({"status": {"allocatable": {"cpu": "-1"}}}, "status.allocatable.cpu: Invalid value")])
def test_nodes_tell_what_can_be(bad, want):
    assert any(want in text for text in told(nodes.node(bad)))


def test_a_node_tells_no_address_twice():
    address = {"type": "InternalIP", "address": "10.0.0.1"}
    twice = {"status": {"addresses": [address, {**address, "type": "ExternalIP"}, address]}}
    assert [c.field for c in nodes.node_changes(twice, {})] == ["status.addresses[2]"]
    assert nodes.node({"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd::/64"]}}) == []


@pytest.mark.parametrize(("kind", "data", "passes"), [
    ("kubernetes.io/ssh-auth", {"ssh-privatekey": ""}, False),
    ("kubernetes.io/ssh-auth", {"ssh-privatekey": "eA=="}, True),
    ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": "W10="}, False),  # []
    ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": "e30="}, True),  # {}
    ("kubernetes.io/tls", {"tls.crt": "", "tls.key": ""}, True), ("kubernetes.io/tls", {"tls.crt": ""}, False)])
def test_secrets_hold_what_their_types_say(kind, data, passes):
    assert (config.secret({"type": kind, "data": data}) == []) is passes
