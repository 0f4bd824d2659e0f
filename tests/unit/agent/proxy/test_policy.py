"""What NetworkPolicies allow: the chains, followed packet by packet, agree with a naive reading of the API."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.proxy import policy
from agent.proxy.policy import Pod, dns_pod, plan, pod_of
from agent.proxy.trace import Packet, walk
from controlplane.machinery import selectors

NAMESPACES = {"red": {"team": "red"}, "blue": {"team": "blue"}, "kube-system": {}}
PODS = [Pod("red", "web", "10.1.0.2", {"app": "web"}, (("http", "tcp", 8080),), True),
        Pod("red", "db", "10.1.0.3", {"app": "db"}, (("http", "tcp", 9090),), True),
        Pod("blue", "web", "10.1.1.4", {"app": "web"}, (("http", "tcp", 8081),)),
        dns_pod("10.96.0.10")]
OUTSIDE = [Pod("", "", a, {}) for a in ("192.0.2.5", "192.0.2.77", "198.51.100.1")]


def allowed_side(policies: list[dict], direction: str, mine: Pod, other: Pod, protocol: str, number: int) -> bool:
    """One direction, read naively."""
    closed = [p for p in policies if direction in policy.types(p) and p["metadata"]["namespace"] == mine.namespace
              and selectors.from_label_selector(p["spec"].get("podSelector") or {}).matches(dict(mine.labels))]
    if not closed or not mine.local or mine.address == other.address:
        return True
    receiver = mine if direction == "Ingress" else other

    def port_fits(port: dict) -> bool:
        wanted = port.get("port")
        if (port.get("protocol") or "TCP").lower() != protocol:
            return False
        if isinstance(wanted, str):
            return (wanted, protocol, number) in receiver.ports
        return wanted is None or wanted <= number <= port.get("endPort", wanted)

    def peer_fits(peer: dict, space: str) -> bool:
        if block := peer.get("ipBlock"):
            address = ipaddress.ip_address(other.address)
            return address in ipaddress.ip_network(block["cidr"]) and not any(
                address in ipaddress.ip_network(e) for e in block.get("except", ()))
        if not other.namespace:
            return False
        if "namespaceSelector" in peer:
            fine = selectors.from_label_selector(peer["namespaceSelector"]).matches(NAMESPACES[other.namespace])
        else:
            fine = other.namespace == space
        return fine and selectors.from_label_selector(peer.get("podSelector") or {}).matches(dict(other.labels))

    def fit(port: dict | None, peer: dict | None, space: str) -> bool:
        if direction == "Egress" and peer and peer.get("ipBlock") and isinstance((port or {}).get("port"), str):
            return False  # a block of addresses has no names of ports
        return (port is None or port_fits(port)) and (peer is None or peer_fits(peer, space))

    return any(fit(port, peer, p["metadata"]["namespace"])
               for p in closed for key in ["from" if direction == "Ingress" else "to"]
               for rule in p["spec"].get(direction.lower()) or ()
               for port in rule.get("ports") or [None] for peer in rule.get(key) or [None])


def traced(chains: dict[str, tuple[str, ...]], packet: Packet) -> bool:
    parsed = {name: [rule.split() for rule in rules] for name, rules in chains.items()}
    return not any(verdict == "DROP" for verdict, _ in walk(parsed, policy.DISPATCH, {packet})[1])


apps = st.sampled_from([{}, {"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "db"}}])
spaces = st.sampled_from([{}, {"matchLabels": {"team": "blue"}}])
blocks = st.sampled_from([{"cidr": "192.0.2.0/24"}, {"cidr": "192.0.2.0/24", "except": ["192.0.2.64/26"]},
                          {"cidr": "10.1.1.0/24"}])
peers = st.one_of(st.fixed_dictionaries({"podSelector": apps}), st.fixed_dictionaries({"namespaceSelector": spaces}),
                  st.fixed_dictionaries({"podSelector": apps, "namespaceSelector": spaces}),
                  st.fixed_dictionaries({"ipBlock": blocks}))
ports = st.sampled_from([{"port": 8080}, {"port": "http"}, {"port": 8000, "endPort": 8100}, {"protocol": "UDP"},
                         {"protocol": "UDP", "port": 53}])


def rules(key: str) -> st.SearchStrategy:
    return st.lists(st.fixed_dictionaries({key: st.lists(peers, max_size=2), "ports": st.lists(ports, max_size=2)}),
                    max_size=2)


specs = st.fixed_dictionaries({"podSelector": apps, "ingress": rules("from"), "egress": rules("to"),
                               "policyTypes": st.sampled_from([[], ["Ingress"], ["Egress"], ["Ingress", "Egress"]])})


@settings(max_examples=100, deadline=None)
@given(st.lists(specs, max_size=3))
def test_rules_agree_with_the_naive_reading(given_specs: list[dict]) -> None:
    policies = [{"metadata": {"namespace": "red", "name": f"p{i}"}, "spec": s} for i, s in enumerate(given_specs)]
    chains = plan(policies, PODS, NAMESPACES)
    for source in (*PODS[:3], *OUTSIDE):
        for target in (*PODS, *OUTSIDE):
            for protocol, number in (("tcp", 8080), ("tcp", 9090), ("tcp", 8081), ("udp", 53), ("tcp", 22)):
                naive = (allowed_side(policies, "Egress", source, target, protocol, number)
                         and allowed_side(policies, "Ingress", target, source, protocol, number))
                packet = Packet(source.address, target.address, protocol, number)
                assert traced(chains, packet) == naive, (packet, chains)


def test_names_are_short_and_stay() -> None:
    deny = {"metadata": {"namespace": "red", "name": "deny"}, "spec": {"podSelector": {}}}
    allow = {"metadata": {"namespace": "red", "name": "allow"}, "spec": {
        "podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}}
    before, after = (plan([deny, allow], pods, NAMESPACES) for pods in (PODS[:1], PODS[:2]))
    assert all(len(name) <= 28 and name.startswith(policy.PREFIX) for name in after)
    touched = {n for n in after if before.get(n) != after[n]}
    assert len(touched) == 3  # the dispatcher, the new pod's chain, and the peers
    assert plan([], PODS, NAMESPACES) == {} == plan([deny], [replace(PODS[0], local=False)], NAMESPACES)


def test_pods_that_rules_are_made_for() -> None:
    pod = {"metadata": {"namespace": "a", "name": "b"}, "spec": {"nodeName": "n", "containers": [
        {"ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}]},
        "status": {"podIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}], "phase": "Running"}}
    assert pod_of(pod, "n") == Pod("a", "b", "10.0.0.1", {}, (("http", "tcp", 80),), True)
    assert pod_of({**pod, "spec": {**pod["spec"], "hostNetwork": True}}, "n") is None
    assert pod_of({**pod, "status": {"phase": "Succeeded", "podIP": "10.0.0.1"}}, "n") is None
