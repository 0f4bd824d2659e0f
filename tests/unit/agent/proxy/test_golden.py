"""Our lean chains do to every packet what upstream's do: both traced for the same twelve services."""

from __future__ import annotations

import itertools
from pathlib import Path

from agent.proxy import iptables, rules
from agent.proxy.model import service_ports
from agent.proxy.trace import Packet, outcomes, parse

GOLDEN = Path(__file__).parent / "data/kube-proxy-1.36.rules"
PODS, NODE = "10.128.0.0/9", "192.168.77.1"
HERE, THERE = ("10.128.0.5", "node0"), ("10.128.1.5", "node1")


def service(name: str, ip: str, endpoints: list[tuple], *, node_port: int = 0, kind: str = "ClusterIP", balancer="",
            port: int = 80, protocol: str = "TCP", terminating: bool = False, namespace: str = "ns1", port_name="p80",
            **spec) -> tuple[dict, list[dict]]:
    made = {"metadata": {"namespace": namespace, "name": name},
            "spec": {"type": kind, "clusterIP": ip, "clusterIPs": [ip], **spec,
                     "ports": [{"name": port_name, "protocol": protocol, "port": port, "nodePort": node_port}]}}
    if balancer:
        made["status"] = {"loadBalancer": {"ingress": [{"ip": balancer}]}}
    conditions = {"ready": not terminating, "serving": True, "terminating": terminating}
    piece = {"metadata": {"namespace": namespace}, "addressType": "IPv4",
             "ports": [{"name": port_name, "protocol": protocol, "port": 8080}],
             "endpoints": [{"addresses": [a], "nodeName": n, "conditions": conditions} for a, n in endpoints]}
    return made, [piece]


LOCAL = {"externalTrafficPolicy": "Local", "kind": "LoadBalancer"}
SERVICES = [
    service("plain", "10.96.0.10", [HERE, THERE]),
    service("aff", "10.96.0.11", [HERE, THERE], sessionAffinity="ClientIP"),
    service("np", "10.96.0.12", [HERE, THERE], kind="NodePort", node_port=30080),
    service("lbl", "10.96.0.13", [HERE, THERE], node_port=30081, balancer="203.0.113.4", healthCheckNodePort=32000,
            **LOCAL),
    service("lbl-nolocal", "10.96.0.14", [THERE], node_port=30082, balancer="203.0.113.5", healthCheckNodePort=32001,
            **LOCAL),
    service("itp", "10.96.0.15", [HERE, THERE], internalTrafficPolicy="Local"),
    service("itp-nolocal", "10.96.0.16", [THERE], internalTrafficPolicy="Local"),
    service("none", "10.96.0.17", [], node_port=30087, balancer="203.0.113.7", kind="LoadBalancer"),
    service("ranges", "10.96.0.18", [THERE], node_port=30088, balancer="203.0.113.8", kind="LoadBalancer",
            loadBalancerSourceRanges=["192.0.2.0/24"]),
    service("ext", "10.96.0.19", [THERE], externalIPs=["203.0.113.9"]),
    service("term", "10.96.0.20", [HERE, THERE], terminating=True),
    service("dns", "10.96.0.53", [("10.128.0.6", "node0"), ("10.128.1.6", "node1")], port=53, protocol="UDP",
            namespace="kube-system", port_name="dns"),
]


def ours() -> str:
    made = rules.RuleSet(PODS)
    for one, slices in SERVICES:
        meta = one["metadata"]
        made.update({(meta["namespace"], meta["name"]): service_ports(one, slices, "node0")})
    return "".join(iptables.batches(rules.Change(made.everything()), hooks=rules.HOOKS))


def packets() -> list[Packet]:
    sources = [("10.128.0.5", False), ("10.128.0.6", False), ("10.128.0.9", False), ("10.128.1.5", False),
               ("198.51.100.7", False), ("192.0.2.9", False), (NODE, True), ("127.0.0.1", True)]
    addresses = [f"10.96.0.{n}" for n in (*range(10, 21), 53, 99)] + [f"203.0.113.{n}" for n in (4, 5, 7, 8, 9, 10)]
    targets = [(a, p, False) for a in addresses for p in (80, 53, 81)]
    targets += [(a, p, True) for a in (NODE, "127.0.0.1")
                for p in (30080, 30081, 30082, 30087, 30088, 32000, 32002, 80)]
    targets += [("10.128.0.5", 8080, False), ("198.51.100.7", 443, False)]
    return [Packet(s, d, protocol, p, from_node, to_node)
            for (s, from_node), (d, p, to_node), protocol in itertools.product(sources, targets, ("tcp", "udp"))
            # A pod of another node meets a cluster IP's rules there, never here: our chains do not provide for it.
            if not (s == THERE[0] and d.startswith("10.96."))]


def test_every_packet_fares_as_with_upstream() -> None:
    theirs, mine = parse(GOLDEN.read_text()), parse(ours())
    compared = packets()
    different = [(p, outcomes(theirs, p), outcomes(mine, p)) for p in compared
                 if outcomes(theirs, p) != outcomes(mine, p)]
    assert different[:5] == []
    seen = {kind for p in compared for o in outcomes(mine, p) for kind in [o.split()[-1] if " " in o else o]}
    assert {"REJECT", "DROP", "pass", "masqueraded", "10.128.1.5:8080"} <= seen  # the packets do tell them apart


def test_chain_names_are_upstreams() -> None:
    theirs, mine = parse(GOLDEN.read_text()), parse(ours())
    names = {n for n in theirs["nat"] if n.startswith(("KUBE-SVC-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SVL-"))}
    assert names == {n for n in mine["nat"] if n.startswith(("KUBE-SVC-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SVL-"))}
    assert {n for n in mine["nat"] if "KUBE-SEP-" in n} < {n for n in theirs["nat"] if "KUBE-SEP-" in n}  # leaner
