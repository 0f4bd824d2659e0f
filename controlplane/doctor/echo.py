"""Asks another host for an echo of a packet of a certain size, which nobody on the way may cut.

Owns the form of an ICMP echo. Promises to answer within `seconds`, and False for whatever keeps the answer from coming,
the kernel's own knowledge of a smaller MTU on the way included. Needs root. Called by `doctor.cluster`.

Upstream: RFC 792, RFC 4443, ip(7) on IP_MTU_DISCOVER.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct

HEADERS = {4: 28, 6: 48}  # bytes of IP and ICMP: what a payload leaves of a packet
_ASK, _ANSWER = {4: 8, 6: 128}, {4: 0, 6: 129}  # ICMP types
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, DO = 10, 23, 2  # never cut, and tell
TRIES = 2  # a first packet may be lost while the neighbour's hardware address is asked for


def checksum(data: bytes) -> int:
    """The Internet's checksum of RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(family: int, identifier: int, number: int, payload: int) -> bytes:
    """An echo request. Over IPv6 the kernel fills in the checksum."""
    body = bytes(payload)
    head = struct.pack("!BBHHH", _ASK[family], 0, 0, identifier, number)
    total = checksum(head + body) if family == 4 else 0
    return struct.pack("!BBHHH", _ASK[family], 0, total, identifier, number) + body


def answers(family: int, data: bytes, identifier: int) -> bool:
    """Whether what a raw socket received is the echo that was asked for; IPv4 hands over the IP header too."""
    start = (data[0] & 15) * 4 if family == 4 and data else 0
    if len(data) < start + 8:
        return False
    kind, _, _, known, _ = struct.unpack("!BBHHH", data[start:start + 8])
    return kind == _ANSWER[family] and known == identifier


async def echo(address: str, size: int, seconds: float) -> bool:
    """Whether a packet of `size` bytes, headers included, reaches `address` whole and comes back."""
    family = 6 if ":" in address else 4
    identifier = os.getpid() & 0xFFFF
    with _socket(family) as sock:
        for number in range(1, TRIES + 1):
            try:
                sock.sendto(packet(family, identifier, number, max(0, size - HEADERS[family])), (address, 0))
                async with asyncio.timeout(seconds):
                    while not answers(family, await asyncio.get_running_loop().sock_recv(sock, 65536), identifier):
                        continue
                return True
            except (OSError, TimeoutError):
                continue
    return False


def _socket(family: int) -> socket.socket:
    if family == 6:
        made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, DO)
    else:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, DO)
    made.setblocking(False)
    return made
