"""Routes to the pods of other nodes, when all nodes share a network segment.

Owns the routes with our own protocol number (`PROTOCOL`), so that ours are told from an administrator's, can be
reconciled after a restart and removed by one purge. `plan` is pure; `Routes.reconcile` makes the kernel agree.

Called by the agent when nodes appear, change or go.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.machinery.errors import Finding
from netsetup import rtnetlink
from netsetup.ledger import Ledger

PROTOCOL = 77  # rtm_protocol of our routes: free in /etc/iproute2/rt_protos, so nobody else's routes match
GONE = (errno.ESRCH, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class Route:
    destination: str
    gateway: str


def plan(nodes: Iterable[Mapping[str, Any]], own_name: str) -> set[Route]:
    """One route per other node that has a pod CIDR and an internal address."""
    wanted = set()
    for node in nodes:
        if node["metadata"]["name"] == own_name:
            continue
        addresses = node.get("status", {}).get("addresses") or []
        inner = next((a["address"] for a in addresses if a.get("type") == "InternalIP" and ":" not in a["address"]), "")
        cidrs = node.get("spec", {}).get("podCIDRs") or [node.get("spec", {}).get("podCIDR")]
        wanted |= {Route(cidr, inner) for cidr in cidrs if cidr and inner and ":" not in cidr}
    return wanted


def present(netlink: rtnetlink.RtNetlink) -> set[Route]:
    """The routes of ours in the main table."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    found = set()
    for answer in netlink.query(rtnetlink.RTM_GETROUTE, body, dump=True):
        if answer[5] != PROTOCOL or answer[4] != rtnetlink.RT_TABLE_MAIN:
            continue
        parts = rtnetlink.attributes(answer, 12)
        if rtnetlink.RTA_DST in parts and rtnetlink.RTA_GATEWAY in parts:
            found.add(Route(f"{socket.inet_ntoa(parts[rtnetlink.RTA_DST])}/{answer[1]}",
                            socket.inet_ntoa(parts[rtnetlink.RTA_GATEWAY])))
    return found


def remove_all(netlink: rtnetlink.RtNetlink) -> None:
    netlink.send([rtnetlink.delete_route(r.destination, gateway=r.gateway, protocol=PROTOCOL)
                  for r in present(netlink)], ignore=GONE)


class Routes:
    """The runner: holds no state, the kernel does."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def reconcile(self, wanted: set[Route]) -> list[Finding]:
        """Make our routes equal to `wanted`. A node that is not on this segment becomes a Finding, not a failure."""
        problems = []
        with rtnetlink.RtNetlink() as netlink:
            have = present(netlink)
            if wanted - have:
                self._ledger.record("route", destination="*", protocol=PROTOCOL)
            for route in sorted(wanted - have, key=lambda r: r.destination):
                try:
                    netlink.send([rtnetlink.set_route(route.destination, gateway=route.gateway, protocol=PROTOCOL)])
                except OSError as error:
                    problems.append(Finding(f"no route to the pods {route.destination} by way of {route.gateway}",
                                            str(error), "put the nodes on one network segment"))
            stale = [r for r in have - wanted if r.destination not in {w.destination for w in wanted}]
            netlink.send([rtnetlink.delete_route(r.destination, gateway=r.gateway, protocol=PROTOCOL) for r in stale],
                         ignore=GONE)
        return problems
