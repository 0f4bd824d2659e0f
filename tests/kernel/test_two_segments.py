"""Pods of three nodes: two on one segment, the third behind a router, and nodes that move while it all runs."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Never

import pytest

from agent.proxy import side
from agent.proxy.peers import Peers
from agent.proxy.proxy import Proxy
from netsetup import links, offload, vxlan
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace
from .proxynode import Api, endpoints, service

pytestmark = pytest.mark.kernel
DEADLINE = 10.0


class Plan:
    """The addresses of one family: two segments, a range of pods per node."""

    def __init__(self, family: int) -> None:
        self.family, self.six = family, family == 6
        self.tunnel, self.length = vxlan.NAMES[family], 64 if self.six else 24
        self.tunnel_mtu = 1500 - vxlan.OVERHEADS[family]

    def host(self, segment: int, number: int | str) -> str:
        return f"fd00:{segment}::{number}" if self.six else f"192.168.{segment}.{number}"

    def pods(self, number: int) -> str:
        return f"fd00:10:244:{number}::" if self.six else f"10.244.{number}.0"

    def pod(self, number: int) -> str:
        return self.pods(number).removesuffix("0") + "2"


class Node:
    """A host with one pod and the routes of the agent."""

    def __init__(self, make: Callable[[str], Namespace], plan: Plan, number: int, segment: int, tmp: Path) -> None:
        self.name, self.address, self.pods = f"n{number}", plan.host(segment, number), (
            f"{plan.pods(number)}/{plan.length}")
        self.gateway, self.pod_address = plan.host(segment, 254), plan.pod(number)
        self.host, self.pod = make(self.name), make(f"p{number}")
        self.host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        self.host.run(self._wire)
        self.pod.serve(self.name)
        self.ledger, self.aside = Ledger(tmp / f"{self.name}.jsonl"), False

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
            peers = self.peers = Peers(self.api, self.name, self.ledger, aside=lambda: self.aside)
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
        if not self.future.done():
            self.loop.call_soon_threadsafe(self.task.cancel)
            self.future.result(DEADLINE)


@pytest.fixture(params=[4, 6])
def plan(request) -> Plan:
    return Plan(request.param)


@pytest.fixture
def nodes(plan: Plan, make_namespace: Callable[[str], Namespace], tmp_path: Path) -> Iterator[list[Node]]:
    router = make_namespace("router")
    router.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link add br0 type bridge;"
              f"ip link set br0 up; ip addr add {plan.host(70, 254)}/{plan.length} dev br0 {nodad(plan)};"
              "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 || true")
    made = [Node(make_namespace, plan, number, 71 if number == 3 else 70, tmp_path) for number in (1, 2, 3)]
    for node in made:
        node.host.sh(f"ip link add eth0 type veth peer name {node.name} netns {router.name}; ip link set eth0 up;"
                     f"ip addr add {node.address}/{plan.length} dev eth0 {nodad(plan)};"
                     f"ip route add default via {node.gateway}")
        router.sh(f"ip link set {node.name} up " + (
            f"; ip addr add {plan.host(71, 254)}/{plan.length} dev n3 {nodad(plan)}" if node.name == "n3"
            else "master br0"))
    for node in made:
        node.start(made)
    yield made
    for node in made:
        node.stop()


def nodad(plan: Plan) -> str:
    """The address may be used at once, without asking whether somebody has it."""
    return "nodad" if plan.six else ""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        threading.Event().wait(0.05)


def reaches(one: Node, other: Node) -> bool:
    return one.pod.tcp(other.pod_address, 8080, 0.5) == f"{other.name}|{one.pod_address}"  # with its own address


def ways(node: Node, plan: Plan, pods: str = "") -> str:
    return node.host.sh(f"ip -{plan.family} route show {pods}")


def test_pods_of_all_nodes_reach_each_other_without_translation(plan: Plan, nodes: list[Node]) -> None:
    one, two, three = nodes
    pairs = [(a, b) for a in nodes for b in nodes if a is not b]
    until(lambda: all(reaches(a, b) for a, b in pairs))
    assert f"{two.pods} via {two.address} dev eth0" in ways(one, plan)
    assert f"{three.pods} via {plan.pods(3)} dev {plan.tunnel}" in ways(one, plan)
    assert f"mtu {plan.tunnel_mtu}" in one.host.sh(f"ip link show {plan.tunnel}")
    assert one.host.tcp(three.pod_address, 8080) == f"n3|{plan.pods(1)}"  # the node itself: back through the tunnel
    link = one.pod.connect(three.pod_address, 8080)
    link.settimeout(5)
    link.recv(100)
    link.sendall(b"x" * 100_000)  # more than any packet: what is too large for the tunnel is cut by its sender
    got = 0
    while got < 100_000:
        got += len(link.recv(65536))

    old, two.address = two.address, plan.host(70, 20)  # a node changes its address
    two.host.sh(f"ip addr del {old}/{plan.length} dev eth0;"
                f"ip addr add {two.address}/{plan.length} dev eth0 {nodad(plan)};"
                f"ip route replace default via {two.gateway}")
    for node in nodes:
        node.tell("MODIFIED", two)
    until(lambda: all(reaches(a, b) for a, b in pairs))
    assert f"via {two.address}" in ways(one, plan, two.pods)
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"

    one.host.sh(f"ip link del {plan.tunnel}")  # somebody tidies up
    until(lambda: reaches(one, three) and reaches(three, one))
    near = f"{plan.host(71, 9)}/{plan.length} dev eth0"
    one.host.sh(f"ip addr add {near}")  # now the kernel says that node 3 is on a segment of ours
    until(lambda: f"via {three.address} dev eth0" in ways(one, plan, three.pods))
    one.host.sh(f"ip addr del {near}")
    until(lambda: reaches(one, three))

    for one.aside in (True, False):  # somebody else makes the routes for a while
        one.loop.call_soon_threadsafe(one.peers.look)
        until(lambda: (plan.tunnel in one.host.sh("ip -o link")) is not one.aside)
        until(lambda: all((other.pods in ways(one, plan)) is not one.aside for other in (two, three)))

    for node in (one, two):
        node.tell("DELETED", three)
    until(lambda: plan.tunnel not in one.host.sh("ip -o link") and plan.tunnel not in two.host.sh("ip -o link"))
    assert three.pods not in ways(one, plan) and reaches(one, two)
    three.stop()  # or it would mend what is undone
    assert three.host.run(three.ledger.undo) and three.ledger.findings == []
    assert plan.tunnel not in three.host.sh("ip -o link") and one.pods not in ways(three, plan)


@pytest.mark.parametrize("mode", side.MODES)
def test_what_is_masqueraded_is_not_again_when_it_is_wrapped(plan: Plan, nodes: list[Node], mode: str) -> None:
    """Or its outer checksum is wrong with some kernels, and its outer port no longer that of its flow with any."""
    one, two, three = nodes
    until(lambda: reaches(one, three))
    api = Api()
    api.change("services", "ADDED", service("far", "fd00:96::1" if plan.six else "10.96.0.1", node_port=30080))
    api.change("endpointslices", "ADDED", {**endpoints("far", three.pod_address), "addressType": f"IPv{plan.family}"})

    async def main() -> None:
        """The rules outlive the proxy."""
        proxy = Proxy(api, one.name, "fd00:10:244::/56" if plan.six else "10.244.0.0/16", None, mode)
        running = asyncio.create_task(proxy.run())
        async with asyncio.timeout(DEADLINE):
            await proxy.synced.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    one.host.background(main).result(2 * DEADLINE)
    assert two.host.tcp(one.address, 30080) == f"n3|{plan.pods(1)}"
    flows = one.host.sh(f"conntrack -f ipv{plan.family} -L -p udp --dport {vxlan.PORT}").splitlines()
    wrapped = [line for line in flows if f"dst={three.address} " in line]
    assert wrapped
    for line in wrapped:
        assert line.split("sport=")[1].split()[0] == line.split("dport=")[2].split()[0]


def test_cards_that_cannot_see_into_the_tunnel(plan: Plan, nodes: list[Node], monkeypatch) -> None:
    one, _, three = nodes
    until(lambda: reaches(one, three))
    assert one.host.run(offload.fills_in_later, plan.tunnel)
    monkeypatch.setattr(offload, "BLIND", (one.host.run(offload.driver, "eth0"),))
    for node in (one, three):
        node.loop.call_soon_threadsafe(node.peers.look)
    until(lambda: not any(node.host.run(offload.fills_in_later, plan.tunnel) for node in (one, three)))
    assert reaches(one, three) and reaches(three, one)


def test_a_kernel_without_tunnels_keeps_what_it_can_reach(plan: Plan, nodes: list[Node], monkeypatch, caplog) -> None:
    one, two, three = nodes
    until(lambda: reaches(one, two) and reaches(one, three))

    def unknown(*_: object) -> Never:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(vxlan, "reconcile", unknown)
    one.loop.call_soon_threadsafe(one.peers.look)
    until(lambda: f"the tunnel {plan.tunnel} cannot be made" in caplog.text)
    assert "load the kernel module vxlan" in caplog.text and three.pods in caplog.text
    assert reaches(one, two)


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
