"""The tunnel to nodes that share no segment with this one: VXLAN, without learning and without broadcast.

Owns one link per family and, on it, per other node the three entries that replace all asking: a route to its pods
through its end of the tunnel, a permanent neighbour for that end and a forwarding entry that says which host it is at.
The hardware address of an end follows from its host's address, so nodes need to tell each other nothing. An end's own
address is the first of its node's pod range, which pods never get: what a node itself sends to pods comes back through
the tunnel too. The outer packet takes whatever way the host's routes say; the link is as much smaller as the wrapping
is large, and a pod that sends more is told so by its own host. Each address family has a link of its own, wrapped in
packets of the same family: a cluster needs nothing of the other one.

Called by `routes`.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from netsetup import addresses, offload, rtnetlink
from netsetup.rtnetlink import Message, RtNetlink, attribute, nested

NAMES = {4: "pelvxlan", 6: "pelvxlan6"}
NETWORK_IDS = {4: 77, 6: 78}  # of ours, beside other tunnels on the same port; two links may not share one
PORT = 8472  # the kernel's own
OVERHEADS = {4: 50, 6: 70}  # bytes: outer IP, UDP, VXLAN and inner Ethernet headers
RTM_GETNEIGH = 30
AF_BRIDGE, NTF_SELF = 7, 2
IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT = 1, 7, 15
IFLA_VXLAN_LOCALS = {4: 4, 6: 17}
DOMAINS = {4: socket.AF_INET, 6: socket.AF_INET6}
GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)


@dataclass(frozen=True, slots=True, order=True)
class End:
    """One node's end: its pods' range and its host's address, of one family."""

    pods: str
    host: str

    @property
    def family(self) -> int:
        return 6 if ":" in self.host else 4

    @property
    def address(self) -> str:
        return str(ipaddress.ip_network(self.pods).network_address)

    @property
    def mac(self) -> bytes:
        raw = rtnetlink.packed(self.host)  # 0e: locally administered
        return b"\x0e\x70" + raw if len(raw) == 4 else b"\x0e" + hashlib.sha256(raw).digest()[:5]


def reconcile(netlink: RtNetlink, own: End, others: Iterable[End]) -> int:
    """Make the link and its neighbours so; the index of the link. Raises OSError (EOPNOTSUPP without VXLAN)."""
    index = _link(netlink, own)
    if carrier := addresses.links_of_addresses().get(own.host):
        offload.mend(NAMES[own.family], socket.if_indextoname(carrier))
    wanted = {e.mac: e for e in others}
    messages: list[Message] = []
    for mac, host in _present(netlink, AF_BRIDGE, index):
        if mac not in wanted or wanted[mac].host != host:
            messages.append(_entry(rtnetlink.RTM_DELNEIGH, AF_BRIDGE, index, mac, host))
    inner = DOMAINS[own.family]
    for mac, address in _present(netlink, inner, index):
        if mac not in wanted or wanted[mac].address != address:
            messages.append(_entry(rtnetlink.RTM_DELNEIGH, inner, index, mac, address))
    netlink.send(messages, ignore=GONE)
    netlink.send([m for e in sorted(wanted.values()) for m in (
        _entry(rtnetlink.RTM_NEWNEIGH, AF_BRIDGE, index, e.mac, e.host),
        _entry(rtnetlink.RTM_NEWNEIGH, inner, index, e.mac, e.address))])
    return index


def remove(netlink: RtNetlink, family: int) -> None:
    """Delete a family's link, and with it everything on it."""
    netlink.send([rtnetlink.delete_link(NAMES[family])], ignore=GONE)


def _link(netlink: RtNetlink, own: End) -> int:
    """The index of a link that is as `own` needs it; one that is not is made anew."""
    size, name = addresses.uplink_mtu() - OVERHEADS[own.family], NAMES[own.family]
    found = _found(netlink, name)
    if found is not None:
        index, parts = found
        if parts.get(rtnetlink.IFLA_ADDRESS) == own.mac and _same(parts, own, size):
            _own_address(netlink, own, index)
            return index
        remove(netlink, own.family)
    netlink.send([_new_link(own, size)])
    index = netlink.link(name)[0]
    _own_address(netlink, own, index)
    return index


def _found(netlink: RtNetlink, name: str) -> tuple[int, dict[int, bytes]] | None:
    try:
        return netlink.link(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def _same(parts: dict[int, bytes], own: End, size: int) -> bool:
    info = rtnetlink.attributes(parts.get(rtnetlink.IFLA_LINKINFO, b""), 0)
    data = rtnetlink.attributes(info.get(rtnetlink.IFLA_INFO_DATA, b""), 0)
    return (data.get(IFLA_VXLAN_LOCALS[own.family]) == rtnetlink.packed(own.host)
            and data.get(IFLA_VXLAN_ID) == struct.pack("=I", NETWORK_IDS[own.family])
            and data.get(IFLA_VXLAN_PORT) == struct.pack(">H", PORT)
            and parts.get(rtnetlink.IFLA_MTU) == struct.pack("=I", size))


def _new_link(own: End, size: int) -> Message:
    data = nested(rtnetlink.IFLA_INFO_DATA, attribute(IFLA_VXLAN_ID, NETWORK_IDS[own.family]),
                  attribute(IFLA_VXLAN_LOCALS[own.family], rtnetlink.packed(own.host)),
                  attribute(IFLA_VXLAN_LEARNING, b"\0"), attribute(IFLA_VXLAN_PORT, struct.pack(">H", PORT)))
    return rtnetlink.new_link(NAMES[own.family], "vxlan", own.mac, size, data)


def _own_address(netlink: RtNetlink, own: End, index: int) -> None:
    """The end's address and no other of ours: the range of a node may have changed."""
    wanted = f"{own.address}/{128 if own.family == 6 else 32}"
    present = [f"{held.address}/{held.length}" for held in netlink.addresses()
               if held.link == index and held.scope == rtnetlink.RT_SCOPE_UNIVERSE]
    netlink.send([rtnetlink.delete_address(prefix, index) for prefix in present if prefix != wanted], ignore=GONE)
    netlink.send([rtnetlink.add_address(wanted, index)])


def _entry(kind: int, family: int, index: int, mac: bytes, address: str) -> Message:
    """A neighbour (which MAC an address has) or, of AF_BRIDGE, a forwarding entry (at which host a MAC is)."""
    flags = NTF_SELF if family == AF_BRIDGE else 0
    body = (struct.pack("=BxHiHBB", family, 0, index, rtnetlink.NUD_PERMANENT, flags, 0)
            + attribute(rtnetlink.NDA_DST, rtnetlink.packed(address)) + attribute(rtnetlink.NDA_LLADDR, mac))
    new = rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_REPLACE if kind == rtnetlink.RTM_NEWNEIGH else 0
    return Message(kind, new, body)


def _present(netlink: RtNetlink, family: int, index: int) -> list[tuple[bytes, str]]:
    """(MAC, address) of the permanent entries on the link."""
    body = struct.pack("=BxHiHBB", family, 0, 0, 0, 0, 0)
    if family == AF_BRIDGE:  # this dump is asked with the head of a link message
        body = struct.pack("=BxHiII", family, 0, 0, 0, 0)
    found = []
    for answer in netlink.query(RTM_GETNEIGH, body, dump=True):
        entry_family, _, on, state = struct.unpack_from("=BxHiH", answer)
        if entry_family != family or on != index or not state & rtnetlink.NUD_PERMANENT:
            continue
        parts = rtnetlink.attributes(answer, 12)
        mac, raw = parts.get(rtnetlink.NDA_LLADDR), parts.get(rtnetlink.NDA_DST)
        if mac and raw:
            found.append((mac, socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)))
    return found
