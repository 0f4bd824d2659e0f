"""Notice that somebody else removed our rules.

Owns one netlink socket that hears of changes to nf_tables (iptables-nft included). A flush by a firewall's restart,
or `nft flush ruleset`, is heard within milliseconds and without any polling. Only removals that touch our chains count,
and only strangers': each event names the socket it comes from (`ownports`), so that a flush is heard in the middle of
our own writing too. The legacy tables tell nobody anything: for those there is `lockwatch`. In case an event was lost,
`proxy` also looks now and then.

Called by `proxy`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netsetup import ownports
from netsetup.nftables import NETLINK_NETFILTER

NFNLGRP_NFTABLES = 7
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP = 270, 1, 2
NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE = 0xA02, 0xA05, 0xA08
OURS = (b"KUBE-", b"PELAMIS-")  # the chains of the proxy and of the pod network
TABLES = (b"nat\0", b"filter\0", b"mangle\0", b"pelamis-proxy\0")  # where they are
BUFFER = 1 << 20  # bytes of queued events: a batch of ours is larger, and overflowing it only causes one look


class Guard:
    """`on_loss` is called on the loop when rules of ours may have gone."""

    def __init__(self, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                                     NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError:
            self._socket.close()
            raise

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Hear nothing for a while. While nobody listens the kernel makes no events; of 70,000 elements written at once
        they would take it a quarter of a gigabyte, for a moment, and twice the time."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, NFNLGRP_NFTABLES)
        try:
            yield
        finally:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)

    def _readable(self) -> None:
        if self._drain():
            self._on_loss()

    def _drain(self) -> bool:
        lost = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            lost = lost or removes_ours(data)


def removes_ours(data: bytes) -> bool:
    """Whether a datagram of events tells that somebody else removed a chain or rule of ours, or a table with them."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, _, port = struct.unpack_from("=IHHII", data, offset)
        if length < 16:
            return False
        body = data[offset + 16:offset + length]
        sought = {NFT_MSG_DELTABLE: TABLES, NFT_MSG_DELCHAIN: OURS, NFT_MSG_DELRULE: OURS}.get(kind, ())
        if any(name in body for name in sought) and not ownports.is_own(port):
            return True
        offset += (length + 3) & ~3
    return False
