"""The node's own addresses.

Owns finding them; it changes none. `node_address` is what other nodes and pods reach this node by: the source address
the kernel chooses for the default route, as upstream's kubelet does.

Called by the agent and the command line at start.
"""

from __future__ import annotations

import socket
import struct

from controlplane.machinery.errors import Finding
from netsetup import rtnetlink

PASSING = 0x01 | 0x20  # IFA_F_TEMPORARY, IFA_F_DEPRECATED: an address that will soon be another
DEFAULT_MTU = 1500  # Ethernet's, for a host without a default route
ELSEWHERE = ("192.0.2.1", 9)  # TEST-NET-1: connecting a UDP socket sends nothing, it only chooses a route
ELSEWHERE6 = ("2001:db8::1", 9)


def node_address(family: int = 4) -> str:
    """Raises Finding when the host has no default route of this family."""
    domain, elsewhere = (socket.AF_INET6, ELSEWHERE6) if family == 6 else (socket.AF_INET, ELSEWHERE)
    with socket.socket(domain, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(elsewhere)
        except OSError as error:
            raise Finding(f"this host has no default route of IPv{family}", f"its own address cannot be told: {error}",
                          "add a default route, or name the node's address") from error
        return probe.getsockname()[0]


def global_address6(beside: str) -> str:
    """An IPv6 address of this host that others may use, preferably of the link that has the address `beside`; ""."""
    links = links_of_addresses()
    found = [a for a in links if ":" in a]
    return next((a for a in found if links[a] == links.get(beside)), next(iter(found), ""))


def links_of_addresses() -> dict[str, int]:
    """The index of the link of each address that others may use and that is here to stay."""
    with rtnetlink.RtNetlink() as netlink:
        return {held.address: held.link for held in netlink.addresses()
                if held.scope == rtnetlink.RT_SCOPE_UNIVERSE and not held.flags & PASSING}


def uplink_mtu() -> int:
    """The MTU of the link the default route leaves by: a pod's packets must fit through it."""
    with rtnetlink.RtNetlink() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
            for answer in netlink.query(rtnetlink.RTM_GETROUTE, body, dump=True):
                leaves_by = rtnetlink.attributes(answer, 12).get(rtnetlink.RTA_OIF)
                everywhere = not answer[1] and answer[4] == rtnetlink.RT_TABLE_MAIN
                if not everywhere or leaves_by is None or answer[7] != rtnetlink.RTN_UNICAST:
                    continue
                name = socket.if_indextoname(struct.unpack("=I", leaves_by)[0])
                return struct.unpack("=I", netlink.link(name)[1][rtnetlink.IFLA_MTU])[0]
    return DEFAULT_MTU


def local_addresses() -> list[str]:
    """Every address of this namespace."""
    with rtnetlink.RtNetlink() as netlink:
        return [held.address for held in netlink.addresses()]
