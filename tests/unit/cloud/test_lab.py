"""Addresses for load balancers out of pools."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.cloud import lab
from controlplane.machinery.errors import Finding


def service(name, ingress=(), **spec):
    return {"metadata": {"namespace": "t", "name": name}, "spec": {"type": "LoadBalancer", **spec},
            "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in ingress]}}}


def test_pools_are_read_and_what_cannot_be_is_told():
    spans, problems = lab.read({"a": "192.168.56.200-192.168.56.202, 192.168.56.240/30", "b": "2001:db8::10/127"})
    assert [str(s) for s in spans] == ["192.168.56.200-192.168.56.202", "192.168.56.241-192.168.56.242",
                                       "2001:db8::10-2001:db8::11"] and not problems
    used = {"192.168.56.10": "node lab-1", "10.244.0.0/16": "the pods' range"}
    for text, why in (("192.168.56.0/24", "collides with node lab-1"), ("10.244.1.1-10.244.1.9", "the pods' range"),
                      ("192.168.56.9-192.168.56.1", "comes before"), ("lots", "lots names no addresses"),
                      ("10.0.0.0/8", "at most")):
        spans, problems = lab.read({"a": text}, used)
        assert not spans and why in str(problems[0])
    assert str(lab.read({"a": "10.0.0.1 - 10.0.0.2 ,\n10.0.0.9"})[0][0]) == "10.0.0.1-10.0.0.2"
    assert "collides with pool a" in str(lab.read({"a": "10.0.0.1-10.0.0.9", "b": "10.0.0.9"})[1][0])


def test_a_service_keeps_its_address_and_may_ask_for_one():
    spans, _ = lab.read({"a": "10.0.0.1-10.0.0.3", "v6": "2001:db8::1"})
    provider = lab.Lab(spans)
    assert provider.ensure(service("s", ["10.0.0.3"]), []) == [{"ip": "10.0.0.3", "ipMode": "VIP"}]
    assert provider.ensure(service("s"), [service("o", ["10.0.0.1"])])[0]["ip"] == "10.0.0.2"
    assert provider.ensure(service("s", loadBalancerIP="10.0.0.3"), [])[0]["ip"] == "10.0.0.3"
    both = provider.ensure(service("s", ipFamilies=["IPv4", "IPv6"]), [])
    assert [entry["ip"] for entry in both] == ["10.0.0.1", "2001:db8::1"]
    with pytest.raises(Finding, match="another Service has it"):
        provider.ensure(service("s", loadBalancerIP="10.0.0.1"), [service("o", ["10.0.0.1"])])
    for asked, why in (("nonsense", "no IP address"), ("2001:db8::1", "has no IPv6"), ("10.0.0.9", "no pool it may")):
        with pytest.raises(Finding, match=why):
            provider.ensure(service("s", loadBalancerIP=asked), [])
    lost = service("s")
    lost["metadata"]["annotations"] = {lab.POOL: "nope"}
    with pytest.raises(Finding, match="there is no pool nope"):
        provider.ensure(lost, [])
    assert not provider.handles(service("s", loadBalancerClass="example.com/other"))
    assert not lab.Lab().handles(service("s"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=25))
def test_no_two_services_ever_have_one_address(steps):
    provider = lab.Lab(lab.read({"a": "10.0.0.1-10.0.0.3"})[0])
    held = {}
    for name, there in steps:
        if not there:
            held.pop(name, None)
            continue
        known = held.setdefault(name, service(str(name)))
        try:
            ingress = provider.ensure(known, [s for n, s in held.items() if n != name])
        except Finding:
            assert len([s for s in held.values() if lab.addresses(s)]) == 3
            continue
        before = lab.addresses(known)
        known["status"] = {"loadBalancer": {"ingress": ingress}}
        assert not before or lab.addresses(known) == before
        given_out = [a for s in held.values() for a in lab.addresses(s)]
        assert len(given_out) == len(set(given_out))
