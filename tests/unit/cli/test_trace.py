"""What `pelamis trace` reads from its arguments and says at its end."""

from __future__ import annotations

from typing import Any

import pytest

from agent.proxy.trace import End, Packet
from controlplane.cli import trace
from controlplane.cli.settings import Settings
from controlplane.machinery.errors import Finding

SERVICE = {"metadata": {"name": "web"},
           "spec": {"ports": [{"port": 80, "name": "http"}, {"port": 53, "protocol": "UDP"}]}}


def test_targets() -> None:
    assert trace.parse_target("web:80", "a") == trace.Target("a", "web", "80")
    assert trace.parse_target("web.b.svc.cluster.local:http", "a") == trace.Target("b", "web", "http")
    for text in ("web", ":80", "web:"):
        with pytest.raises(Finding):
            trace.parse_target(text, "a")
    assert trace.port_number(SERVICE, "http", "tcp") == trace.port_number(SERVICE, "80", "tcp") == 80
    with pytest.raises(Finding, match=r"it has http\(80\)"):
        trace.port_number(SERVICE, "53", "tcp")


def test_addresses_are_targets_too() -> None:
    assert trace.parse_target("192.0.2.1:30080", "a") == trace.Target("", "", "30080", "192.0.2.1")
    assert trace.parse_target("[fd00::1]:80", "a").address == "fd00::1"


def test_where_a_packet_may_be_for() -> None:
    headless = {"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"port": 80, "name": "sql"}]}}
    slices = [{"ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}], "endpoints": []}]
    alias = {"metadata": {"name": "x"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}
    plain = {"metadata": {"name": "web"}, "spec": {**SERVICE["spec"], "clusterIP": "10.96.0.9"}}

    def places(service: dict[str, Any], port: str, *said: str) -> tuple[list[tuple[str, int]], str]:
        target = trace.Target("a", service["metadata"]["name"], port)
        return trace.destinations(target, trace.World({}, service, slices), list(said), "tcp")

    assert places(plain, "http", "10.96.0.9") == ([("10.96.0.9", 80)], "")
    assert "the answer is old" in places(plain, "80", "10.96.0.1")[1]
    assert places(headless, "sql", "10.1.0.2", "10.1.0.3") == ([("10.1.0.2", 5432), ("10.1.0.3", 5432)], "")
    found, remark = places(headless, "80", "10.1.0.2")
    assert found == [("10.1.0.2", 80)] and "its endpoints offer 5432, not 80" in remark
    found, remark = places(alias, "443", "192.0.2.1")
    assert found == [("192.0.2.1", 443)] and "alias of example.com" in remark
    for service, port in ((alias, "https"), (headless, "nosuch")):
        with pytest.raises(Finding):
            places(service, port)


def pod(name: str, ip: str, node: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "a", "labels": {"app": name}}, "spec": {"nodeName": node},
            "status": {"podIP": ip, "podIPs": [{"ip": ip}], "hostIP": f"192.0.2.{node}", "phase": "Running"}}


def test_ends() -> None:
    here, there = pod("here", "10.1.0.2", "1"), pod("there", "10.2.0.2", "2")
    policy = {"metadata": {"name": "deny", "namespace": "a"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    world = trace.World(here, None, [], [here, there], [policy], {"a": {}})
    settings = Settings("1", "192.0.2.1")

    def said(outcome: str, at: str, by: str = "") -> str:
        return trace.sentence(trace._ended(settings, world, Packet("10.1.0.2", "10.96.0.9"), End(outcome, at, by),
                                           trace._owners(world.pods)))

    assert said("10.1.0.3:80 masqueraded", "10.1.0.3:80") == \
        "delivered to 10.1.0.3:80, no pod that is known (the receiver sees this node's address)"
    assert said("REJECT", "10.96.0.9:80") == "REFUSED on its way to 10.96.0.9:80: the service has no ready endpoints"
    assert said("DROP", "10.1.0.2:80", "PELAMIS-NPI-X  -j DROP").endswith("deny does not let here receive it")
    assert said("DROP", "10.1.0.2:80", "UFW  -j DROP").endswith("by UFW  -j DROP")
    assert said("10.2.0.2:80", "10.2.0.2:80") == \
        "DROPPED on its way to 10.2.0.2:80, pod a/there: NetworkPolicy deny does not let there receive it (on node 2)"
    world.policies = []
    assert said("pass", "10.2.0.2:80") == "no rule translates it: it goes as it is to 10.2.0.2:80, pod a/there"
