"""Real connections through the proxy's rules, by both variants of iptables and by nftables: what Services promise."""

from __future__ import annotations

import asyncio
import copy
import errno
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from agent.proxy import conntrack
from agent.proxy.cleanup import cleanup
from agent.proxy.proxy import Proxy
from netsetup import links, xtables
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace, ask

pytestmark = pytest.mark.kernel
NODE, PODS = "192.168.77.1", "10.244.1.0/24"
A, B, C = "10.244.1.2", "10.244.1.3", "10.244.2.9"  # two pods here, one on another node
DEADLINE = 10.0


class Api:
    """The part of the client that informers use, over plain dicts; `put` and `drop` reach the watchers."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], dict]] = {"services": {}, "endpointslices": {}, "nodes": {}}
        self.queues: dict[str, asyncio.Queue] = {}
        self.revision = 1

    def change(self, plural: str, kind: str, obj: dict) -> None:
        self.revision += 1
        obj = copy.deepcopy(obj)
        obj["metadata"] |= {"resourceVersion": str(self.revision), "uid": obj["metadata"]["name"]}
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if kind == "DELETED":
            self.objects[plural].pop(key)
        else:
            self.objects[plural][key] = obj
        if plural in self.queues:
            self.queues[plural].put_nowait((kind, copy.deepcopy(obj)))

    async def pages(self, resource, **_: Any) -> AsyncIterator[tuple[list[dict], str]]:
        self.queues[resource.plural] = asyncio.Queue()
        yield [copy.deepcopy(o) for o in self.objects[resource.plural].values()], str(self.revision)

    async def watch(self, resource, **_: Any) -> AsyncIterator[tuple[str, dict]]:
        while True:
            yield await self.queues[resource.plural].get()


def service(name: str, ip: str, port: int = 80, protocol: str = "TCP", node_port: int = 0, **spec: Any) -> dict:
    one = {"port": port, "protocol": protocol, **({"nodePort": node_port} if node_port else {})}
    return {"metadata": {"namespace": "t", "name": name},
            "spec": {"clusterIP": ip, "type": "NodePort" if node_port else "ClusterIP", "ports": [one], **spec}}


def endpoints(name: str, *addresses: str, port: int = 8080, protocol: str = "TCP", terminating: bool = False) -> dict:
    conditions = {"ready": not terminating, "serving": True, "terminating": terminating}
    return {"metadata": {"namespace": "t", "name": f"{name}-x", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"port": port, "protocol": protocol}],
            "endpoints": [{"addresses": [a], "nodeName": "n2" if a == C else "n1", "conditions": conditions}
                          for a in addresses]}


class Cluster:
    """A node with two pods and a running proxy, another node's pod, and somebody outside."""

    def __init__(self, make: Callable[[str], Namespace], variant: str, ledger: Ledger) -> None:
        self.ledger = ledger
        self.mode = "nftables" if variant == "nftables" else "iptables"
        self.backend = xtables.Backend("nft" if variant == "nftables" else variant)
        self.node, self.ext, self.other, self.a, self.b = (make(n) for n in ("node", "ext", "other", "a", "b"))
        for peer, net in ((self.ext, "77"), (self.other, "78")):
            peer.sh(f"ip link add eth0 type veth peer name to{net} netns {self.node.name};"
                    f"ip addr add 192.168.{net}.2/24 dev eth0; ip link set eth0 up;"
                    f"ip route add default via 192.168.{net}.1")
            self.node.sh(f"ip addr add 192.168.{net}.1/24 dev to{net}; ip link set to{net} up")
        self.node.sh("ip route add default via 192.168.77.2;"
                     "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1"
                     " net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.to77.send_redirects=0")
        self.other.sh(f"ip addr add {C}/32 dev lo")
        self.node.run(self._wire)
        for namespace, label in ((self.a, "a"), (self.b, "b"), (self.other, "c")):
            namespace.serve(label)
        self.api = Api()
        self.api.change("nodes", "ADDED", {  # the way to the other node's pods is the proxy's to make
            "metadata": {"name": "n2"}, "spec": {"podCIDR": "10.244.2.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.78.2"}]}})
        self.start()
        self.until(lambda: "10.244.2.0/24 via 192.168.78.2" in self.node.sh("ip route"))

    def _wire(self) -> None:
        with RtNetlink() as netlink:
            for pod, address in ((self.a, A), (self.b, B)):
                links.wire(netlink, links.Wire(pod.name, pod.path, address))

    def start(self) -> None:
        ready = threading.Event()

        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.proxy = Proxy(self.api, "n1", NODE, PODS, self.ledger, self.mode, backend=self.backend)
            self.task = asyncio.create_task(self.proxy.run())
            synced = asyncio.create_task(self.proxy.synced.wait())
            await asyncio.wait([self.task, synced], return_when=asyncio.FIRST_COMPLETED)
            ready.set()
            try:
                await self.task
            except asyncio.CancelledError:
                pass

        self.future = self.node.background(main)
        assert ready.wait(DEADLINE)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.future.result(DEADLINE)

    def put(self, *objects: dict, kind: str = "MODIFIED") -> None:
        """Change objects, and return when the kernel has what follows from them."""
        before = self.proxy.syncs

        def change() -> None:
            for obj in objects:
                self.api.change("services" if "spec" in obj else "endpointslices", kind, obj)

        self.loop.call_soon_threadsafe(change)
        self.until(lambda: self.proxy.syncs > before and not self.proxy._dirty and not self.proxy._wake.is_set())

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "the proxy did not get there in time"
            threading.Event().wait(0.005)

    def rules(self, table: str = "nat") -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        if self.mode == "nftables":
            return {name: sorted(self.node.sh(f"nft list map ip pelamis-proxy {name}").replace(",", "").split("\n"))
                    for name in ("services", "node-ports", "refused", "endpoints", "node-port-endpoints")}
        for line in self.node.run(self.backend.save, table).splitlines():
            if line.startswith("-A "):
                _, chain, rule = line.split(" ", 2)
                found.setdefault(chain, []).append(rule)
        return found


@pytest.fixture(scope="module", params=(*xtables.BACKENDS, "nftables"))
def cluster(request, make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[Cluster]:
    if request.param != "nftables" and not xtables.Backend(request.param).present:
        pytest.skip(f"iptables-{request.param} is not installed")
    made = Cluster(make_namespace, request.param, Ledger(tmp_path_factory.mktemp("ledger") / "ledger.jsonl"))
    yield made
    made.stop()


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
    restore = xtables.Backend.restore
    monkeypatch.setattr(xtables.Backend, "restore", lambda self, text: (written.append(text), restore(self, text))[1])
    before = cluster.rules()
    cluster.put(endpoints("one", C))
    after = cluster.rules()
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"
    assert cluster.b.tcp("10.96.1.10", 80).startswith("c|")
    changed = {c for c in before.keys() | after.keys() if before.get(c) != after.get(c)}
    assert len(written) == 1 and {line.split()[0][1:] for line in written[0].splitlines() if line[0] == ":"} == changed
    assert all(chain.startswith(("KUBE-SVC-", "KUBE-SEP-")) for chain in changed) and len(changed) == 2


def test_udp_follows_its_endpoints_on_the_same_socket(cluster: Cluster) -> None:
    link = cluster.b.udp_socket()
    cluster.put(service("dns", "10.96.0.53", 53, "UDP"))
    assert ask(link, "10.96.0.53", 53) in ("REFUSED", "TIMEOUT")
    cluster.put(endpoints("dns", A, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.53", 53) == f"a|{B}"  # the entry made without endpoints is forgotten
    cluster.put(endpoints("dns", C, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.53", 53) == f"c|{B}"  # and the one to the endpoint that went


def test_udp_follows_also_with_a_kernel_that_knows_no_filter(cluster: Cluster, monkeypatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.EINVAL, "no filter")

    monkeypatch.setattr(conntrack, "_delete", unknown)
    link = cluster.b.udp_socket()
    cluster.put(service("old", "10.96.0.54", 53, "UDP"), endpoints("old", A, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.54", 53) == f"a|{B}"
    cluster.put(endpoints("old", C, port=8081, protocol="UDP"))
    assert ask(link, "10.96.0.54", 53) == f"c|{B}"


def test_a_foreign_flush_is_healed_and_a_restart_is_not_noticed(cluster: Cluster) -> None:
    cluster.put(service("heal", "10.96.2.1"), endpoints("heal", A))
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
    over.set()
    client.join()
    assert failures == []
    assert cluster.rules() == saved


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
