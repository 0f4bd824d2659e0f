"""A node's DNS as a pod meets it: questions over the wire, other servers behind it, and what these are never asked."""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import pytest

from agent.dns import dns
from controlplane.client.informer import Informer
from controlplane.machinery.resources import named
from netsetup import links, sysctls
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace
from .proxynode import Api

pytestmark = pytest.mark.kernel
DNS, DNS6, OUT = "10.96.0.10", "fd00:96::a", "192.168.77.2"
CORP_PORT = 5353
POD, POD6 = "10.244.1.2", "fd00:10:244:1::2"
NETWORKS = ("10.96.0.0/16", "10.244.0.0/16", "fd00:96::/112", "fd00:10:244::/56")
MANY = 60  # endpoints: more than fit the 512 bytes of a plain reply
DEADLINE = 15.0


def service(name: str, *ips: str, space: str = "t", labels: dict | None = None, **spec: object) -> dict:
    return {"metadata": {"namespace": space, "name": name, "labels": labels or {}},
            "spec": {"clusterIP": ips[0] if ips else "None", "clusterIPs": list(ips), **spec,
                     "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}}


def slices(name: str, *entries: tuple[str, str]) -> dict:
    """`entries`: addresses with their host names, "" for none."""
    return {"metadata": {"namespace": "t", "name": f"{name}-x", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "peer", "protocol": "TCP", "port": 7000}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True},
                           **({"hostname": host} if host else {})} for address, host in entries]}


OBJECTS = {
    "services": [
        service("kube-dns", DNS, DNS6, space="kube-system", labels={dns.LABEL: dns.OURS}),
        service("web", "10.96.0.7", "fd00:96::7"), service("db"), service("many"),
        service("out", type="ExternalName", clusterIP="", externalName="www.world.example")],
    "endpointslices": [slices("db", ("10.244.0.5", "db-0"), ("10.244.1.6", "")),
                       slices("many", *((f"10.244.9.{n}", "") for n in range(MANY)))],
    "namespaces": [{"metadata": {"name": name}} for name in ("t", "kube-system")],
    "configmaps": [{"metadata": {"namespace": "kube-system", "name": "kube-dns"},
                    "data": {"stubDomains": json.dumps({"corp.example": [f"{OUT}:{CORP_PORT}"]})}}]}


class Elsewhere:
    """Somebody else's server: every name has this address, but for those that begin with `none`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[tuple[str, bool]] = []  # names, and whether by TCP

    def reply(self, data: bytes, stream: bool) -> bytes:
        question = dnslib.DNSRecord.parse(data)
        name = str(question.q.qname)
        self.asked.append((name, stream))
        reply = question.reply()
        if name.startswith("none"):
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
            reply.add_auth(*dnslib.RR.fromZone("world.example 900 SOA a b 1 2 3 4 60"))
        else:
            reply.add_answer(*dnslib.RR.fromZone(f"{name} 60 A {self.address}"))
        return reply.pack()

    def count(self, name: str) -> int:
        return sum(one == name for one, _ in self.asked)

    async def serve(self, host: str, port: int) -> None:
        """Until cancelled."""
        elsewhere = self

        class Packets(asyncio.DatagramProtocol):
            def connection_made(self, transport) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, address) -> None:
                self.transport.sendto(elsewhere.reply(data, False), address)

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reply = self.reply(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), True)
            writer.write(len(reply).to_bytes(2, "big") + reply)
            await writer.drain()
            writer.close()

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Packets, local_addr=(host, port))
        try:
            async with await asyncio.start_server(stream, host, port) as server:
                await server.serve_forever()
        finally:
            transport.close()


class Node:
    """A host that answers for the cluster, a pod, and the servers of the world and of a company; a stub on the host."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path) -> None:
        self.host, self.pod, self.out = make("node"), make("pod"), make("out")
        self.out.sh(f"ip link add eth0 type veth peer name to77 netns {self.host.name}; ip link set eth0 up;"
                    f"ip addr add {OUT}/24 dev eth0")
        self.host.sh("ip addr add 192.168.77.1/24 dev to77; ip link set to77 up; ip route add default via 192.168.77.2")
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.host.run(sysctls.apply, self.ledger, True)
        self.host.run(self._wire)
        self.world, self.corp, self.stub = Elsewhere("198.51.100.1"), Elsewhere("198.51.100.2"), Elsewhere("0.0.0.0")
        real, etc = folder / "real.conf", folder / "resolv.conf"  # as systemd-resolved leaves them
        real.write_text(f"nameserver 127.0.0.53\nnameserver {DNS}\nnameserver {OUT}\n")
        etc.write_text("nameserver 127.0.0.53\n")
        self.api = Api()
        self.api.objects = {plural: {} for plural in OBJECTS}
        for plural, objects in OBJECTS.items():
            for one in objects:
                self.api.change(plural, "ADDED", copy.deepcopy(one))
        self.tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[object]]] = []
        self.futures = [self._start(self.out, self.world.serve(OUT, 53), self.corp.serve(OUT, CORP_PORT)),
                        self._start(self.host, self.stub.serve("127.0.0.53", 53), self._dns((str(real), str(etc))))]

    def _wire(self) -> None:
        with RtNetlink() as netlink:
            links.wire(netlink, links.Wire("pod", self.pod.path, POD, second=POD6))

    def _start(self, where: Namespace, *work) -> object:
        started = threading.Event()

        async def main() -> None:
            async def all_of_it() -> None:
                async with asyncio.TaskGroup() as group:
                    for one in work:
                        group.create_task(one)
            task = asyncio.create_task(all_of_it())
            self.tasks.append((asyncio.get_running_loop(), task))
            started.set()
            await asyncio.gather(task, return_exceptions=True)

        future = where.background(main)
        assert started.wait(DEADLINE)
        return future

    async def _dns(self, files: tuple[str, str]) -> None:
        services = Informer(self.api, named("services"))
        pieces = Informer(self.api, named("endpointslices.discovery.k8s.io"), indexes={"service": lambda s: [
            f"{s['metadata']['namespace']}/{s['metadata']['labels']['kubernetes.io/service-name']}"]})
        server = dns.Dns(self.api, services, pieces, "cluster.local", NETWORKS, self.ledger, files=files)
        async with asyncio.TaskGroup() as group:
            for part in (services, pieces, server):
                group.create_task(part.run())

    def put(self, plural: str, obj: dict) -> None:
        self.tasks[1][0].call_soon_threadsafe(self.api.change, plural, "MODIFIED", obj)

    def ask(self, name: str, kind: str = "A", tcp: bool = False, size: int = 0, at: str = DNS) -> dnslib.DNSRecord:
        """From the pod."""
        question = dnslib.DNSRecord.question(name, kind)
        if size:
            question.add_ar(dnslib.EDNS0(udp_len=size))
        data = self.pod.run(lambda: question.send(at, 53, tcp, 5, ":" in at))
        return dnslib.DNSRecord.parse(data)

    def told(self, name: str, kind: str = "A", **how) -> list[str]:
        return sorted(str(record.rdata) for record in self.ask(name, kind, **how).rr)

    def listens(self) -> set[str]:
        """The addresses of the DNS that are this node's."""
        return {address for address in (DNS, DNS6) if f" {address}/" in self.host.sh("ip addr show lo")}

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass  # nobody listens yet
            assert time.monotonic() < deadline, "it did not come about in time"
            threading.Event().wait(0.02)

    def close(self) -> None:
        for loop, task in self.tasks:
            loop.call_soon_threadsafe(task.cancel)
        for future in self.futures:
            future.result(DEADLINE)


@pytest.fixture(scope="module")
def node(make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[Node]:
    made = Node(make_namespace, tmp_path_factory.mktemp("names"))
    try:
        made.until(lambda: made.listens() == {DNS, DNS6})
        for address in (DNS, DNS6):  # by TCP, which is refused at once where a packet would get lost
            made.until(lambda address=address: made.told("web.t.svc.cluster.local", tcp=True,
                                                         at=address) == ["10.96.0.7"])
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("name, kind, records", [
    ("web.t.svc", "A", ["10.96.0.7"]), ("web.t.svc", "AAAA", ["fd00:96::7"]),
    ("db.t.svc", "A", ["10.244.0.5", "10.244.1.6"]), ("db-0.db.t.svc", "A", ["10.244.0.5"]),
    ("_http._tcp.web.t.svc", "SRV", ["0 100 80 web.t.svc.cluster.local."]),
    ("_peer._tcp.db.t.svc", "SRV", ["0 50 7000 10-244-1-6.db.t.svc.cluster.local.",
                                    "0 50 7000 db-0.db.t.svc.cluster.local."]),
    ("10-244-1-2.t.pod", "A", [POD]), ("fd00-10-244-1--2.t.pod", "AAAA", [POD6]),
    ("out.t.svc", "A", ["198.51.100.1", "www.world.example."])])
@pytest.mark.parametrize("tcp, at", [(False, DNS), (True, DNS), (False, DNS6), (True, DNS6)])
def test_records(node: Node, name: str, kind: str, records: list[str], tcp: bool, at: str) -> None:
    assert node.told(f"{name}.cluster.local", kind, tcp=tcp, at=at) == records


def test_reverse_names(node: Node) -> None:
    for address, name in (("10.96.0.7", "web.t.svc"), ("fd00:96::7", "web.t.svc"), ("10.244.0.5", "db-0.db.t.svc")):
        assert node.told(pointer(address), "PTR") == [f"{name}.cluster.local."]


def pointer(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


def test_what_is_too_long_for_a_packet(node: Node) -> None:
    name = "many.t.svc.cluster.local"
    cut = node.ask(name)
    assert cut.header.tc and len(cut.rr) < MANY
    assert len(node.told(name, tcp=True)) == MANY  # what a client does then
    wide = node.ask(name, size=4096)
    assert cut.ar == [] and wide.ar[0].rtype == dnslib.QTYPE.OPT and len(wide.rr) > len(cut.rr)
    node.put("endpointslices", slices("many", *((f"10.244.9.{n}", "") for n in range(35))))
    node.until(lambda: len(node.told(name, size=4096)) == 35)  # more than 512 bytes, fewer than it may have
    assert node.ask(name).header.tc and not node.ask(name, size=4096).header.tc


def test_others_are_asked_for_their_names_alone(node: Node) -> None:
    assert node.told("www.world.example") == ["198.51.100.1"] == node.told("www.world.example", tcp=True)
    assert {("www.world.example.", False), ("www.world.example.", True)} <= set(node.world.asked)
    assert node.told("git.corp.example") == ["198.51.100.2"] and node.world.count("git.corp.example.") == 0
    for _ in range(3):
        assert node.ask("none.world.example").header.rcode == dnslib.RCODE.NXDOMAIN
    assert node.world.count("none.world.example.") == 1  # that it does not exist is kept
    for name in ("nobody.t.svc.cluster.local", "web.nowhere.svc.cluster.local", "x.cluster.local",
                 "a.b.c.cluster.local", pointer("10.96.9.9"), pointer("10.244.9.200"), pointer("fd00:96::99")):
        missing = node.ask(name)
        assert missing.header.rcode == dnslib.RCODE.NXDOMAIN and missing.auth[0].rtype == dnslib.QTYPE.SOA
    asked = [name for one in (node.world, node.corp) for name, _ in one.asked]
    assert asked and all(name.endswith(("world.example.", "corp.example.")) for name in asked)
    assert node.stub.asked == []  # systemd-resolved might ask us in turn


def test_changes_are_in_the_next_answers(node: Node) -> None:
    name = "db.t.svc.cluster.local"
    assert len(node.told(name)) == 2
    node.put("endpointslices", slices("db", ("10.244.0.5", "db-0")))
    node.until(lambda: node.told(name) == ["10.244.0.5"])
    node.put("endpointslices", slices("db"))
    node.until(lambda: node.ask(name).header.rcode == dnslib.RCODE.NXDOMAIN)
    stubs = {"stubDomains": json.dumps({"world.example": [f"{OUT}:{CORP_PORT}"]})}
    node.put("configmaps", {"metadata": {"namespace": "kube-system", "name": "kube-dns"}, "data": stubs})
    node.until(lambda: node.told(f"at-{time.monotonic_ns()}.world.example") == ["198.51.100.2"])


def test_figures(node: Node) -> None:
    figures = node.pod.run(lambda: urllib.request.urlopen(f"http://{DNS}:9153/metrics", timeout=5).read().decode())
    assert 'coredns_dns_requests_total{proto="tcp",type="A"}' in figures
    assert 'coredns_dns_responses_total{rcode="NXDOMAIN"}' in figures


def test_another_server_may_take_the_place(node: Node) -> None:
    mine = service("kube-dns", DNS, DNS6, space="kube-system")  # without the label, as CoreDNS' manifest has it
    node.put("services", mine)
    node.until(lambda: node.listens() == set())
    node.put("services", OBJECTS["services"][0])
    node.until(lambda: node.listens() == {DNS, DNS6})
    node.until(lambda: node.told("web.t.svc.cluster.local", tcp=True) == ["10.96.0.7"])
