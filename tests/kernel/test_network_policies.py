"""Policies and real packets, on both variants of iptables."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.dns import dns
from agent.proxy.policies import Policies
from controlplane.client.informer import Informer
from controlplane.machinery.resources import named
from netsetup import links, xtables
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace, ask
from .proxynode import Api

pytestmark = pytest.mark.kernel
DEADLINE = 10.0
ADDRESSES = {"web": "10.244.1.2", "client": "10.244.1.3", "other": "10.244.1.4"}
OUTSIDE = "192.168.77.2"


def policy(name: str, select: dict | None = None, **spec: Any) -> dict:
    return {"metadata": {"namespace": "t", "name": name},
            "spec": {"podSelector": {"matchLabels": select} if select else {}, **spec}}


def pod(name: str, **labels: str) -> dict:
    return {"metadata": {"namespace": "t", "name": name, "uid": name, "labels": {"app": name, **labels}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "greet", "containerPort": 8080}]}]},
            "status": {"podIP": ADDRESSES[name], "phase": "Running"}}


class Node:
    def __init__(self, make: Callable[[str], Namespace], variant: str, ledger: Ledger) -> None:
        self.backend, self.ledger = xtables.Backend(variant), ledger
        self.host, self.ext = make("node"), make("ext")
        self.pods = {name: make(name) for name in ADDRESSES}
        self.ext.sh(f"ip link add eth0 type veth peer name to77 netns {self.host.name}; ip link set eth0 up;"
                    f"ip addr add {OUTSIDE}/24 dev eth0; ip route add default via 192.168.77.1")
        self.host.sh("ip addr add 192.168.77.1/24 dev to77; ip link set to77 up; sysctl -qw net.ipv4.ip_forward=1;"
                     "ip addr add 10.96.0.10/32 dev lo")
        # As on every node: the service proxy's rules make the kernel keep account of connections from the start.
        self.host.sh(f"{self.backend.command('')} -A FORWARD -m conntrack --ctstate INVALID -j DROP")
        self.host.run(self._wire)
        for name, one in (*self.pods.items(), ("ext", self.ext), ("node", self.host)):
            one.serve(name)
        self.host.serve("dns", 53)
        self._start()

    def _wire(self) -> None:
        with RtNetlink() as netlink:
            for name, one in self.pods.items():
                links.wire(netlink, links.Wire(one.name, one.path, ADDRESSES[name]))

    def _start(self) -> None:
        ready = threading.Event()

        async def main() -> None:
            self.loop, self.api = asyncio.get_running_loop(), Api()
            self.api.objects |= {"networkpolicies": {}, "namespaces": {}, "pods": {}}
            for name in ADDRESSES:
                self.api.change("pods", "ADDED", pod(name))
            for name in ("t", "kube-system"):
                self.api.change("namespaces", "ADDED", {"metadata": {"name": name, "labels": {"name": name}}})
            namespaces = Informer(self.api, named("namespaces"))
            self.api.change("services", "ADDED", {
                "metadata": {"namespace": "kube-system", "name": "kube-dns", "labels": {dns.LABEL: dns.OURS}},
                "spec": {"clusterIP": "10.96.0.10"}})
            services = Informer(self.api, named("services"))
            self.policies = Policies(self.api, "n1", namespaces, services, self.ledger, backend=self.backend)
            self.task = asyncio.create_task(self._run(namespaces, services))
            ready.set()
            await asyncio.gather(self.task, return_exceptions=True)

        self.future = self.host.background(main)
        assert ready.wait(DEADLINE)
        self.until(lambda: self.policies.syncs > 0)

    async def _run(self, *informers: Informer) -> None:
        async with asyncio.TaskGroup() as group:
            for part in (*informers, self.policies):
                group.create_task(part.run())

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "the rules did not come about in time"
            threading.Event().wait(0.005)

    def put(self, plural: str, *objects: dict, kind: str = "MODIFIED") -> None:
        """Change objects and return when the kernel has what follows."""
        before = self.policies.syncs
        for obj in objects:
            self.loop.call_soon_threadsafe(self.api.change, plural, kind, obj)
        self.until(lambda: self.policies.syncs > before and not self.policies._wake.is_set())

    def saved(self) -> str:
        return self.host.run(self.backend.save)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.future.result(DEADLINE)


@pytest.fixture(scope="module", params=xtables.BACKENDS)
def node(request, make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[Node]:
    if not xtables.Backend(request.param).present:
        pytest.skip(f"iptables-{request.param} is not installed")
    made = Node(make_namespace, request.param, Ledger(tmp_path_factory.mktemp("ledger") / "ledger.jsonl"))
    yield made
    made.stop()


def test_policies_hold(node: Node) -> None:
    web, client, other = node.pods["web"], node.pods["client"], node.pods["other"]
    target = ADDRESSES["web"]

    def reached(source: Namespace, address: str = target, port: int = 8080) -> bool:
        return "|" in source.tcp(address, port, 0.3)

    assert reached(client) and reached(other) and reached(node.ext) and "PELAMIS-NP" not in node.saved()
    before = client.connect(target, 8080)
    before.recv(100)

    node.put("networkpolicies", policy("deny"))  # the whole namespace, ingress
    assert not reached(client) and not reached(node.ext) and reached(node.host)  # the node reaches its own pods
    assert reached(web) and reached(web, OUTSIDE) and reached(web, "192.168.77.1")  # itself, and out
    before.sendall(b"still here")
    assert before.recv(100) == b"still here"

    node.put("networkpolicies", policy("from-client", {"app": "web"}, ingress=[
        {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": "greet"}]}]))
    assert reached(client) and not reached(other) and not reached(client, ADDRESSES["other"])
    assert ask(client.udp_socket(), target, 8081) == "TIMEOUT"  # another port
    link = client.connect(target, 8080)
    link.recv(100)
    node.put("pods", pod("other", app="client"))  # a label makes a pod a peer
    assert reached(other)
    node.put("networkpolicies", policy("from-client", {"app": "web"}, ingress=[
        {"from": [{"ipBlock": {"cidr": "192.168.0.0/16", "except": ["192.168.77.64/26"]}}],
         "ports": [{"port": 8000, "endPort": 8080}]}]))
    assert not reached(client) and reached(node.ext)
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"

    node.put("networkpolicies", policy("from-client", {"app": "web"}, ingress=[
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]}]))
    assert not reached(client) and not reached(node.ext)
    node.put("namespaces", {"metadata": {"name": "t", "labels": {"team": "red"}}})  # a label makes a namespace a peer
    assert reached(client) and reached(client, port=8080) and not reached(node.ext)
    assert ask(client.udp_socket(), target, 8081).startswith("web|")  # no ports are all ports
    node.put("networkpolicies", policy("from-client", {"app": "web"}, ingress=[{"from": [{
        "namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": {"matchLabels": {"app": "client"}}}],
        "ports": [{"protocol": "UDP", "port": 8081}]}]))
    assert not reached(client) and ask(client.udp_socket(), target, 8081).startswith("web|")
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"

    node.put("networkpolicies", policy("to-other", {"app": "client"}, policyTypes=["Egress"], egress=[
        {"to": [{"podSelector": {"matchLabels": {"role": "other"}}}], "ports": [{"port": 8080}]},
        {"to": [{"ipBlock": {"cidr": f"{OUTSIDE}/32"}}]}]))
    node.put("pods", pod("other", role="other"))
    node.put("networkpolicies", policy("to-all", {"app": "other"}, ingress=[{}]))
    assert reached(client, ADDRESSES["other"]) and not reached(client, "192.168.77.1") and reached(client, OUTSIDE)
    assert ask(client.udp_socket(), ADDRESSES["other"], 8081) == "TIMEOUT"
    node.put("networkpolicies", policy("to-other"), policy("to-all"), kind="DELETED")

    node.put("networkpolicies", policy("no-way-out", {"app": "web"}, policyTypes=["Egress"]))
    assert not reached(web, OUTSIDE) and not reached(web, "192.168.77.1")
    assert ask(web.udp_socket(), "10.96.0.10", 54) == "TIMEOUT"
    node.put("networkpolicies", policy("dns", {"app": "web"}, policyTypes=["Egress"], egress=[
        {"ports": [{"port": 53, "protocol": "TCP"}],
         "to": [{"namespaceSelector": {"matchLabels": {"name": "kube-system"}},
                 "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]}]))
    assert reached(web, "10.96.0.10", 53) and not reached(web, "192.168.77.1")

    command = node.backend.command("")
    node.host.sh(f"{command} -t mangle -F")
    assert reached(web, OUTSIDE)
    asyncio.run_coroutine_threadsafe(node.policies.repair(), node.loop).result(DEADLINE)
    node.until(lambda: not reached(web, OUTSIDE))

    names = ("deny", "from-client", "no-way-out", "dns")
    node.put("networkpolicies", *(policy(n) for n in names), kind="DELETED")
    node.until(lambda: "PELAMIS-NP" not in node.saved())  # not a rule in anybody's way
    assert reached(client) and reached(web, OUTSIDE)
    node.put("networkpolicies", policy("deny"))
    assert not reached(client)
    assert node.host.run(node.ledger.undo) and "PELAMIS-NP" not in node.saved()
    node.put("networkpolicies", policy("deny"), kind="DELETED")


def test_a_pod_begins_under_its_policies(node: Node) -> None:
    """The API tells no address before something of the pod runs."""
    client, fresh = node.pods["client"], pod("other")
    address = fresh["status"].pop("podIP")
    node.put("networkpolicies", policy("closed", {"app": "other"}))
    node.put("pods", {**fresh, "status": {}})
    assert "|" in client.tcp(address, 8080, 0.3)  # only its rules close it

    def begin(one: dict) -> None:
        asyncio.run_coroutine_threadsafe(node.policies.isolated(one, (address,)), node.loop).result(DEADLINE)

    begin(fresh)
    assert "|" not in client.tcp(address, 8080, 0.3)
    before = node.policies.syncs
    begin(fresh)  # as for each of its containers
    begin(pod("client"))  # no policy selects it
    assert node.policies.syncs == before
    node.put("pods", pod("other"))
    node.put("networkpolicies", policy("closed", {"app": "other"}))
    assert "|" not in client.tcp(address, 8080, 0.3)
    node.put("pods", {**fresh, "status": {"phase": "Succeeded"}})  # the address is somebody else's now
    assert "|" in client.tcp(address, 8080, 0.3)
    node.put("pods", pod("other"))
    node.put("pods", pod("other"), kind="DELETED")
    assert "|" in client.tcp(address, 8080, 0.3) and not node.policies._begun
    node.put("networkpolicies", policy("closed"), kind="DELETED")
    assert "PELAMIS-NP" not in node.saved()
