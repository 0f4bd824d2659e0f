"""Two nodes on one network share load balancer addresses: one answers, and the other when it is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from agent.proxy import election
from agent.proxy.proxy import Proxy
from netsetup.ledger import Ledger

from .conftest import Namespace
from .proxynode import Api, endpoints, service

pytestmark = pytest.mark.kernel
NET = "192.168.90"
VIPS = [f"{NET}.{last}" for last in range(200, 206)]
NET6 = "fd00:90:"
# Its first candidate would be n2, but the endpoint is on n1 and nobody else may answer.
NEAR = next(f"{NET}.{n}" for n in range(206, 250) if election.ranked(f"{NET}.{n}", ["n1", "n2"])[0] == "n2")
VIP6 = next(f"{NET6}:{n}" for n in range(200, 300) if election.ranked(f"{NET6}:{n}", ["n1", "n2"])[0] == "n2")
DEADLINE = 20.0


class Node:
    """A host with a service proxy, and its view of the API."""

    def __init__(self, name: str, namespace: Namespace, ledger: Ledger) -> None:
        self.name, self.namespace, self.api = name, namespace, Api()
        for number, other in enumerate(("n1", "n2"), 1):
            self.api.change("nodes", "ADDED", {
                "metadata": {"name": other}, "spec": {},
                "status": {"addresses": [{"type": "InternalIP", "address": f"{NET}.{number}"}],
                           "conditions": [{"type": "Ready", "status": "True"}]}})
        for number, vip in enumerate(VIPS):
            made = service(f"s{number}", f"10.96.9.{number + 1}", type="LoadBalancer")
            made["metadata"]["annotations"] = {election.ANNOUNCED: "true"}
            made["status"] = {"loadBalancer": {"ingress": [{"ip": vip}]}}
            self.api.change("services", "ADDED", made)
            self.api.change("endpointslices", "ADDED", endpoints(f"s{number}", f"{NET}.1"))
        near = service("near", "10.96.9.100", type="LoadBalancer", externalTrafficPolicy="Local")
        near["metadata"]["annotations"] = {election.ANNOUNCED: "true"}
        near["status"] = {"loadBalancer": {"ingress": [{"ip": NEAR}]}}
        self.api.change("services", "ADDED", near)
        self.api.change("endpointslices", "ADDED", endpoints("near", f"{NET}.1"))
        six = service("six", "fd00:96::1", type="LoadBalancer")
        six["metadata"]["annotations"] = {election.ANNOUNCED: "true"}
        six["status"] = {"loadBalancer": {"ingress": [{"ip": VIP6}]}}
        self.api.change("services", "ADDED", six)
        self.api.change("endpointslices", "ADDED", {**endpoints("six", f"{NET6}:1"), "addressType": "IPv6"})
        self.ledger = ledger
        self.start()

    def start(self) -> None:
        ready = threading.Event()

        async def main() -> None:
            self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
            self.proxy = Proxy(self.api, self.name, "10.244.0.0/16,fd00:10::/56", self.ledger,
                               "nftables")
            running = asyncio.create_task(self.proxy.run())
            await self.proxy.synced.wait()
            ready.set()
            try:
                await running
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        self.future = self.namespace.background(main)
        assert ready.wait(DEADLINE)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.future.result(DEADLINE)


@pytest.fixture(scope="module")
def segment(make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[tuple[list[Node], Namespace]]:
    switch, outside = make_namespace("switch"), make_namespace("out")
    hosts = [make_namespace("n1"), make_namespace("n2")]
    switch.sh("ip link add br0 type bridge; ip link set br0 up; sysctl -qw net.bridge.bridge-nf-call-iptables=0",
              check=False)
    for number, host in enumerate((*hosts, outside), 1):
        host.sh(f"ip link add eth0 type veth peer name p{number} netns {switch.name};"
                f"ip addr add {NET}.{number}/24 dev eth0; ip addr add {NET6}:{number}/64 dev eth0 nodad;"
                "ip link set eth0 up")
        switch.sh(f"ip link set p{number} master br0 up")
    for host in hosts:
        host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0"
                " net.ipv4.conf.eth0.send_redirects=0 net.ipv6.conf.all.forwarding=1")
    hosts[0].serve("web")
    folder = tmp_path_factory.mktemp("ledgers")
    nodes = [Node(f"n{number}", host, Ledger(folder / f"{number}.jsonl")) for number, host in enumerate(hosts, 1)]
    yield nodes, outside
    for node in nodes:
        if not node.future.done():
            node.stop()


def until(check: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE / 0.2)):
        if check():
            return
        pause.wait(0.2)
    raise AssertionError("did not happen in time")


def test_addresses_are_shared_and_survive_a_node(segment: tuple[list[Node], Namespace]) -> None:
    nodes, outside = segment
    owners = {vip: election.ranked(vip, ["n1", "n2"])[0] for vip in VIPS}
    assert set(owners.values()) == {"n1", "n2"}
    until(lambda: all(outside.tcp(vip, 80, 0.5).startswith("web|") for vip in VIPS))
    until(lambda: outside.tcp(VIP6, 80, 1.0).startswith("web|"))
    macs = {node.name: node.namespace.sh("ip link show eth0").split("link/ether ")[1].split()[0] for node in nodes}

    def at(vip: str) -> str:
        return outside.sh(f"ip neigh show {vip}")

    until(lambda: outside.tcp(NEAR, 80, 1.0) == f"web|{NET}.3")
    for vip, owner in {**owners, VIP6: "n2", NEAR: "n1"}.items():
        assert macs[owner] in at(vip)
    nodes[1].stop()
    until(lambda: all(macs["n1"] in at(vip) for vip in (*VIPS, VIP6)))  # told, not asked for
    assert all(outside.tcp(vip, 80, 2.0).startswith("web|") for vip in VIPS)
    nodes[1].start()
    until(lambda: all(macs[owner] in at(vip) for vip, owner in owners.items()))
    assert all(outside.tcp(vip, 80, 2.0).startswith("web|") for vip in VIPS)
