"""A pod's link: a veth pair, point to point, with permanent neighbours both ways.

Owns the wire between a pod and its node. The pod has its address as a /32 and a default route through 169.254.1.1, an
address nobody owns: the neighbour entry for it is permanent and names the host end's MAC, which is the same for every
pod. The host has a /32 route and a permanent neighbour back. So there is no bridge, no proxy ARP, no ARP at all and no
lost first packet; every packet between two pods passes the host's FORWARD chain like any other routed packet. The host
end's name follows from the container's id: wiring and unwiring need no state.

Called by the CNI daemon in a worker thread. The ledger knows all links by their common `PREFIX`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass

from netsetup import netns, rtnetlink, shaping
from netsetup.rtnetlink import RtNetlink

PREFIX = "pel"  # of every host end; what follows is hexadecimal
HOST_MAC = b"\xee" * 6  # locally administered; shared by all host ends, for each has exactly one peer
GATEWAY, GATEWAY6 = "169.254.1.1", "fe80::1"  # link-local, never on any interface
NAME_LIMIT = 15  # IFNAMSIZ less the final zero
LOOPBACK = 1  # the index of lo in every namespace
DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class Wire:
    """What to build: `netns` is a path, `address` the pod's address, `second` that of the other family or ""."""

    container: str
    netns: str
    address: str
    interface: str = "eth0"
    mtu: int = DEFAULT_MTU
    second: str = ""
    receives: tuple[int, int] = (0, 0)  # bits per second (0: any) and bits of a burst, as in `shaping`
    sends: tuple[int, int] = (0, 0)

    @property
    def addresses(self) -> list[tuple[str, str, str]]:
        """(address with its length, gateway, everything) of each family."""
        return [(f"{own}/128", GATEWAY6, "::/0") if ":" in own else (f"{own}/32", GATEWAY, "0.0.0.0/0")
                for own in (self.address, self.second) if own]

    @property
    def host(self) -> str:
        return host_name(self.container, self.interface)

    @property
    def mac(self) -> bytes:
        return b"\x0a\x58" + rtnetlink.packed(self.address)[-4:]  # on its link it only has to differ from the host's


def host_name(container: str, interface: str) -> str:
    """The host end's name: the prefix and as much of a hash as fits."""
    digest = hashlib.sha256(f"{container}/{interface}".encode()).hexdigest()
    return PREFIX + digest[:NAME_LIMIT - len(PREFIX)]


def is_ours(name: str) -> bool:
    tail = name.removeprefix(PREFIX)
    return tail != name and len(name) == NAME_LIMIT and all(c in "0123456789abcdef" for c in tail)


def wire(host: RtNetlink, spec: Wire) -> None:
    """Build the link; one that an earlier, interrupted attempt left is replaced. Raises OSError."""
    descriptor = os.open(spec.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pair = rtnetlink.new_veth(spec.host, HOST_MAC, spec.interface, spec.mac, descriptor, spec.mtu)
        try:
            host.send([pair])
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            unwire(host, spec.host)
            host.send([pair])
        with netns.inside(descriptor, RtNetlink) as pod:
            index = pod.link(spec.interface)[0]
            pod.send([
                rtnetlink.set_up(LOOPBACK),
                *(rtnetlink.add_address(own, index) for own, _, _ in spec.addresses),
                rtnetlink.set_up(index),
                *(message for _, gateway, everything in spec.addresses for message in (
                    rtnetlink.set_route(gateway, index), rtnetlink.set_route(everything, index, gateway),
                    rtnetlink.permanent_neighbour(gateway, HOST_MAC, index))),
                *([shaping.bucket(index, *spec.sends)] if spec.sends[0] else [])])
        outside = host.link(spec.host)[0]
        host.send([message for own, _, _ in spec.addresses for message in (
            rtnetlink.set_route(own, outside),
            rtnetlink.permanent_neighbour(own.partition("/")[0], spec.mac, outside))])
        if spec.receives[0]:
            host.send([shaping.bucket(outside, *spec.receives)])
    except OSError:
        unwire(host, spec.host)
        raise
    finally:
        os.close(descriptor)


def unwire(host: RtNetlink, name: str) -> None:
    """Remove a link and with it its peer, its routes and neighbours; one already gone is fine."""
    host.send([rtnetlink.delete_link(name)], ignore=(errno.ENODEV,))


def loopback_up(path: str) -> None:
    """Bring up `lo` of the namespace at `path`."""
    with netns.inside_path(path, RtNetlink) as pod:
        pod.send([rtnetlink.set_up(LOOPBACK)])


def present(host: RtNetlink) -> list[str]:
    """The host ends of ours."""
    return [name for name in host.link_names() if is_ours(name)]
