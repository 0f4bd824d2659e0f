"""A node of a cluster that has IPv6 alone: pods, host ports, Services with both writers, and policies."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Callable, Iterator

import pytest

from agent.proxy.policies import Policies
from agent.proxy.proxy import Proxy
from controlplane.client.informer import Informer
from controlplane.machinery.resources import named
from netsetup.addresses import node_address

from .conftest import Namespace, ask
from .proxynode import Api, endpoints, service
from .test_cni import Node

pytestmark = pytest.mark.kernel
HOST, OUT = "fd00:9::1", "fd00:9::2"
RANGE, CLUSTER = "fd00:10:244:3::/64", "fd00:10:244::/56"
DEADLINE = 15.0


class Six:
    """The node, two pods made through the shim, somebody outside, and a service proxy with policies."""

    def __init__(self, make: Callable[[str], Namespace], folder, mode: str) -> None:
        self.mode = mode
        self.host, self.out, self.pods = make("node"), make("out"), [make("a"), make("b")]
        self.out.sh(f"ip link add eth0 type veth peer name up0 netns {self.host.name};"
                    f"ip addr add {OUT}/64 dev eth0 nodad; ip link set eth0 up")
        self.host.sh(f"ip addr add {HOST}/64 dev up0 nodad; ip link set up0 up; ip route add default via {OUT}")
        self.out.sh(f"ip route add fd00:96::/112 via {HOST}")
        self.node = Node(self.host, folder)
        self.node.do(self.node.daemon.configure(RANGE, CLUSTER))
        self.addresses = [self._add(pod, number) for number, pod in enumerate(self.pods)]
        for name, one in (("a", self.pods[0]), ("b", self.pods[1]), ("out", self.out)):
            one.serve(name)
        self.api = Api()
        self.api.objects |= {"networkpolicies": {}, "namespaces": {}, "pods": {}}
        ready = threading.Event()

        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            namespaces = Informer(self.api, named("namespaces"))
            self.proxy = Proxy(self.api, "n1", CLUSTER, None, mode)
            self.policies = Policies(self.api, "n1", namespaces, self.proxy.services, self.node.ledger, families=(6,))
            self.task = asyncio.gather(self.proxy.run(), self.policies.run(), namespaces.run(), return_exceptions=True)
            await self.proxy.synced.wait()
            ready.set()
            try:
                await self.task
            except asyncio.CancelledError:
                pass

        self.future = self.host.background(main)
        assert ready.wait(DEADLINE)

    def _add(self, pod: Namespace, number: int) -> str:
        ports = {"portMappings": [{"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"},
                                  {"hostPort": 8089, "containerPort": 8080, "protocol": "tcp", "hostIP": "192.0.2.1"}]}
        code, answer = self.node.cni("ADD", pod.name, pod.path, runtimeConfig=ports if number == 0 else {})
        assert code == 0, answer
        return answer["ips"][0]["address"].removesuffix("/128")

    def put(self, plural: str, *objects: dict, kind: str = "MODIFIED") -> None:
        """Change objects, and return when the kernel has what follows."""
        follower = self.policies if plural in ("networkpolicies", "pods") else self.proxy
        before = follower.syncs
        for obj in objects:
            self.loop.call_soon_threadsafe(self.api.change, plural, kind, obj)
        until(lambda: follower.syncs > before and not follower._wake.is_set())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.future.result(DEADLINE)
        self.node.stop()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(DEADLINE / 0.02)):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come about in time")


def slices(name: str, *addresses: str, **more) -> dict:
    return {**endpoints(name, *addresses, **more), "addressType": "IPv6"}


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def six(request, make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[Six]:
    made = Six(make_namespace, tmp_path_factory.mktemp("six"), request.param)
    yield made
    made.stop()


def test_pods_reach_each_other_and_the_world(six: Six) -> None:
    a, (own, other) = six.pods[0], six.addresses
    assert six.host.run(node_address, 6) == HOST
    assert all(ipaddress.ip_address(one) in ipaddress.ip_network(RANGE) for one in six.addresses)
    assert "inet " not in a.sh("ip addr show eth0")
    assert a.tcp(other, 8080) == f"b|{own}" and a.tcp(OUT, 8080) == f"out|{HOST}"  # the world sees the node's address
    assert six.host.tcp(own, 8080).startswith("a|")


def test_host_ports(six: Six) -> None:
    (a, b), (own, _) = six.pods, six.addresses
    assert six.out.tcp(HOST, 8088) == f"a|{OUT}" and b.tcp(HOST, 8088).startswith("a|")
    through_itself = a.tcp(HOST, 8088)
    assert through_itself.startswith("a|") and own not in through_itself
    assert six.out.tcp(HOST, 8089) == "REFUSED"  # meant for an address of the other family
    loads = six.proxy.full_loads
    six.host.sh("ip6tables -t nat -F; ip6tables -F")
    six.node.do(six.node.daemon.repair())
    if six.mode == "iptables":  # else the load would pass for the sync of what comes next
        until(lambda: six.proxy.full_loads > loads and not six.proxy._wake.is_set())
    assert six.out.tcp(HOST, 8088) == f"a|{OUT}"


def test_services(six: Six) -> None:
    (a, b), (own, other) = six.pods, six.addresses
    for plural, known in (("endpointslices", six.proxy.slices), ("services", six.proxy.services)):
        if left := list(known.items()):  # by an attempt before this one
            six.put(plural, *left, kind="DELETED")
    six.put("services", service("web", "fd00:96::1", node_port=30066, externalIPs=["fd00:9::99"]),
            service("none", "fd00:96::2"),
            service("keep", "fd00:96::3", node_port=30067, externalTrafficPolicy="Local"),
            service("names", "fd00:96::4", 53, "UDP"), service("stick", "fd00:96::5", sessionAffinity="ClientIP"))
    six.put("endpointslices", slices("web", own), slices("keep", other), slices("stick", own, other),
            slices("names", own, port=8081, protocol="UDP"))
    assert b.tcp("fd00:96::1", 80) == f"a|{other}" and six.host.tcp("fd00:96::1", 80) == f"a|{HOST}"
    hairpin = a.tcp("fd00:96::1", 80)
    assert hairpin.startswith("a|") and own not in hairpin
    assert six.out.tcp("fd00:96::1", 80).startswith("a|") and OUT not in six.out.tcp("fd00:96::1", 80)
    assert six.out.tcp(HOST, 30066).startswith("a|") and b.tcp(HOST, 30066).startswith("a|")
    assert b.tcp("fd00:9::99", 80).startswith("a|")
    assert six.out.tcp(HOST, 30067) == f"b|{OUT}"  # policy Local keeps the client's address
    assert b.tcp("fd00:96::2", 80) == "REFUSED" == six.host.tcp("fd00:96::2", 80)
    assert len({b.tcp("fd00:96::5", 80) for _ in range(8)}) == 1
    client = b.udp_socket(10)
    assert ask(client, "fd00:96::4", 53) == f"a|{other}"
    six.put("endpointslices", slices("names", other, port=8081, protocol="UDP"))
    until(lambda: ask(client, "fd00:96::4", 53).startswith("b|"))  # asking keeps the old flow alive, if it is there


def test_policies(six: Six) -> None:
    b, (own, other) = six.pods[1], six.addresses
    deny = {"metadata": {"namespace": "t", "name": "deny"}, "spec": {"podSelector": {"matchLabels": {"app": "a"}}}}
    allow = {"metadata": {"namespace": "t", "name": "allow"}, "spec": {
        "podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": f"{other}/128"}}], "ports": [{"port": 8080}]}]}}
    for name, address in (("a", own), ("b", other)):
        six.loop.call_soon_threadsafe(six.api.change, "pods", "ADDED", {
            "metadata": {"namespace": "t", "name": name, "labels": {"app": name}}, "spec": {
                "nodeName": "n1", "containers": []}, "status": {"podIP": address, "phase": "Running"}})
    assert b.tcp(own, 8080) == f"a|{other}"
    six.put("networkpolicies", deny)
    until(lambda: b.tcp(own, 8080, 0.3) == "TIMEOUT")
    assert six.host.tcp(own, 8080).startswith("a|") and six.out.tcp(HOST, 8088, 0.3) == "TIMEOUT"
    six.put("networkpolicies", allow)
    assert b.tcp(own, 8080) == f"a|{other}" and six.out.tcp(HOST, 8088, 0.3) == "TIMEOUT"
    six.put("networkpolicies", deny, allow, kind="DELETED")
    until(lambda: six.out.tcp(HOST, 8088, 0.3) == f"a|{OUT}")
