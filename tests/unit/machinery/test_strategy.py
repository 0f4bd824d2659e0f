from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery import objects, resources, strategy, tidy
from controlplane.machinery.resources import named

CUSTOM = resources.Resource("x.io", "v1", "things", "Thing", custom=True,
                            subresources=(resources.Subresource("status", resources.STATUS_VERBS, "Thing"),))


def _deployment(**meta):
    obj = {"metadata": {"name": "d", "namespace": "n", **meta}, "spec": {"replicas": 2, "template": {"spec": {}}}}
    plan = strategy.of(named("deployments.apps"))
    plan.default(obj)
    plan.prepare_create(obj)
    return obj


def _updated(resource, old, change):
    new = objects.deep_copy(old)
    change(new)
    plan = strategy.of(resource)
    plan.default(new)
    plan.prepare_update(new, old)
    return new


def test_a_create_drops_status_and_begins_the_generation():
    obj = {"metadata": {"name": "d", "generation": 9}, "spec": {"template": {}}, "status": {"replicas": 3}}
    plan = strategy.of(named("deployments.apps"))
    plan.default(obj)
    plan.prepare_create(obj)
    assert (obj["metadata"]["generation"], obj["status"]) == (1, {})
    pod = {"metadata": {"name": "p"}, "spec": {"containers": []}, "status": {"phase": "Running", "podIP": "1.2.3.4"}}
    strategy.of(named("pods")).default(pod)
    strategy.of(named("pods")).prepare_create(pod)
    assert pod["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    node = {"metadata": {"name": "n", "generation": 2}, "status": {"capacity": {"cpu": "2"}}}
    strategy.of(named("nodes")).default(node)
    strategy.of(named("nodes")).prepare_create(node)
    assert node["status"]["capacity"] == {"cpu": "2"} and "generation" not in node["metadata"]


@pytest.mark.parametrize(("change", "generation"), [
    (lambda o: o["spec"].update(replicas=3), 2), (lambda o: o["spec"].update(replicas=None), 2),
    (lambda o: o["metadata"].update(annotations={"a": "b"}), 2), (lambda o: o["metadata"].update(labels={"a": "b"}), 1),
    (lambda o: o.update(status={"replicas": 9}), 1), (lambda o: o["spec"]["template"].update(metadata=None), 1)])
def test_generation_counts_changes_of_intent(change, generation):
    old = _deployment()
    new = _updated(named("deployments.apps"), old, change)
    assert (new["metadata"]["generation"], new["status"]) == (generation, old["status"])


def test_slices_and_custom_objects_count_their_whole_body():
    slices = named("endpointslices.discovery.k8s.io")
    old = {"metadata": {"generation": 1}, "addressType": "IPv4", "endpoints": []}
    grown = _updated(slices, old, lambda o: o.update(endpoints=[{"addresses": ["1.2.3.4"]}]))
    assert grown["metadata"]["generation"] == 2
    assert _updated(slices, old, lambda o: o["metadata"].update(labels={}))["metadata"]["generation"] == 1
    thing = {"metadata": {"generation": 1}, "color": None, "status": {"a": 1}}
    assert _updated(CUSTOM, thing, lambda o: o.update(status={}))["status"] == {"a": 1}
    assert _updated(CUSTOM, thing, lambda o: o.update(color="red"))["metadata"]["generation"] == 2


def test_status_writes_change_the_status_and_little_else():
    old = _deployment(labels={"a": "1"}, annotations={"x": "1"})
    new = objects.deep_copy(old)
    new["spec"]["replicas"] = 7
    new["metadata"].update(labels={"a": "2"}, annotations={"x": "2"})
    new["status"] = {"replicas": 7}
    strategy.of(named("deployments.apps")).prepare_status(new, old)
    assert new["spec"] == old["spec"] and new["status"] == {"replicas": 7}
    assert (new["metadata"]["labels"], new["metadata"]["annotations"]) == ({"a": "1"}, {"x": "2"})
    thing = {"metadata": {"labels": {"a": "2"}}, "spec": {"x": 1}, "status": {"b": 1}}
    strategy.of(CUSTOM).prepare_status(thing, {"metadata": {"generation": 3}, "status": {}})
    assert thing == {"metadata": {"generation": 3}, "status": {"b": 1}}


def test_pods_keep_their_class_and_owners_in_status_writes():
    old = {"metadata": {"generation": 1}, "spec": {}, "status": {"phase": "Pending", "qosClass": "Burstable"}}
    new = {"metadata": {"ownerReferences": [{}]}, "spec": {"x": 1}, "status": {"phase": "Running"}}
    strategy.of(named("pods")).prepare_status(new, old)
    assert new == {"metadata": {"generation": 1}, "spec": {}, "status": {"phase": "Running", "qosClass": "Burstable"}}


def test_namespaces_are_finalized_by_their_subresource_alone():
    plan = strategy.of(named("namespaces"))
    obj = {"metadata": {"name": "n"}}
    plan.default(obj)
    plan.prepare_create(obj)
    assert obj == {"metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}},
                   "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    assert _updated(named("namespaces"), obj, lambda o: o.update(spec={}))["spec"] == obj["spec"]


def test_services_keep_what_was_allocated():
    old = {"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
                                    "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
                                    "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30001}]}}
    services = named("services")
    kept = _updated(services, old, lambda o: o.update(spec={"type": "NodePort", "ports": [{"port": 80}]}))["spec"]
    assert (kept["clusterIP"], kept["clusterIPs"], kept["ports"][0]["nodePort"]) == ("10.96.0.9", ["10.96.0.9"], 30001)
    closed = _updated(services, old, lambda o: o["spec"].update(type="ClusterIP"))["spec"]
    assert "nodePort" not in closed["ports"][0] and closed["clusterIP"] == "10.96.0.9"
    outside = _updated(services, old, lambda o: o["spec"].update(type="ExternalName", externalName="a.b"))["spec"]
    assert not {"clusterIP", "clusterIPs", "ipFamilies"} & outside.keys()
    balanced = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    behind = {**old, "spec": {**old["spec"], "type": "LoadBalancer"}, "status": balanced}
    assert _updated(services, behind, lambda o: o["spec"].update(sessionAffinity="None"))["status"] == balanced
    assert _updated(services, behind, lambda o: o["spec"].update(type="NodePort"))["status"] == {"loadBalancer": {}}
    moved = _updated(services, old, lambda o: o["spec"].update(clusterIP="10.96.0.8"))
    assert strategy.of(services).validate_update(moved, old)[0].message.endswith("may not change once set")


def test_flags_of_kinds():
    def flags(name):
        plan = strategy.of(named(name))
        return plan.graceful, plan.create_on_update, plan.unconditional_update, plan.returns_deleted

    assert flags("pods") == (True, False, True, True)
    assert flags("leases.coordination.k8s.io") == (False, True, False, False)
    assert flags("services") == (False, True, True, True)
    assert flags("configmaps") == (False, False, True, False)
    assert not strategy.of(CUSTOM).unconditional_update
    # a custom kind that borrows a built-in's name borrows none of its behaviour
    assert not strategy.of(replace(CUSTOM, group="", kind="Pod")).graceful


def test_warnings():
    assert strategy.of(named("endpoints")).warnings({"metadata": {}}, None) == [
        "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"]
    def of_service(**spec):
        return strategy.of(named("services")).warnings({"metadata": {}, "spec": {"type": "ClusterIP", **spec}}, None)
    assert of_service(clusterIP="10.96.0.1") == []
    assert of_service(clusterIP="None", externalIPs=["192.0.2.1"], sessionAffinity="ClientIP", externalName="a.b") == [
        "spec.externalIPs is ignored for headless services", "spec.SessionAffinity is ignored for headless services",
        'spec.externalName is ignored when spec.type is not "ExternalName"']
    assert of_service(type="LoadBalancer", loadBalancerSourceRanges=["10.1.2.3/8", "10.0.0.0/8", "fd00::1/64"],
                      trafficDistribution="PreferClose", externalIPs=["192.0.2.1"]) == [
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        'spec.loadBalancerSourceRanges[0]: CIDR value "10.1.2.3/8" is ambiguous in this context (should be '
        '"10.0.0.0/8" or "10.1.2.3/32"?)',
        'spec.loadBalancerSourceRanges[2]: CIDR value "fd00::1/64" is ambiguous in this context (should be '
        '"fd00::/64" or "fd00::1/128"?)',
        'spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"']
    said = " should be in RFC 5952 canonical format "
    assert of_service(type="LoadBalancer", clusterIPs=["10.96.0.5", "fd00:0096::0005"], loadBalancerIP="FD00::1",
                      externalIPs=["fd00::1", "fd00:0:0::2"]) == [
        f'spec.clusterIPs[1]: IPv6 address "fd00:0096::0005"{said}("fd00:96::5")',
        f'spec.externalIPs[1]: IPv6 address "fd00:0:0::2"{said}("fd00::2")',
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        f'spec.loadBalancerIP: IPv6 address "FD00::1"{said}("fd00::1")']
    pod = {"metadata": {"finalizers": ["x.io"]}, "spec": {"containers": [{"env": [{"name": "A"}, {"name": "A"}]}]}}
    first, second = strategy.of(named("pods")).warnings(pod, None)
    assert "prefer a domain-qualified finalizer name" in first
    assert second == ('spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using '
                      "apply")
    assert len(strategy.of(named("pods")).warnings(pod, objects.deep_copy(pod))) == 1


def test_what_go_cannot_tell_from_absent_is_absent():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {
        "name": "p", "creationTimestamp": None, "labels": {"a": None}, "generateName": "", "annotations": {}},
           "spec": {"hostNetwork": False, "nodeName": "", "priority": 0, "volumes": [], "containers": [
               {"name": "", "env": [{"name": "A", "value": ""}], "stdin": False, "tty": None, "command": [],
                "securityContext": {"privileged": False},
                "readinessProbe": {"httpGet": {"port": 0}, "periodSeconds": 0}},
               None]}}
    tidy.tidy(named("pods").definition, pod)
    assert pod == {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": ""}}, "spec": {
        "priority": 0, "containers": [{"name": "", "env": [{"name": "A"}], "securityContext": {"privileged": False},
                                       "readinessProbe": {"httpGet": {"port": 0}}}, {}]}}


def test_raw_values_keep_their_nulls():
    schema = {"type": "object", "nullable": False, "properties": {"a": {"enum": [None, 1], "default": {"x": None},
                                                                        "minimum": 0, "description": ""}}}
    tidy.tidy("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps", schema)
    assert schema == {"type": "object", "properties": {"a": {"enum": [None, 1], "default": {"x": None}, "minimum": 0}}}


_BODIES = st.recursive(st.none() | st.just(0) | st.just("") | st.just("x") | st.just(5),
                       lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(
                           ["spec", "containers", "name", "env", "metadata", "labels", "priority", "z"]), inner))


def test_bytes_have_the_form_go_writes():
    wrapped = {"data": {"a": "YWFh\nYQ==\r\n", "b": "YR==", "c": "+/8=", "d": "", "e": "YWFh", "f": "no"}}
    tidy.tidy(named("secrets").definition, wrapped)
    assert wrapped == {"data": {"a": "YWFhYQ==", "b": "YQ==", "c": "+/8=", "d": "", "e": "YWFh", "f": "no"}}


@pytest.mark.parametrize(("given", "time", "micro"), [
    ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
    ("2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456Z"),
    ("2026-01-02T03:04:05.1234567+02:30", "2026-01-02T00:34:05Z", "2026-01-02T00:34:05.123456Z"),
    ("2026-01-02T03:04:05.5-01:00", "2026-01-02T04:04:05Z", "2026-01-02T04:04:05.500000Z"), ("odd", "odd", "odd")])
def test_times_have_the_form_go_reads(given, time, micro):
    event = {"firstTimestamp": given, "eventTime": given, "series": {"lastObservedTime": given}}
    tidy.tidy(named("events").definition, event)
    assert event == {"firstTimestamp": time, "eventTime": micro, "series": {"lastObservedTime": micro}}


@given(st.dictionaries(st.sampled_from(["spec", "metadata", "z"]), _BODIES))
def test_tidying_twice_is_tidying_once(body):
    tidy.tidy(named("pods").definition, body)
    again = objects.deep_copy(body)
    tidy.tidy(named("pods").definition, again)
    assert again == body
