"""Forget connections that would keep going to a removed endpoint.

Owns the decision which flows are stale (pure) and their deletion. TCP tells both ends by a reset or a time-out; a UDP
client keeps its socket, and its packets keep refreshing an entry that leads nowhere. Stale are: flows to an endpoint a
service port no longer has, and flows to a port that had no endpoints until now (their entry was made without a
destination). Deletion happens after the new rules are in, or the next packet would revive the old entry. One netlink
message with a filter deletes all matching entries in the kernel; a kernel that does not know the filter is asked
through the `conntrack` tool.

Called by `proxy`, on its worker thread.
"""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from agent.proxy.model import ServicePort
from netsetup.rtnetlink import attribute, nested, packed

log = logging.getLogger(__name__)
NUMBERS = {"udp": 17, "sctp": 132}
NETLINK_NETFILTER = 12
IPCTNL_MSG_CT_DELETE = 0x102  # subsystem 1, message 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_FILTER = 1, 2, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 2, 1, 3
FILTER_SRC, FILTER_DST, FILTER_PROTO, FILTER_DST_PORT = 1, 2, 8, 32
TIMEOUT = 5.0  # seconds: walking a full table takes some ten milliseconds
TOOL_TIMEOUT = 30


@dataclass(frozen=True, slots=True)
class Flow:
    """Entries to delete: original destination ("" for any address, as for node ports) and, unless "", the endpoint."""

    protocol: str
    address: str
    port: int
    endpoint: str = ""


def stale(old: Iterable[ServicePort], new: Iterable[ServicePort]) -> list[Flow]:
    """The flows that the change of one service from `old` ports to `new` ones makes stale."""
    before = {(p.port_name, p.protocol): p for p in old}
    after = {(p.port_name, p.protocol): p for p in new}
    found: list[Flow] = []
    for key in before.keys() | after.keys():
        if key[1] not in NUMBERS:
            continue
        was, now = before.get(key), after.get(key)
        gone = _endpoints(was) - _endpoints(now)
        for endpoint in sorted(gone):
            found += [Flow(key[1], address, port, endpoint) for address, port in _targets(was)]
        if _endpoints(now) and not _endpoints(was):
            found += [Flow(key[1], address, port) for address, port in _targets(now)]
    return found


def _endpoints(port: ServicePort | None) -> set[str]:
    return {e.address for e in (*port.cluster, *port.local)} if port else set()


def _targets(port: ServicePort | None) -> list[tuple[str, int]]:
    if port is None:
        return []
    return [(a, port.port) for a in port.addresses] + ([("", port.node_port)] if port.node_port else [])


def forget(flows: Iterable[Flow], family: int = 4) -> None:
    """Delete the entries. What cannot be deleted is logged: it ends by its own time-out."""
    for flow in flows:
        try:
            _delete(flow, family)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                log.warning("stale flow %s stays until its time-out: %s", flow, error)
                continue
            _tool(flow, family)


def message(flow: Flow, family: int) -> bytes:
    """The nfnetlink message for one flow."""
    number = bytes([NUMBERS[flow.protocol]])
    destination, source = (4, 3) if family == 6 else (2, 1)
    flags, reply_flags = FILTER_PROTO | FILTER_DST_PORT, 0
    original = [nested(CTA_TUPLE_PROTO, attribute(CTA_PROTO_NUM, number),
                       attribute(CTA_PROTO_DST_PORT, struct.pack(">H", flow.port)))]
    if flow.address:
        original.insert(0, nested(CTA_TUPLE_IP, attribute(destination, packed(flow.address))))
        flags |= FILTER_DST
    body = nested(CTA_TUPLE_ORIG, *original)
    if flow.endpoint:
        body += nested(CTA_TUPLE_REPLY, nested(CTA_TUPLE_IP, attribute(source, packed(flow.endpoint))),
                       nested(CTA_TUPLE_PROTO, attribute(CTA_PROTO_NUM, number)))
        reply_flags |= FILTER_SRC
    body += nested(CTA_FILTER, attribute(1, flags), attribute(2, reply_flags))
    domain = socket.AF_INET6 if family == 6 else socket.AF_INET
    return struct.pack("=IHHIIBBH", 20 + len(body), IPCTNL_MSG_CT_DELETE, 1 | 4, 1, 0, domain, 0, 0) + body


def _delete(flow: Flow, family: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.settimeout(TIMEOUT)
        link.bind((0, 0))
        link.send(message(flow, family))
        number = -struct.unpack_from("=i", link.recv(65536), 16)[0]
    if number and number != errno.ENOENT:
        raise OSError(number, "conntrack delete")


def _tool(flow: Flow, family: int) -> None:
    tool = shutil.which("conntrack", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not tool:
        log.warning("stale flow %s stays until its time-out: conntrack is not installed", flow)
        return
    command = [tool, "-D", "-f", "ipv6" if family == 6 else "ipv4", "-p", flow.protocol, "--dport", str(flow.port)]
    command += ["--orig-dst", flow.address] if flow.address else []
    command += ["--dst-nat", flow.endpoint] if flow.endpoint else []
    subprocess.run(command, capture_output=True, timeout=TOOL_TIMEOUT, check=False)  # exit 1: nothing matched
