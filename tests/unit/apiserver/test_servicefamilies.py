"""Which address families Services get, on clusters with one and with two."""

import ipaddress

import pytest

from controlplane.apiserver.services.allocator import Allocator
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import Invalid

V4, V6 = ipaddress.ip_network("10.96.0.0/24"), ipaddress.ip_network("fd00:96::/112")


def service(**spec):
    return {"metadata": {"name": "s", "namespace": "d"},
            "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}, **spec}}


def written(allocator, spec, old=None):
    made = service(**spec)
    allocator.assign(made, old).commit()
    return made


def test_one_family_gives_one_and_refuses_what_it_cannot_give():
    one = Allocator(V4, (30000, 30009), FakeClock())
    for spec in ({}, {"ipFamilyPolicy": "PreferDualStack"}, {"ipFamilies": ["IPv4"]}):
        made = written(one, spec)["spec"]
        assert made["ipFamilies"] == ["IPv4"] and len(made["clusterIPs"]) == 1
        assert made["ipFamilyPolicy"] == spec.get("ipFamilyPolicy", "SingleStack")
    refusals = [({"ipFamilyPolicy": "RequireDualStack"}, "not configured for dual-stack services"),
                ({"ipFamilies": ["IPv6"]}, "not configured on this cluster"),
                ({"clusterIP": "fd00:96::9", "clusterIPs": ["fd00:96::9"]}, "may not use IPv6 on a cluster"),
                ({"ipFamilies": ["IPv4", "IPv6"]}, "when multiple ipFamilies are specified")]
    for spec, why in refusals:
        with pytest.raises(Invalid, match=why):
            one.assign(service(**spec), None)
    bare = written(one, {"clusterIP": "None", "selector": {}})["spec"]
    assert (bare["ipFamilies"], bare["ipFamilyPolicy"]) == (["IPv4", "IPv6"], "RequireDualStack")


def test_two_families_come_and_go_with_the_policy():
    two = Allocator([V4, V6], (30000, 30009), FakeClock())
    assert written(two, {})["spec"]["ipFamilies"] == ["IPv4"]
    assert ":" in written(two, {"ipFamilies": ["IPv6"]})["spec"]["clusterIP"]
    turned = written(two, {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]})["spec"]
    assert turned["ipFamilies"] == ["IPv6", "IPv4"] and turned["clusterIP"] == turned["clusterIPs"][0]
    assert ":" in turned["clusterIP"]
    single = written(two, {})
    kept = single["spec"]["clusterIP"]
    double = written(two, {**single["spec"], "ipFamilyPolicy": "RequireDualStack"}, single)
    assert double["spec"]["clusterIPs"][0] == kept and ":" in double["spec"]["clusterIPs"][1]
    before = len(two.pools["IPv6"].used)
    again = written(two, {**double["spec"], "ipFamilyPolicy": "SingleStack"}, double)
    assert again["spec"]["clusterIPs"] == [kept] and again["spec"]["ipFamilies"] == ["IPv4"]
    assert len(two.pools["IPv6"].used) == before - 1
    with pytest.raises(Invalid, match="expected an IPv6 value as indicated by `ipFamilies"):
        two.assign(service(clusterIP="10.96.0.9", clusterIPs=["10.96.0.9"], ipFamilies=["IPv6"]), None)
