"""Real connections by all that Services can ask for: balancers, outside addresses, policies, affinity, health."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from agent.proxy import nftables, nfttrace, trace

from . import proxynode
from .conftest import ask
from .proxynode import NODE, A, B, C, Cluster, endpoints, pod, service

pytestmark = pytest.mark.kernel
cluster = proxynode.cluster
EXT = "192.168.77.2"


def balanced(name: str, ip: str, vip: str, node_port: int, **spec: object) -> dict:
    made = service(name, ip, node_port=node_port, type="LoadBalancer", **spec)
    return {**made, "status": {"loadBalancer": {"ingress": [{"ip": vip, "ipMode": "VIP"}]}}}


@pytest.fixture(scope="module", autouse=True)
def outside_way(cluster: Cluster) -> None:
    """Somebody outside finds balancer and external addresses by way of the node."""
    cluster.ext.sh(f"ip route add 203.0.113.0/24 via {NODE}")


def test_balancer_addresses_with_source_ranges_and_external_ips(cluster: Cluster) -> None:
    cluster.put(balanced("lb", "10.96.3.1", "203.0.113.1", 30301), endpoints("lb", A),
                balanced("open", "10.96.3.2", "203.0.113.2", 30302,
                         loadBalancerSourceRanges=[f"{EXT}/32"]), endpoints("open", A),
                balanced("shut", "10.96.3.3", "203.0.113.3", 30303,
                         loadBalancerSourceRanges=["198.51.100.0/24", "192.0.2.1/32"]), endpoints("shut", A),
                balanced("none", "10.96.3.4", "203.0.113.4", 30304),
                service("xip", "10.96.3.5", externalIPs=["203.0.113.5"]), endpoints("xip", C))
    assert cluster.ext.tcp("203.0.113.1", 80) == f"a|{cluster_side(cluster)}"
    assert cluster.b.tcp("203.0.113.1", 80).startswith("a|")
    assert cluster.ext.tcp("203.0.113.2", 80).startswith("a|")
    assert cluster.ext.tcp("203.0.113.3", 80, timeout=0.4) == "TIMEOUT"
    assert cluster.ext.tcp(NODE, 30303).startswith("a|")  # the ranges are the balancer's, not the node port's
    assert cluster.ext.tcp("203.0.113.4", 80) == "REFUSED"
    assert cluster.ext.tcp("203.0.113.5", 80).startswith("c|") and cluster.a.tcp("203.0.113.5", 80).startswith("c|")


def cluster_side(cluster: Cluster) -> str:
    """What a pod here sees of masqueraded traffic: the address the node's routes prefer."""
    return NODE if "192.168.77.1" in cluster.node.sh(f"ip route get {A}") else "192.168.78.1"


def test_policy_local_keeps_to_this_node_and_tells_balancers(cluster: Cluster) -> None:
    cluster.put(balanced("loc", "10.96.3.10", "203.0.113.10", 30310, externalTrafficPolicy="Local",
                         healthCheckNodePort=30399), endpoints("loc", A, C),
                service("in", "10.96.3.11", internalTrafficPolicy="Local"), endpoints("in", B, C),
                service("out", "10.96.3.12", internalTrafficPolicy="Local"), endpoints("out", C))
    for address, port in (("203.0.113.10", 80), (NODE, 30310)):
        assert {cluster.ext.tcp(address, port) for _ in range(12)} == {f"a|{EXT}"}
        assert {cluster.b.tcp(address, port).split("|")[0] for _ in range(30)} == {"a", "c"}
    assert {cluster.a.tcp("10.96.3.11", 80).split("|")[0] for _ in range(12)} == {"b"}
    assert cluster.a.tcp("10.96.3.12", 80, timeout=0.4) == "TIMEOUT"
    assert health(cluster) == (200, 1)
    cluster.put(endpoints("loc", A, terminating=True))  # it still serves, but balancers shall look elsewhere
    cluster.until(lambda: health(cluster) == (503, 0))
    assert cluster.ext.tcp("203.0.113.10", 80) == f"a|{EXT}"
    cluster.put(endpoints("loc", C))
    cluster.until(lambda: health(cluster) == (503, 0))
    assert cluster.ext.tcp("203.0.113.10", 80, timeout=0.4) == "TIMEOUT"


def health(cluster: Cluster) -> tuple[int, int]:
    def ask_it() -> tuple[int, int]:
        try:
            with urllib.request.urlopen(f"http://{NODE}:30399/", timeout=2) as answer:
                return answer.status, json.load(answer)["localEndpoints"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["localEndpoints"]
    return cluster.node.run(ask_it)


def test_affinity_ends_with_its_time_and_can_be_switched(cluster: Cluster) -> None:
    def clients() -> set[str]:
        return {cluster.ext.tcp("10.96.3.20", 80).split("|")[0] for _ in range(12)}

    sticky = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}
    cluster.put(service("aff", "10.96.3.20", **sticky), endpoints("aff", A, B, C))
    assert len(clients()) == 1
    met: set[str] = set()
    cluster.until(lambda: len(met.__ior__(wait_and(clients))) > 1)
    cluster.put(service("aff", "10.96.3.20"))
    assert len({*clients(), *clients(), *clients()}) == 3
    cluster.put(service("aff", "10.96.3.20", sessionAffinity="ClientIP"))
    assert len({*clients(), *clients()}) == 1
    bound = clients()
    cluster.stop()
    cluster.start()
    assert {*clients(), *clients()} == bound  # also by a proxy that is started anew
    cluster.put(endpoints("aff", B))
    assert clients() == {"b"}  # the endpoint it was bound to may be gone


def wait_and(then):
    """The shortest affinity there is lasts a second; nothing tells of its end but the next connection."""
    threading.Event().wait(1.2)
    return then()


def test_node_ports_on_loopback_and_no_martians(cluster: Cluster) -> None:
    cluster.put(service("lo", "10.96.3.30", node_port=30330), endpoints("lo", A, C))
    assert {cluster.node.tcp("127.0.0.1", 30330).split("|")[0] for _ in range(12)} == {"a", "c"}
    cluster.ext.sh("sysctl -qw net.ipv4.conf.all.route_localnet=1;"  # it would take an answer
                   f"ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via {NODE}")
    with cluster.node.run(lambda: socket.create_server(("127.0.0.1", 9999))) as server:
        server.setblocking(False)
        before = received(cluster)
        assert cluster.ext.tcp("127.0.0.1", 9999, timeout=0.4) == "TIMEOUT" and received(cluster) > before
        with pytest.raises(BlockingIOError):
            server.accept()  # what only this node may reach stays so
    cluster.ext.sh(f"ip route del 127.0.0.0/8 via {NODE}; ip addr add 127.0.0.1/8 dev lo")


def received(cluster: Cluster) -> int:
    """Packets that came from outside."""
    return json.loads(cluster.node.sh("ip -s -j link show to77"))[0]["stats64"]["rx"]["packets"]


def test_ports_have_names_and_endpoints_may_lie_outside(cluster: Cluster) -> None:
    """Also of a Service without a selector, whose slices somebody wrote by hand."""
    ports = [{"name": "hail", "port": 80, "nodePort": 30321}, {"name": "more", "port": 443, "nodePort": 30322},
             {"name": "ask", "port": 53, "protocol": "UDP", "nodePort": 30321}]
    here, there = endpoints("ways", A), endpoints("ways", EXT)
    here["ports"] = [{"name": "hail", "port": 8080}, {"name": "ask", "port": 8081, "protocol": "UDP"}]
    there |= {"metadata": {**there["metadata"], "name": "by-hand"}, "ports": [{"name": "more", "port": 8080}]}
    there["endpoints"] = [{"addresses": [EXT]}]
    made = service("ways", "10.96.3.21", type="NodePort")
    made["spec"]["ports"] = ports
    cluster.ext.serve("out")
    cluster.put(made, here, there)
    for client in (cluster.b, cluster.node, cluster.other):
        for address, hail, more, question in (("10.96.3.21", 80, 443, 53), (NODE, 30321, 30322, 30321)):
            assert client.tcp(address, hail).startswith("a|") and client.tcp(address, more).startswith("out|")
            assert ask(client.udp_socket(), address, question).startswith("a|")


def test_traffic_stays_in_the_zone_and_on_the_node_it_is_hinted_for(cluster: Cluster) -> None:
    def zone(**labels: str) -> None:
        cluster.loop.call_soon_threadsafe(cluster.api.change, "nodes", "MODIFIED", {
            "metadata": {"name": "n1", "labels": labels}, "spec": {}, "status": {}})

    def reached() -> set[str]:
        return {cluster.b.tcp("10.96.3.22", 80).split("|")[0] for _ in range(24)}

    pieces = endpoints("near", A, B, C)
    for entry, place in zip(pieces["endpoints"], ("east", "east", "west")):
        entry["hints"] = {"forZones": [{"name": place}]}
    cluster.put(service("near", "10.96.3.22"), pieces)
    assert reached() == {"a", "b", "c"}  # this node is in no zone
    zone(**{"topology.kubernetes.io/zone": "east"})
    cluster.until(lambda: reached() == {"a", "b"})
    for entry, name in zip(pieces["endpoints"], ("n1", "n2", "n3")):
        entry["hints"]["forNodes"] = [{"name": name}]
    cluster.put(pieces)
    cluster.until(lambda: reached() == {"a"})
    zone()
    cluster.put(endpoints("near", A, B, C))
    cluster.until(lambda: reached() == {"a", "b", "c"})


def test_what_changed_while_nobody_followed_is_made_good(cluster: Cluster) -> None:
    client = cluster.b.udp_socket()
    cluster.put(service("quiet", "10.96.3.23", 53, "UDP"), endpoints("quiet", A, port=8081, protocol="UDP"))
    assert ask(client, "10.96.3.23", 53) == f"a|{B}"
    cluster.stop()
    cluster.api.change("endpointslices", "MODIFIED", endpoints("quiet", C, port=8081, protocol="UDP"))
    assert ask(client, "10.96.3.23", 53) == f"a|{B}"  # the rules and the connection outlive the proxy
    cluster.start()
    cluster.until(lambda: ask(client, "10.96.3.23", 53) == f"c|{B}")


def test_connections_to_pods_that_went_meanwhile_are_reset(cluster: Cluster) -> None:
    cluster.put(service("lost", "10.96.3.24"), endpoints("lost", C), service("kept", "10.96.3.25"),
                endpoints("kept", A))
    lost, kept = cluster.b.connect("10.96.3.24", 80), cluster.b.connect("10.96.3.25", 80)
    assert lost.recv(100) == f"c|{B}".encode() and kept.recv(100) == f"a|{B}".encode()
    cluster.stop()
    cluster.other.sh(f"ip addr del {C}/32 dev lo; ip route add blackhole {C}/32")
    cluster.api.change("pods", "DELETED", pod(C))
    for key, piece in list(cluster.api.objects["endpointslices"].items()):  # nobody names its address any more
        if any(C in entry["addresses"] for entry in piece["endpoints"]):
            cluster.api.change("endpointslices", "MODIFIED", endpoints(key[1].removesuffix("-x"), A))
    cluster.api.change("endpointslices", "MODIFIED", endpoints("kept", B))  # this one only left its Service
    cluster.start()
    cluster.until(lambda: f"src={C} " not in cluster.node.sh("conntrack -L 2>/dev/null"))
    lost.sendall(b"anybody?")
    with pytest.raises(ConnectionResetError):
        lost.recv(100)
    kept.sendall(b"still here")
    assert kept.recv(100) == b"still here"
    cluster.other.sh(f"ip route del blackhole {C}/32; ip addr add {C}/32 dev lo")
    cluster.loop.call_soon_threadsafe(cluster.api.change, "pods", "ADDED", pod(C))


def test_sctp_is_balanced_like_the_others(cluster: Cluster) -> None:
    cluster.put(service("sctp", "10.96.3.40", 132, "SCTP"), endpoints("sctp", A, protocol="SCTP"))
    shown = cluster.node.sh("nft list map ip pelamis-proxy endpoints") if cluster.mode == "nftables" else str(
        cluster.rules())
    assert ("10.96.3.40 . sctp . 132 . 0x00000000 : 10.244.1.2 . 8080" if cluster.mode == "nftables"
            else "-p sctp") in shown


def test_ready_endpoints_before_draining_ones_and_unready_on_request(cluster: Cluster) -> None:
    both = endpoints("drain", A, B)
    both["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    cluster.put(service("drain", "10.96.3.50"), both)
    assert {cluster.node.tcp("10.96.3.50", 80).split("|")[0] for _ in range(12)} == {"b"}
    published = endpoints("early", A)  # what the controller writes for publishNotReadyAddresses
    published["endpoints"][0]["conditions"] = {"ready": True, "serving": False, "terminating": False}
    cluster.put(service("early", "10.96.3.51", publishNotReadyAddresses=True), published)
    assert cluster.node.tcp("10.96.3.51", 80).startswith("a|")


def test_udp_to_a_node_port_follows_its_endpoints(cluster: Cluster) -> None:
    link = cluster.ext.udp_socket()
    cluster.put(service("unp", "10.96.3.60", 53, "UDP", node_port=30360))
    assert ask(link, NODE, 30360) in ("REFUSED", "TIMEOUT")
    cluster.put(endpoints("unp", A, port=8081, protocol="UDP"))
    assert ask(link, NODE, 30360).startswith("a|")
    cluster.put(endpoints("unp", B, port=8081, protocol="UDP"))
    assert ask(link, NODE, 30360).startswith("b|")


def test_what_the_host_lacks_is_told_and_harms_nobody(cluster: Cluster, monkeypatch, tmp_path, caplog) -> None:
    if cluster.mode == "nftables":
        pytest.skip("all expressions it uses are in the kernel's nf_tables")
    cluster.put(service("kept", "10.96.3.80"), endpoints("kept", A))
    for library in next(Path("/usr/lib").glob("*/xtables")).iterdir():
        if library.name != "libxt_recent.so":  # affinity
            (tmp_path / library.name).symlink_to(library)
    monkeypatch.setenv("XTABLES_LIBDIR", str(tmp_path))
    failures = cluster.proxy.report.failures
    for one in (service("sticky", "10.96.3.81", sessionAffinity="ClientIP"), endpoints("sticky", A)):
        plural = "services" if "spec" in one else "endpointslices"
        cluster.loop.call_soon_threadsafe(cluster.api.change, plural, "MODIFIED", one)
    cluster.until(lambda: cluster.proxy.report.failures > failures)
    assert "service rules could not be written" in caplog.text and "recent" in caplog.text
    assert cluster.b.tcp("10.96.3.80", 80) == f"a|{B}"
    monkeypatch.undo()
    cluster.until(lambda: cluster.b.tcp("10.96.3.81", 80) == f"a|{B}")


def test_the_proxy_tells_of_itself(cluster: Cluster) -> None:
    def page(url: str) -> str:
        return cluster.node.run(lambda: urllib.request.urlopen(url, timeout=2).read().decode())

    assert json.loads(page(f"http://{NODE}:10256/healthz"))["nodeEligible"] is True
    assert page("http://127.0.0.1:10249/proxyMode") == cluster.mode
    figures = page("http://127.0.0.1:10249/metrics")
    assert 'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}' in figures
    assert "kubeproxy_sync_proxy_rules_service_changes_total " in figures


def test_a_node_that_is_about_to_go_gets_no_new_connections_from_balancers(cluster: Cluster) -> None:
    def status(path: str) -> int:
        def ask() -> int:
            link = http.client.HTTPConnection(NODE, 10256, timeout=2)
            link.request("GET", path)
            return link.getresponse().status
        return cluster.node.run(ask)

    def node(kind: str, *taints: str) -> None:
        cluster.loop.call_soon_threadsafe(cluster.api.change, "nodes", kind, {
            "metadata": {"name": "n1"}, "spec": {"taints": [{"key": key} for key in taints]}, "status": {}})

    node("MODIFIED", "example.com/other")
    assert (status("/healthz"), status("/livez")) == (200, 200)
    node("MODIFIED", "ToBeDeletedByClusterAutoscaler")
    cluster.until(lambda: status("/healthz") == 503)
    assert status("/livez") == 200
    node("MODIFIED")
    cluster.until(lambda: status("/healthz") == 200)
    node("DELETED")


def test_the_kernels_own_rules_are_traced(cluster: Cluster) -> None:
    cluster.put(service("seen", "10.96.3.70", sessionAffinity="ClientIP"), endpoints("seen", A, C),
                service("empty", "10.96.3.71"))
    if cluster.mode == "nftables":
        found = cluster.node.run(nftables.read)
        follow = nfttrace.Table(*found).outcomes
    else:
        tables = trace.parse(cluster.node.run(cluster.backend.save))

        def follow(packet: trace.Packet) -> set[str]:
            return trace.outcomes(tables, packet)

    assert follow(trace.Packet(B, "10.96.3.70")) == {f"{A}:8080", f"{C}:8080"}
    assert follow(trace.Packet(A, "10.96.3.70")) == {f"{A}:8080 masqueraded", f"{C}:8080"}
    assert follow(trace.Packet(B, "10.96.3.71")) == {"REJECT"}
