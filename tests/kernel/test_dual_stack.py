"""Pods, Services and refusals by IPv6 beside IPv4, with both writers."""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.proxy.proxy import Proxy
from netsetup import links, routes, sysctls
from netsetup.ipam import Ipam, companion
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace
from .proxynode import Api, endpoints, service

pytestmark = pytest.mark.kernel
SIX, NODE6 = "fd00:10:244:1::/64", "fd00:77::1"
DEADLINE = 15.0


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def two(request, make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[tuple]:
    node, a, b = (make_namespace(n) for n in ("node", "a", "b"))
    folder = tmp_path_factory.mktemp("six")
    ledger, ipam = Ledger(folder / "ledger.jsonl"), Ipam(folder, "10.244.1.0/24")
    node.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up;"
            f"ip addr add {NODE6}/64 dev up0 nodad; ip addr add 192.168.77.1/24 dev up0")
    node.run(sysctls.apply, ledger, True)
    own: dict[str, tuple[str, str]] = {}
    for pod, name in ((a, "a"), (b, "b")):
        four = ipam.take(name, "eth0", 0.0).address
        own[name] = four, companion(four, ipam.network, ipaddress.IPv6Network(SIX))

        def wire(pod: Namespace = pod, name: str = name) -> None:
            with RtNetlink() as netlink:
                links.wire(netlink, links.Wire(name, pod.path, own[name][0], second=own[name][1]))
        node.run(wire)
    assert node.run(routes.ensure_way, ledger, "fd00:96::/112", NODE6)
    assert not node.run(routes.ensure_way, ledger, "fd00:96::/112", NODE6)
    api, ready = Api(), threading.Event()
    a.serve("a")
    state: dict = {}

    async def main() -> None:
        state["loop"] = asyncio.get_running_loop()
        proxy = state["proxy"] = Proxy(api, "n1", f"10.244.0.0/16,{SIX}", None, request.param)
        running = state["task"] = asyncio.create_task(proxy.run())
        await proxy.synced.wait()
        ready.set()
        await asyncio.gather(running, return_exceptions=True)

    future = node.background(main)
    assert ready.wait(DEADLINE)

    def put(*objects: dict) -> None:
        before = state["proxy"].syncs
        state["loop"].call_soon_threadsafe(lambda: [
            api.change("services" if "spec" in o else "endpointslices", "MODIFIED", copy.deepcopy(o)) for o in objects])
        deadline = time.monotonic() + DEADLINE
        while state["proxy"].syncs == before or state["proxy"]._dirty:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)

    yield node, a, b, own, put
    state["loop"].call_soon_threadsafe(state["task"].cancel)
    future.result(DEADLINE)


def test_both_families_reach_pods_and_services(two: tuple) -> None:
    node, a, b, own, put = two
    assert b.tcp(own["a"][1], 8080) == f"a|{own['b'][1]}" and b.tcp(own["a"][0], 8080) == f"a|{own['b'][0]}"
    both = service("both", "10.96.0.1", node_port=30066, clusterIPs=["10.96.0.1", "fd00:96::1"])
    six = {**endpoints("both", own["a"][1]), "addressType": "IPv6"}
    six["metadata"]["name"] = "both-six"
    put(both, endpoints("both", own["a"][0]), six)
    assert b.tcp("10.96.0.1", 80) == f"a|{own['b'][0]}" and b.tcp("fd00:96::1", 80) == f"a|{own['b'][1]}"
    assert node.tcp("fd00:96::1", 80) == f"a|{NODE6}"
    hairpin = a.tcp("fd00:96::1", 80)
    assert hairpin.startswith("a|") and own["a"][1] not in hairpin
    assert b.tcp(NODE6, 30066).startswith("a|") and b.tcp("192.168.77.1", 30066).startswith("a|")
    put(service("none", "fd00:96::2"))
    assert b.tcp("fd00:96::2", 80) == "REFUSED" and node.tcp("fd00:96::2", 80) == "REFUSED"
