"""Pods of three nodes: two on one segment, the third behind a router, and nodes that move while it all runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.proxy.peers import Peers
from netsetup import links, vxlan
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace
from .proxynode import Api

pytestmark = pytest.mark.kernel
DEADLINE = 10.0


class Node:
    """A host with one pod and the routes of the agent."""

    def __init__(self, make: Callable[[str], Namespace], number: int, address: str, tmp: Path) -> None:
        self.name, self.address, self.pods = f"n{number}", address, f"10.244.{number}.0/24"
        self.pod_address = f"10.244.{number}.2"
        self.host, self.pod = make(self.name), make(f"p{number}")
        self.host.sh("sysctl -qw net.ipv4.ip_forward=1")
        self.host.run(self._wire)
        self.pod.serve(self.name)
        self.ledger = Ledger(tmp / f"{self.name}.jsonl")

    def _wire(self) -> None:
        with RtNetlink() as netlink:
            links.wire(netlink, links.Wire(self.pod.name, self.pod.path, self.pod_address))

    def object(self) -> dict:
        return {"metadata": {"name": self.name}, "spec": {"podCIDR": self.pods},
                "status": {"addresses": [{"type": "InternalIP", "address": self.address}]}}

    def start(self, nodes: list[Node]) -> None:
        ready = threading.Event()

        async def main() -> None:
            self.loop, self.api = asyncio.get_running_loop(), Api()
            for node in nodes:
                self.api.change("nodes", "ADDED", node.object())
            peers = Peers(self.api, self.name, self.ledger)
            self.task = asyncio.create_task(peers.run(self._do))
            ready.set()
            await asyncio.gather(self.task, return_exceptions=True)

        self.future = self.host.background(main)
        assert ready.wait(DEADLINE)

    async def _do(self, work: Callable[[], object]) -> object:
        return work()  # on the loop's thread, which lives in this host

    def tell(self, kind: str, node: Node) -> None:
        self.loop.call_soon_threadsafe(self.api.change, "nodes", kind, node.object())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.future.result(DEADLINE)


@pytest.fixture
def nodes(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> Iterator[list[Node]]:
    router = make_namespace("router")
    router.sh("sysctl -qw net.ipv4.ip_forward=1; ip link add br0 type bridge; ip link set br0 up;"
              "ip addr add 192.168.70.254/24 dev br0; sysctl -qw net.bridge.bridge-nf-call-iptables=0 || true")
    made = [Node(make_namespace, 1, "192.168.70.1", tmp_path), Node(make_namespace, 2, "192.168.70.2", tmp_path),
            Node(make_namespace, 3, "192.168.71.3", tmp_path)]
    for node in made:
        gateway = node.address.rsplit(".", 1)[0] + ".254"
        node.host.sh(f"ip link add eth0 type veth peer name {node.name} netns {router.name}; ip link set eth0 up;"
                     f"ip addr add {node.address}/24 dev eth0; ip route add default via {gateway}")
        router.sh(f"ip link set {node.name} up " + (
            "; ip addr add 192.168.71.254/24 dev n3" if node.name == "n3" else "master br0"))
    for node in made:
        node.start(made)
    yield made
    for node in made:
        node.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        threading.Event().wait(0.05)


def reaches(one: Node, other: Node) -> bool:
    return one.pod.tcp(other.pod_address, 8080, 0.5) == f"{other.name}|{one.pod_address}"  # with its own address


def test_pods_of_all_nodes_reach_each_other_without_translation(nodes: list[Node]) -> None:
    one, two, three = nodes
    pairs = [(a, b) for a in nodes for b in nodes if a is not b]
    until(lambda: all(reaches(a, b) for a, b in pairs))
    assert "10.244.2.0/24 via 192.168.70.2 dev eth0" in one.host.sh("ip route")
    assert f"10.244.3.0/24 via 10.244.3.0 dev {vxlan.NAME}" in one.host.sh("ip route")
    assert "mtu 1450" in one.host.sh(f"ip link show {vxlan.NAME}")
    assert one.host.tcp(three.pod_address, 8080) == "n3|10.244.1.0"  # the node itself: back through the tunnel
    link = one.pod.connect(three.pod_address, 8080)
    link.settimeout(5)
    link.recv(100)
    link.sendall(b"x" * 100_000)  # more than any packet: what is too large for the tunnel is cut by its sender
    got = 0
    while got < 100_000:
        got += len(link.recv(65536))

    two.address = "192.168.70.20"  # a node changes its address
    two.host.sh("ip addr del 192.168.70.2/24 dev eth0; ip addr add 192.168.70.20/24 dev eth0;"
                "ip route replace default via 192.168.70.254")
    for node in nodes:
        node.tell("MODIFIED", two)
    until(lambda: all(reaches(a, b) for a, b in pairs))
    assert "via 192.168.70.20" in one.host.sh("ip route show 10.244.2.0/24")
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"

    one.host.sh(f"ip link del {vxlan.NAME}")  # somebody tidies up
    until(lambda: reaches(one, three) and reaches(three, one))
    one.host.sh("ip addr add 192.168.71.9/24 dev eth0")  # now the kernel says that node 3 is on a segment of ours
    until(lambda: "via 192.168.71.3 dev eth0" in one.host.sh("ip route show 10.244.3.0/24"))
    one.host.sh("ip addr del 192.168.71.9/24 dev eth0")
    until(lambda: reaches(one, three))

    for node in (one, two):
        node.tell("DELETED", three)
    until(lambda: vxlan.NAME not in one.host.sh("ip -o link") and vxlan.NAME not in two.host.sh("ip -o link"))
    assert "10.244.3.0" not in one.host.sh("ip route") and reaches(one, two)
    assert three.host.run(three.ledger.undo) and three.ledger.findings == []
    assert vxlan.NAME not in three.host.sh("ip -o link") and "10.244.1.0" not in three.host.sh("ip route")


def test_five_hundred_far_nodes(make_namespace: Callable[[str], Namespace]) -> None:
    host = make_namespace("many")
    host.sh("ip link add eth0 type veth peer name other; ip link set eth0 up; ip addr add 192.0.2.1/24 dev eth0;"
            "ip route add default via 192.0.2.254")
    own = vxlan.End("10.1.0.0/24", "192.0.2.1")
    ends = [vxlan.End(f"10.{2 + n // 200}.{n % 200}.0/24", f"198.51.{n // 200}.{n % 200 + 1}") for n in range(500)]

    def reconcile(count: int) -> tuple[int, int]:
        with RtNetlink() as netlink:
            index = vxlan.reconcile(netlink, own, ends[:count])
            return (len(vxlan._present(netlink, vxlan.AF_BRIDGE, index)),
                    len(vxlan._present(netlink, 2, index)))

    assert host.run(reconcile, 500) == (500, 500)
    assert host.run(reconcile, 3) == (3, 3)
