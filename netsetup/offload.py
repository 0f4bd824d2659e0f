"""Checksums that a network card fills in, and cards that cannot do it inside a tunnel.

The kernel leaves the checksum of what a pod sends to the card, also when the packet is wrapped for the tunnel. VMware's
vmxnet3 looks into packets of VMware's own tunnel port alone: through any other one, pods of other nodes answer pings
and nothing else. There the kernel is to fill checksums in before it wraps. It costs a tunnel more than half of what it
could carry, so no other card pays for it.

Called by `vxlan`. Source: ethtool.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x3, 0x16, 0x17
DRVINFO_SIZE = 196  # bytes: the command, then strings of 32, the first of which is the driver's name
BLIND = ("vmxnet3",)


def mend(tunnel: str, carrier: str) -> None:
    """Have the kernel fill in the checksums of what goes into `tunnel` if the card `carrier` cannot. Raises OSError."""
    if driver(carrier) in BLIND and fills_in_later(tunnel):
        _ask(tunnel, struct.pack("=II", ETHTOOL_STXCSUM, 0))


def driver(card: str) -> str:
    """The name of its driver. Raises OSError."""
    told = _ask(card, struct.pack("=I", ETHTOOL_GDRVINFO).ljust(DRVINFO_SIZE, b"\0"))
    return told[4:36].rstrip(b"\0").decode()


def fills_in_later(interface: str) -> bool:
    """Whether checksums are left to whoever sends the packet in the end. Raises OSError."""
    return _ask(interface, struct.pack("=II", ETHTOOL_GTXCSUM, 0))[4:] != bytes(4)


def _ask(interface: str, command: bytes) -> bytes:
    answer = ctypes.create_string_buffer(command, len(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        fcntl.ioctl(link, SIOCETHTOOL, struct.pack("16sP", interface.encode(), ctypes.addressof(answer)))
    return answer.raw
