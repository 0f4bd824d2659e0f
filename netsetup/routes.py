"""Routes to the pods of other nodes: direct where nodes share a network segment, through the tunnel elsewhere.

Decides which routes of ours (`ownroutes`) there should be: they can be reconciled after a restart and removed by one
purge. `plan` is pure; `Routes.reconcile` makes the kernel agree. Which way a node is reached is the kernel's to say,
asked at each reconciliation, so that it follows the host's links.

Called by the agent when nodes appear, change or go.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from controlplane.machinery.errors import Finding
from netsetup import addresses, rtnetlink, vxlan
from netsetup.ledger import Ledger
from netsetup.ownroutes import GONE, PROTOCOL, Route, present


def plan(nodes: Iterable[Mapping[str, Any]], own_name: str) -> set[Route]:
    """One route per other node, and address family of which it has a pod CIDR and an internal address."""
    wanted = set()
    for node in nodes:
        if node["metadata"]["name"] == own_name:
            continue
        inner: dict[bool, str] = {}
        for address in node.get("status", {}).get("addresses") or []:
            if address.get("type") == "InternalIP":
                inner.setdefault(":" in address["address"], address["address"])
        cidrs = node.get("spec", {}).get("podCIDRs") or [node.get("spec", {}).get("podCIDR")]
        wanted |= {Route(cidr, inner[":" in cidr]) for cidr in cidrs if cidr and (":" in cidr) in inner}
    return wanted


def own_ends(nodes: Iterable[Mapping[str, Any]], own_name: str) -> set[Route]:
    """This node's own ranges and addresses, one per family, in the same form; none while it has none."""
    return plan((n for n in nodes if n["metadata"]["name"] == own_name), "")


def ensure_way(ledger: Ledger, destination: str, source: str) -> bool:
    """Give a host without any way to `destination` one, by the link of its address `source`; True when it was made.

    A packet to a Service needs some route to begin with, before its destination is translated; without a default route
    there is none. Where this one leads does not matter, but the loopback will not do: IPv6 takes that for a refusal.
    Raises OSError."""
    links = addresses.links_of_addresses()
    with rtnetlink.RtNetlink() as netlink:
        if source not in links or netlink.way(rtnetlink.split(destination)[0]) is not None:
            return False
        ledger.record("route", destination=destination, device=socket.if_indextoname(links[source]), protocol=PROTOCOL)
        netlink.send([rtnetlink.set_route(destination, links[source], protocol=PROTOCOL, source=source)])
        return True


def is_direct(netlink: rtnetlink.RtNetlink, address: str) -> bool:
    """Whether packets to `address` leave without another router. False when there is no way at all."""
    way = netlink.way(address)
    return way is not None and rtnetlink.RTA_GATEWAY not in way


class Routes:
    """The runner: holds no state, the kernel does."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def reconcile(self, wanted: set[Route], own: Collection[Route] = ()) -> list[Finding]:
        """Make our routes equal to `wanted`: direct to a node on a segment of ours, through the tunnel to any other.

        `own` are this node's ranges and addresses: without one there is no tunnel of its family. What cannot be reached
        becomes a Finding, not a failure."""
        problems: list[Finding] = []
        with rtnetlink.RtNetlink() as netlink:
            have = present(netlink)
            direct = {r for r in wanted if is_direct(netlink, r.gateway)}
            if wanted:
                self._ledger.record("route", destination="*", protocol=PROTOCOL)
            for route in sorted(direct - have, key=lambda r: r.destination):
                try:
                    netlink.send([rtnetlink.set_route(route.destination, gateway=route.gateway, protocol=PROTOCOL)])
                except OSError as error:
                    problems.append(_unreachable(route, str(error)))
            tunnelled: set[str] = set()
            for family in vxlan.NAMES:
                far = {route for route in wanted - direct if route.family == family}
                end = next((route for route in own if route.family == family), None)
                tunnelled |= self._tunnel(netlink, family, far, end, problems)
            kept = {r.destination for r in direct} | tunnelled
            stale = [r for r in have - direct if r.destination not in kept]
            netlink.send([rtnetlink.delete_route(r.destination, gateway=r.gateway, protocol=PROTOCOL) for r in stale],
                         ignore=GONE)
        return problems

    def _tunnel(self, netlink: rtnetlink.RtNetlink, family: int, far: set[Route], own: Route | None,
                problems: list[Finding]) -> set[str]:
        """Routes through the tunnel of a family; the destinations they serve."""
        if not far or own is None:
            vxlan.remove(netlink, family)
            problems += [_unreachable(r, "this node has no pod range yet") for r in far]
            return set()
        ends = [vxlan.End(r.destination, r.gateway) for r in far]
        try:
            self._ledger.record("link", name=vxlan.NAMES[family])
            index = vxlan.reconcile(netlink, vxlan.End(own.destination, own.gateway), ends)
            netlink.send([rtnetlink.set_route(e.pods, index, e.address, onlink=True, protocol=PROTOCOL) for e in ends])
        except OSError as error:
            problems += [_unreachable(r, f"the tunnel {vxlan.NAMES[family]} cannot be made: {error}") for r in far]
            return set()
        return {e.pods for e in ends}


def _unreachable(route: Route, why: str) -> Finding:
    return Finding(f"no route to the pods {route.destination} by way of {route.gateway}", why,
                   "put the nodes on one network segment, or load the kernel module vxlan")
