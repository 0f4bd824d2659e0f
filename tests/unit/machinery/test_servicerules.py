"""The rules for Services and endpoints, one by one: each with an object that breaks it, and upstream's words."""

import pytest

from controlplane.machinery.validate import endpoints, services

HINTS, MODE = services.HINTS, services.MODE


def service(annotations=None, **spec):
    return {"metadata": {"name": "s", "annotations": annotations or {}}, "spec": {
        "type": "ClusterIP", "sessionAffinity": "None", "ports": [{"port": 80, "protocol": "TCP"}], **spec}}


def balanced(annotations=None, **spec):
    return service(annotations, type="LoadBalancer", **spec)


@pytest.mark.parametrize("good", [
    service(), balanced(loadBalancerSourceRanges=[" 10.0.0.0/8 "], loadBalancerClass="a.b/c"),
    balanced({services.RANGES: "10.0.0.0/8, ::/0"}), service(trafficDistribution="PreferSameNode"),
    service({HINTS: "Auto", MODE: "Auto"}), service(ports=[{"port": 1, "protocol": "TCP", "appProtocol": "a.b/c"}])])
def test_good_ones_pass(good):
    assert [str(c) for c in services.service(good)] == []


@pytest.mark.parametrize(("bad", "want"), [
    (service({HINTS: "Auto", MODE: "x"}),
     f'annotations[{MODE}]: Invalid value: "x": must match annotations[{HINTS}] when'),
    (balanced(ports=[{"port": 10250, "protocol": "TCP"}]), "may not expose port 10250 externally since it is used by"),
    (service(loadBalancerSourceRanges=["10.0.0.0/8"]),
     "spec.LoadBalancerSourceRanges: Forbidden: may only be used when"),
    (balanced(loadBalancerSourceRanges=["10.0.0.1"]),
     'LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.1": must be a valid CIDR value'),
    (balanced({services.RANGES: "x"}), 'source-ranges]: Invalid value: "x": must be a valid CIDR value'),
    (service(sessionAffinityConfig={"clientIP": {}}), "must not be set when session affinity is None"),
    (service(loadBalancerClass="a"),
     "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"),
    (balanced(loadBalancerClass="a b"), 'spec.loadBalancerClass: Invalid value: "a b": name part must consist of'),
    (service(type="NodePort", externalTrafficPolicy="Local", healthCheckNodePort=30001),
     "spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and"),
    (service(trafficDistribution="Near"),
     'Unsupported value: "Near": supported values: "PreferClose", "PreferSameNode"'),
    (service(ports=[{"port": 1, "protocol": "TCP", "appProtocol": "a b"}]), "ports[0].appProtocol: Invalid value")])
def test_broken_rules_are_named(bad, want):
    found = [f"{c.field}: {c.message}" for c in services.service(bad)]
    assert any(want in text for text in found), found


@pytest.mark.parametrize(("before", "after", "want"), [
    (["10.0.0.1"], ["10.0.0.2"], ["clusterIPs[0]: may not change once set"]), (["10.0.0.1"], ["10.0.0.1", "fd::1"], []),
    (["10.0.0.1"], [], ["clusterIPs[0]: primary clusterIP can not be unset"]), (["None"], ["None"], []),
    (["10.0.0.1", "fd::1"], ["10.0.0.1", "fd::2"], ["clusterIPs[1]: may not change once set"]),
    (["10.0.0.1", "fd::1"], ["10.0.0.1"], ["ipFamilyPolicy: must be set to 'SingleStack' when releasing the secondary "
                                           "clusterIP"])])
def test_addresses_stay(before, after, want):
    found = services.changes(service(clusterIPs=after), service(clusterIPs=before))
    assert [f"{c.field}: {c.message.split(': ')[-1]}".removeprefix("spec.") for c in found] == want


def test_the_port_for_health_checks_stays():
    def told(policy, port):
        local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001}
        return [f"{c.field}: {c.message}" for c in services.changes(
            service(**local | {"externalTrafficPolicy": policy, "healthCheckNodePort": port}), service(**local))]
    assert told("Local", 30002) == ["spec.healthCheckNodePort: Forbidden: field is immutable"]
    assert told("Local", 30001) == told("Cluster", 0) == []


@pytest.mark.parametrize(("made", "point", "want"), [
    (balanced, {"ip": "192.0.2.1", "ipMode": "Proxy"}, ""), (balanced, {"hostname": "lb.example.com"}, ""),
    (balanced, {"ip": "1.2.3.x", "ipMode": "VIP"}, "ingress[0].ip: Invalid value: \"1.2.3.x\": must be a valid IP"),
    (balanced, {"hostname": "1.2.3.4"}, "ingress[0].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an"),
    (balanced, {"hostname": "A_"}, "a lowercase RFC 1123 subdomain"),
    (balanced, {"hostname": "a", "ipMode": "VIP"}, "ipMode: Forbidden: may not be specified when `ip` is not"),
    (balanced, {"ip": "192.0.2.1", "ipMode": "Foo"}, 'Unsupported value: "Foo": supported values: "Proxy", "VIP"'),
    (service, {"ip": "192.0.2.1"}, "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is")])
def test_a_status_names_what_nodes_can_answer_for(made, point, want):
    told = {**made(), "status": {"loadBalancer": {"ingress": [point]}}}
    found = " ".join(str(cause) for cause in services.changes(told, made()))
    assert want in found if want else not found
    assert not services.changes(told, told)


def test_families_stay_too():
    def told(wanted, **more):
        return [c.message.split(": ")[-1] for c in services.changes(
            service(ipFamilies=wanted, **more), service(ipFamilies=["IPv4", "IPv6"]))]
    assert told(["IPv4", "IPv6"]) == told(["IPv4"], ipFamilyPolicy="SingleStack") == []
    assert told(["IPv4"]) == ["must be set to 'SingleStack' when releasing the secondary ipFamily"]


def slice_of(kind="IPv4", ports=(), **endpoint):
    return {"addressType": kind, "endpoints": [endpoint], "ports": [{"protocol": "TCP", **p} for p in ports]}


@pytest.mark.parametrize("good", [
    slice_of(addresses=["239.1.1.1"]), slice_of("FQDN", addresses=["a.b."], hostname="web"),
    slice_of(addresses=["10.0.0.1"], hints={"forZones": [{"name": "a"}], "forNodes": [{"name": "n.x"}]},
             ports=[{"appProtocol": "kubernetes.io/h2c"}])])
def test_good_slices_pass(good):
    assert [str(c) for c in endpoints.endpoint_slice(good)] == []


@pytest.mark.parametrize(("bad", "want"), [
    (slice_of(addresses=["224.0.0.1"]), "endpoints[0].addresses[0]: Invalid value"),
    (slice_of("FQDN", addresses=["a"]), "should be a domain with at least two segments separated by dots"),
    (slice_of(addresses=["10.0.0.1"], hints={"forZones": [{"name": "a"}] * 2}),
     'endpoints[0].hints.forZones[1].name: Duplicate value: "a"'),
    (slice_of(addresses=["10.0.0.1"], hints={"forNodes": [{"name": str(i)} for i in range(9)]}),
     "endpoints[0].hints.forNodes: Too many: 9: must have at most 8 items"),
    (slice_of(addresses=["10.0.0.1"], ports=[{"appProtocol": "a b"}]), 'ports[0].appProtocol: Invalid value: "a b"')])
def test_slices_name_what_is_wrong(bad, want):
    found = [f"{c.field}: {c.message}" for c in endpoints.endpoint_slice(bad)]
    assert any(want in text for text in found), found


def test_endpoints_name_hosts_and_nodes():
    subset = {"addresses": [{"ip": "10.0.0.1", "hostname": "A", "nodeName": "B"}],
              "ports": [{"port": 1, "protocol": "TCP", "appProtocol": "a b"}]}
    assert {c.field.split(".", 1)[1] for c in endpoints.endpoints({"subsets": [subset]})} == {
        "addresses[0].hostname", "addresses[0].nodeName", "ports[0].appProtocol"}
