"""Real connections through the proxy's rules, by both variants of iptables and by nftables: what Services promise."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from agent.proxy import nftables, side
from agent.proxy.cleanup import cleanup
from agent.proxy.guard import Guard
from netsetup import flows, xtables
from netsetup.nftables import Table
from netsetup.rtnetlink import attributes

from . import proxynode
from .conftest import Namespace, ask
from .proxynode import NODE, A, B, C, Cluster, endpoints, pod, service

pytestmark = pytest.mark.kernel
cluster = proxynode.cluster


def labels(client: Namespace, address: str, port: int, times: int) -> Counter[str]:
    return Counter(client.tcp(address, port).split("|")[0] for _ in range(times))


def test_cluster_ip_reaches_every_endpoint_from_everywhere(cluster: Cluster) -> None:
    cluster.put(service("all", "10.96.0.10"), endpoints("all", A, B, C))
    for client in (cluster.a, cluster.node):
        counts = labels(client, "10.96.0.10", 80, 60)
        assert set(counts) == {"a", "b", "c"} and min(counts.values()) >= 5
    cluster.put(endpoints("all", B))
    assert cluster.a.tcp("10.96.0.10", 80) == f"b|{A}"  # a pod keeps its address
    assert cluster.ext.tcp("10.96.0.10", 80) == f"b|{NODE}"  # somebody outside does not: the answer must come back


def test_hairpin_node_port_affinity_and_refusal(cluster: Cluster) -> None:
    cluster.put(service("hair", "10.96.0.11", node_port=30080), endpoints("hair", A),
                service("aff", "10.96.0.12", sessionAffinity="ClientIP"), endpoints("aff", A, B, C),
                service("none", "10.96.0.13", node_port=30083),
                service("local", "10.96.0.14", node_port=30084, externalTrafficPolicy="Local"), endpoints("local", A),
                service("far", "10.96.0.15", node_port=30085, externalTrafficPolicy="Local"), endpoints("far", C),
                service("draining", "10.96.0.16"), endpoints("draining", A, terminating=True))
    answer = cluster.a.tcp("10.96.0.11", 80)
    assert answer.startswith("a|") and A not in answer  # a pod reaches itself, seen under another address
    assert cluster.ext.tcp(NODE, 30080).startswith("a|") and "192.168.77.2" not in cluster.ext.tcp(NODE, 30080)
    assert cluster.node.tcp("127.0.0.1", 30080).startswith("a|")
    assert cluster.b.tcp(NODE, 30080).startswith("a|")
    assert len(labels(cluster.b, "10.96.0.12", 80, 15)) == 1
    for client in (cluster.a, cluster.node, cluster.ext):
        assert client.tcp("10.96.0.13", 80) == "REFUSED"
    assert cluster.ext.tcp(NODE, 30083) == "REFUSED"
    assert cluster.ext.tcp(NODE, 30084) == "a|192.168.77.2"  # policy Local keeps the client's address
    assert cluster.ext.tcp(NODE, 30085, timeout=0.3) == "TIMEOUT"  # and drops without an endpoint here
    assert cluster.b.tcp(NODE, 30085).startswith("c|")  # but not what pods send
    assert cluster.b.tcp("10.96.0.16", 80) == f"a|{B}"
    cluster.put(service("hair", "10.96.0.11", node_port=30080), endpoints("hair", A), kind="DELETED")
    assert cluster.ext.tcp(NODE, 30080) == "REFUSED"  # nobody listens there any more


def test_established_connections_survive_and_only_what_changed_is_written(cluster: Cluster, monkeypatch) -> None:
    cluster.put(service("one", "10.96.1.10"), endpoints("one", A, C), service("two", "10.96.1.11"),
                endpoints("two", A, B, C))
    cluster.put(endpoints("one", A))
    link = cluster.b.connect("10.96.1.10", 80)
    assert link.recv(100) == f"a|{B}".encode()
    if cluster.mode == "nftables":
        pytest.skip("what is written there is counted in its own test")
    written: list[str] = []
    restore, flush = xtables.Backend.restore, Table.flush
    monkeypatch.setattr(xtables.Backend, "restore", lambda self, text: (
        written.extend(line.split()[0][1:] for line in text.splitlines() if line[0] == ":"), restore(self, text))[1])
    monkeypatch.setattr(Table, "flush", lambda self, name: (written.append(name), flush(self, name))[1])
    before = cluster.rules()
    cluster.put(endpoints("one", C))
    after = cluster.rules()
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"
    assert cluster.b.tcp("10.96.1.10", 80).startswith("c|")
    changed = {c for c in before.keys() | after.keys() if before.get(c) != after.get(c)}
    assert sorted(written) == sorted(changed)
    assert all(chain.startswith(("KUBE-SVC-", "KUBE-SEP-")) for chain in changed) and len(changed) == 2


def test_udp_follows_its_endpoints_on_the_same_socket(cluster: Cluster) -> None:
    link = cluster.b.udp_socket()
    cluster.put(service("dns", "10.96.0.53", 53, "UDP"))
    assert ask(link, "10.96.0.53", 53) in ("REFUSED", "TIMEOUT")
    cluster.put(endpoints("dns", A, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.53", 53) == f"a|{B}"  # the entry made without endpoints is forgotten
    cluster.put(endpoints("dns", C, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.53", 53) == f"c|{B}"  # and the one to the endpoint that went
    cluster.put(endpoints("dns", C, port=8099, protocol="UDP"))
    assert ask(link, "10.96.0.53", 53) in ("REFUSED", "TIMEOUT")  # and to the port it had: nobody is at the new one


def test_udp_stays_with_an_endpoint_that_drains(cluster: Cluster) -> None:
    link = cluster.b.udp_socket()
    cluster.put(service("stay", "10.96.0.55", 53, "UDP"), endpoints("stay", A, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.55", 53) == f"a|{B}"
    other = endpoints("stay", C, port=8081, protocol="UDP")
    other["metadata"]["name"] = "stay-y"
    cluster.put(endpoints("stay", A, port=8081, protocol="UDP", terminating=True), other)
    assert ask(cluster.b.udp_socket(), "10.96.0.55", 53) == f"c|{B}"
    assert ask(link, "10.96.0.55", 53) == f"a|{B}"  # it serves whom it has, until it is gone
    # No rule says who drains: what is written in the same round is another service's.
    cluster.put(endpoints("stay", port=8081, protocol="UDP"), service("idle", "10.96.0.57", 53, "UDP"))
    assert ask(link, "10.96.0.55", 53) == f"c|{B}"


def test_udp_finds_an_address_that_a_service_is_given_later(cluster: Cluster) -> None:
    link, kept = cluster.b.udp_socket(), cluster.b.udp_socket()
    cluster.put(service("more", "10.96.0.56", 53, "UDP"), endpoints("more", A, port=8081, protocol="UDP"))
    assert ask(kept, "10.96.0.56", 53) == f"a|{B}"
    assert ask(link, "192.0.2.56", 53) in ("REFUSED", "TIMEOUT")
    cluster.put(service("more", "10.96.0.56", 53, "UDP", externalIPs=["192.0.2.56"]))
    assert ask(link, "192.0.2.56", 53).startswith("a|")  # the entry that was made before led into the world
    assert ask(kept, "10.96.0.56", 53) == f"a|{B}"


def test_udp_follows_also_with_a_kernel_that_knows_no_filter(cluster: Cluster, monkeypatch) -> None:
    delete = flows._delete

    def unknown(link: socket.socket, message: bytes) -> None:
        if flows.CTA_FILTER in attributes(message, 20):
            raise OSError(errno.EINVAL, "no filter")
        delete(link, message)

    monkeypatch.setattr(flows, "_delete", unknown)
    link = cluster.b.udp_socket()
    cluster.put(service("old", "10.96.0.54", 53, "UDP"), endpoints("old", A, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.54", 53) == f"a|{B}"
    cluster.put(endpoints("old", C, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.54", 53) == f"c|{B}"


def test_tcp_to_a_pod_that_is_gone_is_reset_and_to_one_that_left_alive_goes_on(cluster: Cluster) -> None:
    """The pod was on another node, whose silence a client here would otherwise wait for."""
    cluster.put(service("end", "10.96.1.20"), endpoints("end", C))
    link = cluster.b.connect("10.96.1.20", 80)
    assert link.recv(100) == f"c|{B}".encode()
    cluster.put(endpoints("end", A))
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"  # it only left the Service

    cluster.put(endpoints("end", C))
    cluster.other.sh(f"ip addr del {C}/32 dev lo; ip route add blackhole {C}/32")  # whatever comes is swallowed
    cluster.loop.call_soon_threadsafe(cluster.api.change, "pods", "DELETED", pod(C))
    cluster.put(endpoints("end", A))
    cluster.until(lambda: f"src={C} " not in cluster.node.sh("conntrack -L 2>/dev/null"))
    link.sendall(b"anybody?")
    with pytest.raises(ConnectionResetError):
        link.recv(100)
    assert cluster.b.tcp("10.96.1.20", 80).startswith("a|")
    cluster.other.sh(f"ip route del blackhole {C}/32; ip addr add {C}/32 dev lo")
    cluster.loop.call_soon_threadsafe(cluster.api.change, "pods", "ADDED", pod(C))


def test_a_foreign_flush_is_healed_and_a_restart_is_not_noticed(cluster: Cluster, monkeypatch) -> None:
    monkeypatch.setattr(side, "MANY", 1)  # with more services than these, maps stand in while chains are loaded
    cluster.put(service("heal", "10.96.2.1"), endpoints("heal", A))
    cluster.until(lambda: cluster.b.tcp("10.96.2.1", 80) == f"a|{B}")
    loads = cluster.proxy.full_loads
    command = cluster.backend.command("")
    if cluster.mode == "nftables":
        cluster.node.sh("nft flush ruleset; nft delete table ip pelamis-proxy", check=False)
        assert cluster.b.tcp("10.96.2.1", 80) == f"a|{B}"  # the table is ours alone: nobody else can touch it
    else:
        cluster.node.run(lambda: subprocess.run(f"{command} -t nat -F && {command} -F && {command} -t nat -X",
                                                shell=True, check=False, capture_output=True))
        cluster.until(lambda: cluster.proxy.full_loads > loads)
        cluster.until(lambda: cluster.b.tcp("10.96.2.1", 80) == f"a|{B}")
    assert ("pelamis-proxy" in cluster.node.sh("nft list tables")) == (cluster.mode == "nftables")
    saved = cluster.rules()
    failures: list[str] = []
    over = threading.Event()

    def keep_connecting() -> None:
        while not over.is_set():
            try:
                with socket.create_connection(("10.96.2.1", 80), 5) as link:
                    link.recv(100)  # at the server's pace, or its queue of connections overflows
            except OSError as error:
                failures.append(str(error))

    client = threading.Thread(target=lambda: (cluster.b._enter(), keep_connecting()))
    client.start()
    cluster.stop()
    cluster.start()
    for also in ([B], [C], [B, C], []):  # nor are changes
        cluster.put(endpoints("heal", A, *also), service("beside", "10.96.2.2"), endpoints("beside", *also))
    over.set()
    client.join()
    assert failures == []
    cluster.put(service("beside", "10.96.2.2"), kind="DELETED")
    assert cluster.rules() == saved


def test_a_flush_while_everything_is_loaded_is_noticed(cluster: Cluster, monkeypatch) -> None:
    """By whoever starts at the same time, as Docker does when a host boots."""
    if cluster.mode == "nftables":
        pytest.skip("the table is ours alone")
    cluster.put(service("early", "10.96.2.3"), endpoints("early", A))
    cluster.stop()
    command, restore, flushed = cluster.backend.command(""), xtables.Backend.restore, threading.Event()
    cluster.node.sh(f"{command} -t nat -F")

    def with_others(self: xtables.Backend, text: str) -> None:
        restore(self, text)
        if not flushed.is_set():
            flushed.set()
            subprocess.run([command, "-t", "nat", "-F"], check=True)

    monkeypatch.setattr(xtables.Backend, "restore", with_others)
    cluster.start()
    assert flushed.is_set()
    cluster.until(lambda: cluster.b.tcp("10.96.2.3", 80) == f"a|{B}")


def test_a_guard_that_is_deaf_costs_no_events(make_namespace: Callable[[str], Namespace]) -> None:
    node = make_namespace("node")
    guard = node.run(Guard, lambda: None)

    def lose() -> None:
        node.sh("nft add table ip nat; nft add chain ip nat KUBE-SERVICES; nft delete table ip nat")

    with guard.deaf():
        lose()
        assert not guard._drain()
    lose()
    assert guard._drain()
    guard._socket.close()


def test_services_outgrow_the_room_their_maps_were_given(cluster: Cluster, monkeypatch) -> None:
    if cluster.mode != "nftables":
        pytest.skip("chains have no room to outgrow")
    monkeypatch.setattr(nftables, "LEAST", 4)
    cluster.stop()
    cluster.start()
    loads, room = cluster.proxy.full_loads, dict(cluster.proxy.sides[0].writer._sizes)
    many = [service(f"grow-{number}", f"10.96.9.{number}") for number in range(1, room["services"] + 2)]
    cluster.put(*many, *(endpoints(f"grow-{number}", A) for number in range(1, len(many) + 1)))
    cluster.until(lambda: cluster.b.tcp(f"10.96.9.{len(many)}", 80) == f"a|{B}")
    cluster.until(lambda: cluster.proxy.full_loads > loads)
    assert cluster.proxy.report.failures == 0
    assert all(cluster.b.tcp(f"10.96.9.{number}", 80) == f"a|{B}" for number in range(1, len(many), 7))
    cluster.put(*many, kind="DELETED")


def remains(cluster: Cluster) -> bool:
    return "KUBE" in cluster.node.run(cluster.backend.save) or "pelamis" in cluster.node.sh("nft list tables")


def test_nothing_is_left_after_cleanup(cluster: Cluster) -> None:
    cluster.stop()
    assert cluster.node.run(cleanup) >= 1
    assert not remains(cluster)
    cluster.start()
    cluster.stop()
    assert cluster.node.run(cluster.ledger.undo) and cluster.ledger.findings == []  # a purge finds the same and more
    assert not remains(cluster) and "10.244.2.0" not in cluster.node.sh("ip route")
    cluster.start()
