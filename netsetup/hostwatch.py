"""Notice that this host's own addresses or routes changed.

Owns one rtnetlink socket that hears of links, addresses and routes. Of the many events that pods cause none counts:
only addresses, networks a link is on, the loss of routes of ours and of links that are no pod's do (a link takes its
routes with it without a word about them). Nothing is asked again and again.

Called by the agent, on its event loop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from netsetup import links, ownroutes, rtnetlink

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
HOST_LENGTHS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}
PASSED_OVER = (b"\xfe\x80", b"\xff")  # link-local and multicast networks of IPv6: every new link has them


class HostWatch:
    """A context manager inside a running loop; calls `on_change` on it."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def __enter__(self) -> HostWatch:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR
                               | RTMGRP_IPV6_ROUTE))
            asyncio.get_running_loop().add_reader(self._socket, self._readable)
        except OSError:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        changed = False
        while True:
            try:
                changed = concerns(self._socket.recv(1 << 16)) or changed
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # events were lost: assume the worst
        if changed:
            self._on_change()


def concerns(data: bytes) -> bool:
    """Whether a datagram of events says that ways to other hosts may have changed."""
    for kind, _, _, body in rtnetlink.framed(data):
        if kind in (rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR):
            if body[1] != HOST_LENGTHS.get(body[0]) and body[3] != rtnetlink.RT_SCOPE_LINK:
                return True  # single ones are ours: the cluster's DNS, the end of the tunnel
        elif kind == rtnetlink.RTM_DELLINK:
            name = rtnetlink.attributes(body, 16).get(rtnetlink.IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
            if not links.is_ours(name):
                return True
        elif kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE) and body[4] == rtnetlink.RT_TABLE_MAIN:
            ours = body[5] == ownroutes.PROTOCOL
            passed = rtnetlink.attributes(body, 12).get(rtnetlink.RTA_DST, b"").startswith(PASSED_OVER)
            network = body[1] != HOST_LENGTHS.get(body[0]) and not passed
            if (ours and kind == rtnetlink.RTM_DELROUTE) or (not ours and network):
                return True
    return False
