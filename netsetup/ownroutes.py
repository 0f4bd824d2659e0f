"""The routes that are ours: a protocol number of their own tells them from an administrator's.

Owns how they are known, listed and removed all at once. Called by `routes`, which decides what they should be, and by
the ledger's undoing.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from netsetup import rtnetlink

PROTOCOL = 77  # rtm_protocol of our routes: free in /etc/iproute2/rt_protos, so nobody else's routes match
GONE = (errno.ESRCH, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class Route:
    destination: str
    gateway: str

    @property
    def family(self) -> int:
        return 6 if ":" in self.destination else 4


def present(netlink: rtnetlink.RtNetlink) -> set[Route]:
    """The routes of ours in the main table."""
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
        for answer in netlink.query(rtnetlink.RTM_GETROUTE, body, dump=True):
            if answer[5] != PROTOCOL or answer[4] != rtnetlink.RT_TABLE_MAIN:
                continue
            parts = rtnetlink.attributes(answer, 12)
            if rtnetlink.RTA_DST in parts and rtnetlink.RTA_GATEWAY in parts:
                found.add(Route(f"{socket.inet_ntop(family, parts[rtnetlink.RTA_DST])}/{answer[1]}",
                                socket.inet_ntop(family, parts[rtnetlink.RTA_GATEWAY])))
    return found


def remove_all(netlink: rtnetlink.RtNetlink) -> None:
    netlink.send([rtnetlink.delete_route(r.destination, gateway=r.gateway, protocol=PROTOCOL)
                  for r in present(netlink)], ignore=GONE)
