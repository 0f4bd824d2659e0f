"""The Service API in one page of plain Python, against both writers' rules: every packet must fare as it says."""

from __future__ import annotations

import ipaddress
import itertools
import re
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.proxy import iptables, rules
from agent.proxy.maps import MapSet
from agent.proxy.model import service_ports
from agent.proxy.nfttrace import Table
from agent.proxy.trace import Packet, outcomes, parse

PODS, NODE, OUTSIDE = "10.244.0.0/16", "192.168.77.1", "198.51.100.7"
HERE, THERE = ["10.244.1.2", "10.244.1.3"], ["10.244.2.2"]
RANGE = "198.51.100.0/24"


def naive(services: list[tuple[dict, list[dict]]], packet: Packet) -> set[str]:
    """What the documentation of Services promises for the first packet of a connection."""
    inside = ipaddress.ip_address(packet.src) in ipaddress.ip_network(PODS)
    for service, endpoints in services:
        spec, port = service["spec"], service["spec"]["ports"][0]
        if port["protocol"].lower() != packet.protocol:
            continue
        vips = spec.get("externalIPs", []) + [i["ip"] for i in service["status"]["loadBalancer"].get("ingress", [])]
        internal = (packet.dst, packet.dport) == (spec["clusterIP"], port["port"])
        balancer = packet.dport == port["port"] and packet.dst in vips
        node_port = packet.to_node and packet.dport == port.get("nodePort")
        if not (internal or balancer or node_port):
            continue
        barred = spec.get("loadBalancerSourceRanges") and ipaddress.ip_address(packet.src) not in ipaddress.ip_network(
            RANGE)
        if barred and packet.dst.startswith("203.0.113.") and balancer and usable(endpoints):
            return {"DROP"}
        everywhere, here = usable(endpoints), usable([e for e in endpoints if e["nodeName"] == "me"])
        local = spec.get("internalTrafficPolicy") == "Local" if internal else (
            spec.get("externalTrafficPolicy") == "Local")
        near = local and (internal or not (inside or packet.from_node))  # who is in the cluster is sent anywhere
        if not everywhere:
            return {"REJECT"}
        if local and not here and not (not internal and (inside or packet.from_node)):
            return {"DROP"}
        masked = (not internal and not local) or (internal and not inside) or (not internal and packet.from_node)
        return {f"{a}:8080" + (" masqueraded" if masked or a == packet.src else "") for a in (here if near else
                                                                                           everywhere)}
    return {"pass"}


def usable(endpoints: list[dict]) -> list[str]:
    ready = [e["addresses"][0] for e in endpoints if e["conditions"]["ready"]]
    return ready or [e["addresses"][0] for e in endpoints if e["conditions"]["terminating"]]


def built(number: int, traits: dict[str, Any]) -> tuple[dict, list[dict]]:
    endpoints = [{"addresses": [a], "nodeName": "me" if a in HERE else "other",
                  "conditions": {"ready": ready, "serving": True, "terminating": not ready}}
                 for a, ready in sorted(traits["endpoints"].items())]
    spec = {"clusterIP": f"10.96.0.{number}", "type": traits["type"], "ports": [{
        "port": 80, "protocol": traits["protocol"], **({} if traits["type"] == "ClusterIP" else {
            "nodePort": 30000 + number})}], "internalTrafficPolicy": traits["internal"]}
    ingress = []
    if traits["type"] != "ClusterIP":
        spec["externalTrafficPolicy"] = traits["external"]
    if traits["type"] == "LoadBalancer":
        ingress = [{"ip": f"203.0.113.{number}"}]
        spec |= {"loadBalancerSourceRanges": [RANGE]} if traits["ranges"] else {}
    if traits["outside"]:
        spec["externalIPs"] = [f"203.0.114.{number}"]
    if traits["affinity"]:
        spec["sessionAffinity"] = "ClientIP"
    return {"metadata": {"namespace": "t", "name": f"s{number}"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress} if ingress else {}}}, endpoints


TRAITS = st.fixed_dictionaries({
    "type": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]), "protocol": st.sampled_from(["TCP", "UDP"]),
    "endpoints": st.dictionaries(st.sampled_from(HERE + THERE), st.booleans()), "affinity": st.booleans(),
    "internal": st.sampled_from(["Cluster", "Cluster", "Local"]), "external": st.sampled_from(["Cluster", "Local"]),
    "ranges": st.booleans(), "outside": st.booleans()})


def in_family(value: Any, family: int) -> Any:
    """The same with every IPv4 address in it as one of `family`."""
    if family == 4:
        return value
    if isinstance(value, dict):
        return {key: in_family(one, family) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(in_family(one, family) for one in value)

    def six(found: re.Match[str]) -> str:
        text, length, port = found.groups()
        address = str(ipaddress.IPv6Address(0xFD00 << 112 | int(ipaddress.IPv4Address(text))))
        return f"[{address}]:{port}" if port else f"{address}/{96 + int(length)}" if length else address
    return re.sub(r"(\d+(?:\.\d+){3})(?:/(\d+))?(?::(\d+))?", six, value) if isinstance(value, str) else value


def packets(count: int) -> list[Packet]:
    sources = [(HERE[0], False), ("10.244.1.9", False), (OUTSIDE, False), ("192.0.2.1", False), (NODE, True)]
    targets = [(f"{net}.{n}", 80, False) for net in ("10.96.0", "203.0.113", "203.0.114") for n in range(1, count + 1)]
    targets += [(NODE, 30000 + n, True) for n in range(1, count + 1)] + [("198.51.100.99", 443, False)]
    return [Packet(s, d, protocol, p, from_node, to_node, node_addresses=frozenset((NODE,)))
            for (s, from_node), (d, p, to_node), protocol in itertools.product(sources, targets, ("tcp", "udp"))]


@pytest.mark.parametrize("family", [4, 6])
@settings(max_examples=40, deadline=None)
@given(st.lists(TRAITS, min_size=1, max_size=3))
def test_rules_do_what_services_promise(family: int, traits: list[dict[str, Any]]) -> None:
    services = [built(number, one) for number, one in enumerate(traits, 1)]
    wanted = {("t", s["metadata"]["name"]): service_ports(in_family(s, family), [{
        "addressType": f"IPv{family}", "ports": [{"port": 8080, "protocol": s["spec"]["ports"][0]["protocol"]}],
        "endpoints": in_family(endpoints, family)}], "me", family) for s, endpoints in services}
    pods = in_family(PODS, family)
    made = rules.RuleSet(pods, family)
    made.update(wanted)
    tables = parse("".join(iptables.batches(rules.Change(made.everything()), hooks=rules.HOOKS)))
    maps = MapSet(pods, family)
    maps.update(wanted)
    everything = maps.everything()
    table = Table({**maps.chains.base(), **everything.chains}, everything.add)
    for packet in packets(len(services)):
        promised = in_family(naive(services, packet), family)
        outward = packet.from_node and packet.dst.startswith("203.0.11") and promised <= {"REJECT", "DROP"}
        moved = Packet(**in_family(asdict(packet), family))
        found = outcomes(tables, moved)  # what this node itself sends out is not held back, as with upstream's rules
        assert found == promised or (outward and found == {"pass"}), ("iptables", packet)
        stray = promised == {"pass"} and packet.dst.startswith("10.96.0.")  # a port no Service has: refused at once
        assert table.outcomes(moved) == ({"REJECT"} if stray else promised), ("nftables", packet)
