"""The service proxy and the pod network in a network namespace of their own: full loads, one change, first packets.

Each writer runs in a process and namespace of its own (`python -m tests.bench.proxy WRITER SERVICES`), so nothing of
this host's rules is touched and no figure sees another's leftovers. Endpoints are listeners in a second namespace.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter, sleep
from typing import Any
from unittest import mock

import psutil

from agent.proxy import conntrack, rules
from agent.proxy.conntrack import Flow
from agent.proxy.model import service_ports
from agent.proxy.proxy import Proxy
from agent.proxy.side import Side, uncollected
from controlplane.machinery.errors import Finding
from netsetup import links, netns, nftables, rtnetlink, xtables
from tests.bench import peerproxy
from tests.bench.population import HERE, PODS, SERVER, service, slice_of

WRITERS = ("iptables-legacy", "iptables-nft", "nftables")
SIZES = (100, 1000, 10_000)
CHANGES, CONNECTS, WIRES = 20, 1000, 30
APART = 0.1  # seconds between changes: nf_tables frees what one took away, and lets the next wait for that
FLOWS = 40_000
RUN_SECONDS = 300
AIMS = {("iptables-legacy", "load"): "1,000", ("iptables-nft", "load"): "4,000", ("nftables", "load"): "500",
        ("iptables-legacy", "change"): "300", ("iptables-nft", "change"): "60", ("nftables", "change"): "1"}
WORST = "35"  # of one endpoint's change in the nf_tables table
_libc = ctypes.CDLL(None, use_errno=True)


def planned(number: int, shift: int = 0) -> dict[tuple[str, str], Any]:
    one = service(number)
    return {(one["metadata"]["namespace"], one["metadata"]["name"]): service_ports(one, [slice_of(number, shift)], "n")}


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    begun = perf_counter()
    yield
    into.append((perf_counter() - begun) * 1000)


@contextmanager
def inside(into: list[float]) -> Iterator[None]:
    """Times what is not ours: the same rules given to iptables-restore, the same messages to the kernel."""
    def watched(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            with timed(into):
                real(*arguments)

        return call

    with (mock.patch.object(nftables.Table, "commit", watched(nftables.Table.commit)),
          mock.patch.object(xtables.Backend, "restore", watched(xtables.Backend.restore))):
        yield


def load(side: Side, count: int) -> tuple[float, float]:
    """Milliseconds of planning and of writing everything."""
    objects = [(service(n), slice_of(n)) for n in range(count)]
    planning: list[float] = []
    writing: list[float] = []
    with timed(planning), uncollected(count):
        side.plan({(s["metadata"]["namespace"], s["metadata"]["name"]): service_ports(s, [e], "n") for s, e in objects})
    with timed(writing):
        side.write()
    return planning[0], writing[0]


def changes(side: Side, count: int, shift: int, apart: float = 0) -> list[float]:
    """Milliseconds of changing one endpoint, each time of another service; `apart` seconds lie between them."""
    took: list[float] = []
    for number in range(CHANGES):
        wanted = planned((number * 37 + 1) % (count - 2) + 1, shift)
        sleep(apart)
        with timed(took):
            side.plan(wanted)
            side.write()
    return took


def connects(places: dict[str, tuple[str, int]]) -> dict[str, float]:
    """Median microseconds of a TCP connection to each of the places, in turn: the machine's moods meet them alike."""
    took: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(CONNECTS):
        for name, place in places.items():
            begun = perf_counter()
            socket.create_connection(place).close()
            took[name].append((perf_counter() - begun) * 1e6)
    return {name: statistics.median(found) for name, found in took.items()}


def listen() -> None:
    """A pod's namespace beside this one, with a server that accepts."""
    _libc.unshare(netns.CLONE_NEWNET)
    with rtnetlink.RtNetlink() as link:
        link.send([rtnetlink.set_up(links.LOOPBACK)])
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ready, made = threading.Event(), []

    def serve() -> None:
        _libc.unshare(netns.CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        server = socket.create_server(("0.0.0.0", 8080), backlog=512)
        ready.set()
        while True:
            server.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()
    ready.wait(10)
    with netns.inside(here, rtnetlink.RtNetlink) as link:
        link.send([rtnetlink.new_veth("here", b"\x02\0\0\0\0\1", "eth0", b"\x02\0\0\0\0\2", made[0], 1500)])
        index = link.link("here")[0]
        link.send([rtnetlink.add_address(f"{HERE}/24", index), rtnetlink.set_route("0.0.0.0/0", index, SERVER)])
    with netns.inside(made[0], rtnetlink.RtNetlink) as link:
        index = link.link("eth0")[0]
        link.send([rtnetlink.add_address(f"{SERVER}/24", index), rtnetlink.set_up(index)])


def first_packets(side: Side, count: int) -> dict[str, float]:
    """Microseconds of a connection to the pod itself, to the first and to the last service on a packet's way."""
    def way(number: int) -> list[str]:
        address = service(number)["spec"]["clusterIP"]
        _, lines = rules.branches(int.from_bytes(rtnetlink.packed(address)[-2:]) % 2**rules.DEPTH, 4)
        return [*(rule for _, (_, rule) in lines), address]

    only = {"endpoints": [{"addresses": [SERVER], "nodeName": "other"}]}
    places = {"direct": (SERVER, 8080)}
    for name, number in (("first", min(range(count), key=way)), ("last", max(range(count), key=way))):
        one = service(number)
        side.plan({(one["metadata"]["namespace"], one["metadata"]["name"]):
                   service_ports(one, [{**slice_of(number), **only}], "n")})
        side.write()
        places[name] = (one["spec"]["clusterIP"], 80)
    return connects(places)


def udp_cleanup() -> float:
    """Milliseconds to forget the flows of one service among many entries."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        for number in range(FLOWS):
            try:
                link.sendto(b"x", (f"10.200.{number // 20_000}.1", 1 + number % 20_000))
            except OSError:
                pass  # a refusal of an earlier packet: its entry is made all the same
    took: list[float] = []
    for number in range(5):
        with timed(took):
            conntrack.forget([Flow("udp", "10.200.0.1", 100 + number)])
    return statistics.median(took)


def one_run(writer: str, count: int) -> dict[str, Any]:
    """All figures of one writer, in this process' own namespace. `again` is what a restart costs."""
    listen()
    backend = xtables.Backend(writer.partition("-")[2]) if writer != "nftables" else None
    side, again = (Side("nftables" if backend is None else "iptables", PODS, 4, backend=backend) for _ in range(2))
    others: list[float] = []
    with inside(others):
        plan, write = load(side, count)
        whole = sum(others)
        others.clear()
        took = changes(side, count, 1, APART)
    found = {"plan": plan, "write": write, "change": statistics.median(took), "worst": max(took), "floor": whole,
             "change_floor": statistics.median(others), "crowded": statistics.median(changes(side, count, 2))}
    found |= first_packets(side, count)
    side.writer.close()
    found["again"] = sum(load(again, count))
    if count == max(SIZES):
        found["udp"] = udp_cleanup()
    return found


def wiring() -> float:
    """Milliseconds to wire one pod: the pair, addresses, routes and neighbours on both sides."""
    _libc.unshare(netns.CLONE_NEWNET)
    took: list[float] = []
    with rtnetlink.RtNetlink() as host:
        for number in range(WIRES):
            made: list[int] = []

            def namespace(made: list[int] = made) -> None:
                _libc.unshare(netns.CLONE_NEWNET)
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

            thread = threading.Thread(target=namespace)
            thread.start()
            thread.join()
            with timed(took):
                links.wire(host, links.Wire(f"c{number}", f"/proc/self/fd/{made[0]}", f"10.244.1.{number + 2}"))
            os.close(made[0])
    return statistics.median(took)


class Objects:
    """As much of a client as the proxy's informers use: what there is, and then what is put in."""

    def __init__(self, **known: list[dict[str, Any]]) -> None:
        self.known, self.revision = known, 1
        self.queues: dict[str, asyncio.Queue[tuple[str, dict[str, Any]]]] = {}

    def put(self, plural: str, obj: dict[str, Any]) -> None:
        self.revision += 1
        obj["metadata"] |= {"resourceVersion": str(self.revision), "uid": obj["metadata"]["name"]}
        self.queues[plural].put_nowait(("MODIFIED", obj))

    async def pages(self, resource: Any, **_: Any) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        self.queues[resource.plural] = asyncio.Queue()
        yield self.known.get(resource.plural, []), "1"

    async def watch(self, resource: Any, **_: Any) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        while True:
            yield await self.queues[resource.plural].get()


async def _reactions(writer: str, count: int) -> dict[str, float]:
    """Milliseconds from an EndpointSlice's event to the kernel, and what `_heal` measures."""
    services, slices = [service(n) for n in range(count)], [slice_of(n) for n in range(count)]
    for number, (one, piece) in enumerate(zip(services, slices)):
        one["metadata"] |= {"resourceVersion": "1", "uid": f"s{number}"}
        piece["metadata"] |= {"resourceVersion": "1", "uid": f"e{number}", "labels": {
            "kubernetes.io/service-name": one["metadata"]["name"]}}
    backend = xtables.Backend(writer.partition("-")[2]) if writer != "nftables" else None
    client = Objects(services=services, endpointslices=slices)
    proxy = Proxy(client, "n", PODS, None, "nftables" if backend is None else "iptables", backend=backend)

    async def until(done: Callable[[], bool]) -> float:
        begun = perf_counter()
        async with asyncio.timeout(RUN_SECONDS):
            while not done():  # noqa: ASYNC110 - outside of what is measured
                await asyncio.sleep(0.001)
        return (perf_counter() - begun) * 1000

    empty = psutil.Process().memory_info().rss
    running = asyncio.create_task(proxy.run())
    await proxy.synced.wait()
    syncs, found = proxy.syncs, {"memory": (psutil.Process().memory_info().rss - empty) / 1e6}
    changed = slice_of(3, 1)
    changed["metadata"]["labels"] = {"kubernetes.io/service-name": "s3"}
    client.put("endpointslices", changed)
    found["event"] = await until(lambda: proxy.syncs > syncs)
    if backend is not None:
        found |= await _heal(proxy, client, backend, until)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return found


async def _heal(proxy: Proxy, client: Objects, backend: xtables.Backend,
                until: Callable[[Callable[[], bool]], Any]) -> dict[str, float]:
    """Milliseconds from a foreign flush to whole rules, and to a new connection to the last service."""
    last = client.known["services"][-1]
    piece = slice_of(len(client.known["services"]) - 1)
    piece["metadata"]["labels"] = {"kubernetes.io/service-name": last["metadata"]["name"]}
    syncs = proxy.syncs
    client.put("endpointslices", {**piece, "endpoints": [{"addresses": [SERVER], "nodeName": "other"}]})
    await until(lambda: proxy.syncs > syncs)
    loads, command, answers = proxy.full_loads, backend.command("") or "", threading.Event()

    def connect() -> None:
        while not answers.is_set():
            with suppress(OSError), socket.create_connection((last["spec"]["clusterIP"], 80), 0.02):
                answers.set()

    await asyncio.to_thread(connect)
    answers.clear()
    await asyncio.to_thread(subprocess.run, f"{command} -t nat -F; {command} -F", shell=True, check=True)
    connecting = asyncio.create_task(asyncio.to_thread(connect))
    answered, whole = await asyncio.gather(until(answers.is_set), until(lambda: proxy.full_loads > loads))
    await connecting
    return {"heal": whole, "answers": answered}


def reactions(writer: str, count: int) -> dict[str, float]:
    listen()
    return asyncio.run(_reactions(writer, count))


def names() -> float:
    """Answers per second of the cluster's DNS: many services, each asked in turn, nothing finished before."""
    import dnslib

    from agent.dns.forward import Forwarder
    from agent.dns.responder import Responder
    from agent.dns.zone import Zone

    known = {(s["metadata"]["namespace"], s["metadata"]["name"]): s for s in map(service, range(5000))}

    class Source:
        def service(self, namespace: str, name: str) -> Any:
            return known.get((namespace, name))

        def slices(self, namespace: str, name: str) -> list[Any]:
            return []

        def namespace(self, name: str) -> bool:
            return True

        services_at = slices_at = lambda self, address: []

    responder = Responder(Zone(Source(), "cluster.local"), Forwarder.__new__(Forwarder))
    asked = [bytes(dnslib.DNSRecord.question(f"{name}.{namespace}.svc.cluster.local").pack())
             for namespace, name in known]
    begun = perf_counter()
    for question in asked:
        assert responder.quick(question, False)
    return len(asked) / (perf_counter() - begun)


def separately(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-P", "-m", "tests.bench.proxy", *arguments], capture_output=True, text=True,
                          timeout=RUN_SECONDS)
    if done.returncode:
        raise Finding(f"the measurement {' '.join(arguments)} failed", done.stderr.strip()[-1500:])
    return json.loads(done.stdout)


def measure(args: Namespace) -> list[dict[str, object]]:
    if os.geteuid() != 0:
        raise Finding("the proxy can only be measured by root", "it makes network namespaces",
                      "sudo ./pelamis bench proxy")
    rows: list[dict[str, object]] = []

    def row(what: str, figure: float, unit: str, aim: str = "") -> None:
        rows.append({"area": "proxy", "what": what, "figure": figure, "unit": unit, "aim": aim})

    present = [w for w in WRITERS if w == "nftables" or shutil.which(f"{w}-restore", path=xtables.PATH)]
    for writer in present:
        for count in SIZES:
            found, last = separately(writer, str(count)), count == SIZES[-1]
            what = f"{writer}, {count:,} services"
            row(f"{what}: everything", found["plan"] + found["write"], "ms", AIMS[writer, "load"] if last else "")
            row(f"{what}: of which planning", found["plan"], "ms")
            row(f"{what}: of which the kernel", found["floor"], "ms")
            row(f"{what}: everything, where it is already", found["again"], "ms")
            row(f"{what}: one endpoint, median", found["change"], "ms", AIMS[writer, "change"] if last else "")
            row(f"{what}: one endpoint, worst", found["worst"], "ms", WORST if last and writer == "nftables" else "")
            row(f"{what}: one endpoint, of which the kernel", found["change_floor"], "ms")
            row(f"{what}: one endpoint right after another, median", found["crowded"], "ms")
            row(f"{what}: connection to the first", found["first"], "µs")
            row(f"{what}: last above first", found["last"] - found["first"], "µs", "5" if last else "")
            row(f"{what}: connection past them", found["direct"], "µs")
            quick = separately("reactions", writer, str(count))
            row(f"{what}: memory, beside the objects", quick["memory"], "MB")
            row(f"{what}: an event reaches the kernel", quick["event"], "ms", "100" if last else "")
            if args.kube_proxy and (writer != "nftables" or peerproxy.speaks_nftables(args.kube_proxy)):
                beside(row, what, args.kube_proxy, writer, count)
            if "heal" in quick:
                row(f"{what}: every service answers after a flush", quick["answers"], "ms", "1,000")
                row(f"{what}: every rule is there after a flush", quick["heal"], "ms")
            if "udp" in found:
                row(f"forget a UDP service, {FLOWS:,} flows", found["udp"], "ms", "20")
    row("wire one pod", separately("wiring"), "ms", "3")
    row("DNS answers, one core", separately("names"), "1/s", "5,000")
    return rows


def beside(row: Callable[..., None], what: str, program: str, writer: str, count: int) -> None:
    """Rows of the kube-proxy that was given; what takes it too long is told as that."""
    try:
        found = separately("peer", program, writer, str(count))
    except (Finding, subprocess.TimeoutExpired) as error:
        row(f"{what}: kube-proxy gave up ({str(error).strip().splitlines()[-1][:60]}), after", RUN_SECONDS * 1000, "ms")
        return
    row(f"{what}: everything, kube-proxy", found["load"], "ms")
    row(f"{what}: one endpoint, kube-proxy, median", found["change"], "ms")
    row(f"{what}: an event reaches the kernel, kube-proxy", found["event"], "ms")


if __name__ == "__main__":
    TASKS: dict[str, Callable[[], Any]] = {"wiring": wiring, "names": names}
    what, *rest = sys.argv[1:]
    if what == "peer":
        listen()
        print(json.dumps(asyncio.run(peerproxy.measure(rest[0], rest[1], int(rest[2])))))
    else:
        print(json.dumps(TASKS[what]() if what in TASKS else reactions(rest[0], int(rest[1]))
                         if what == "reactions" else one_run(what, int(rest[0]))))
