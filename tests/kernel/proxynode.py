"""A node with a running service proxy, its pods, another node's pod and somebody outside: for tests of real packets."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from agent.proxy.proxy import Proxy
from controlplane.machinery.errors import NotFound
from netsetup import links, xtables
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace

NODE, PODS = "192.168.77.1", "10.244.0.0/16"
A, B, C = "10.244.1.2", "10.244.1.3", "10.244.2.9"  # two pods here, one on another node
DEADLINE = 10.0


class Api:
    """The part of the client that informers use, over plain dicts; `put` and `drop` reach the watchers."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], dict]] = {
            "services": {}, "endpointslices": {}, "nodes": {}, "pods": {}}
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

    async def get(self, resource, name: str, namespace: str = "") -> dict:
        found = self.objects[resource.plural].get((namespace, name))
        if found is None:
            raise NotFound.of(resource.plural, name)
        return copy.deepcopy(found)

    async def list(self, resource, fields: str = "") -> tuple[list[dict], str]:
        """`fields`: status.podIP, as far as it goes here."""
        address = fields.removeprefix("status.podIP=")
        return [copy.deepcopy(o) for o in self.objects[resource.plural].values()
                if o["status"].get("podIP") == address], str(self.revision)

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
            "endpoints": [{"addresses": [a], "nodeName": "n2" if a == C else "n1", "conditions": conditions,
                           "targetRef": {"kind": "Pod", "namespace": "t", "name": f"pod-{a}", "uid": f"pod-{a}"}}
                          for a in addresses]}


def pod(address: str) -> dict:
    """Who the endpoint at this address is."""
    return {"metadata": {"namespace": "t", "name": f"pod-{address}"},
            "status": {"phase": "Running", "podIP": address}}


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
        for address in (A, B, C):
            self.api.change("pods", "ADDED", pod(address))
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
            self.proxy = Proxy(self.api, "n1", PODS, self.ledger, self.mode, backend=self.backend)
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
