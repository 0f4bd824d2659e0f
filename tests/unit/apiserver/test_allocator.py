import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.apiserver.services.allocator import Allocator
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import ApiError, Invalid


def pools(network="10.96.0.0/24", ports=(30000, 30009)):
    return Allocator(ipaddress.IPv4Network(network), ports, FakeClock())


def service(name="s", **spec):
    return {"metadata": {"name": name, "namespace": "d"}, "spec": {"ports": [{"port": 80}], **spec}}


def test_a_service_gets_an_address_behind_the_band_and_keeps_it():
    a = pools()
    made = service(type="NodePort")
    a.assign(made, None).commit()
    ip = made["spec"]["clusterIP"]
    assert made["spec"]["clusterIPs"] == [ip] and int(ip.rsplit(".", 1)[1]) > 16
    assert 30000 <= made["spec"]["ports"][0]["nodePort"] <= 30009
    a.assign(made, made).commit()
    assert a._held(made) and len(a.ports.used) == 1
    plain = {**made, "spec": {**made["spec"], "type": "ClusterIP", "ports": [{"port": 80}]}}
    a.assign(plain, made).commit()
    assert not a.ports.used and len(a.addresses.used) == 1
    a.drop(plain)
    assert not a.addresses.used


def test_what_is_taken_or_out_of_range_is_refused_and_nothing_leaks():
    a = pools()
    first = service(clusterIP="10.96.0.9", type="NodePort", ports=[{"port": 80, "nodePort": 30001}])
    a.assign(first, None).commit()
    cases = [({"clusterIP": "10.96.0.9"}, "provided IP is already allocated"),
             ({"clusterIP": "10.1.0.9"}, "is not in the valid range"),
             ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}, "provided port is already allocated"),
             ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 40001}]}, "port is not in the valid range")]
    for spec, why in cases:
        with pytest.raises(Invalid, match=why):
            a.assign(service("t", **spec), None)
    assert (len(a.addresses.used), a.ports.used) == (1, {30001})


def test_what_left_the_ranges_is_kept_and_free_again_once_it_goes():
    a = pools(ports=(30000, 30009))
    a.addresses.more = ((int(ipaddress.IPv4Address("10.97.0.1")), int(ipaddress.IPv4Address("10.97.0.6"))),)
    first = service(clusterIP="10.97.0.5", type="NodePort", ports=[{"port": 80, "nodePort": 30001}])
    a.assign(first, None).commit()
    more, a.addresses.more = a.addresses.more, ()
    a.ports.first = 30005  # of a server that was started with other flags
    a.assign(first, first).commit()
    a.addresses.more = more
    with pytest.raises(Invalid, match="already allocated"):
        a.assign(service("t", clusterIP="10.97.0.5"), None)
    a.addresses.more = ()
    a.drop(first)
    assert not a.addresses.used and not a.ports.used


def test_headless_and_external_names_take_nothing_and_protocols_share_a_port():
    a = pools()
    a.assign(service(clusterIP="None"), None)
    a.assign({"metadata": {"name": "e"}, "spec": {"type": "ExternalName"}}, None)
    assert not a.addresses.used
    dns = service(type="NodePort", ports=[{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}])
    a.assign(dns, None)
    assert dns["spec"]["ports"][0]["nodePort"] == dns["spec"]["ports"][1]["nodePort"]


def test_a_full_range_says_so():
    a = pools("10.96.0.0/29", (30000, 30000))
    for _ in range(5):
        a.assign(service(), None).commit()
    with pytest.raises(ApiError, match="range is full"):
        a.assign(service(), None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["ClusterIP", "NodePort", "gone", "refused"]))))
def test_the_pools_always_hold_exactly_what_the_services_hold(steps):
    a, stored = pools(), {}
    for name, kind in steps:
        old = stored.get(name)
        if kind == "gone":
            if old:
                a.drop(stored.pop(name))
            continue
        new = service(name, type="NodePort" if kind == "refused" else kind)
        if old:
            new["spec"]["clusterIP"] = old["spec"]["clusterIP"]
        lease = a.assign(new, old)
        if kind == "refused":
            lease.release()
        else:
            lease.commit()
            stored[name] = new
        fresh = pools()
        assert fresh.restore(stored.values()) == []
        assert (fresh.addresses.used, fresh.ports.used) == (a.addresses.used, a.ports.used)
