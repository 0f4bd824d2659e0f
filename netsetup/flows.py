"""Forget connections of an address that nobody has any more.

Owns one kind of message: delete every connection tracked to or from an address. A client's packets that come after it
are a new connection to the Service: the endpoint they now reach knows nothing of it and says so, instead of silence
until a time-out.

Called by the CNI daemon when a pod's link is gone.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from netsetup.rtnetlink import attribute, nested, packed

NETLINK_NETFILTER = 12
IPCTNL_MSG_CT_DELETE = 0x102  # subsystem 1, message 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_TUPLE_IP, CTA_FILTER = 1, 2, 1, 25
FILTER_SRC = 1
TIMEOUT = 5.0  # seconds: walking a full table takes some ten milliseconds


def forget(address: str) -> None:
    """Delete all connections to and from `address`. Raises OSError, EINVAL where the kernel knows no filter."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.settimeout(TIMEOUT)
        link.bind((0, 0))
        for whose in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            link.send(message(address, whose))
            number = -struct.unpack_from("=i", link.recv(65536), 16)[0]
            if number and number != errno.ENOENT:
                raise OSError(number, os.strerror(number), "conntrack delete")


def message(address: str, whose: int) -> bytes:
    """Delete what has `address` as its source in the original or the reply direction."""
    six = ":" in address
    flags = (FILTER_SRC, 0) if whose == CTA_TUPLE_ORIG else (0, FILTER_SRC)
    body = (nested(whose, nested(CTA_TUPLE_IP, attribute(3 if six else 1, packed(address))))
            + nested(CTA_FILTER, attribute(1, flags[0]), attribute(2, flags[1])))
    return struct.pack("=IHHIIBBH", 20 + len(body), IPCTNL_MSG_CT_DELETE, 1 | 4, 1, 0,
                       socket.AF_INET6 if six else socket.AF_INET, 0, 0) + body
