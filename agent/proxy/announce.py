"""Answer for load balancers' addresses on the hosts' network.

Owns one packet socket per network card that has such an address: it answers ARP requests for the addresses this node
was elected for and tells everybody when it takes one over; for IPv6 the kernel answers, by proxy neighbours. The
address itself is on no card, so nothing of this host is reachable by it but the Service. Nodes that come first for an
address are asked for their service proxy's health; one that stays silent loses its addresses within seconds, also while
the API server is away. Nothing runs while the cluster announces no address.

Run by `proxy`, with its informers.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from agent.proxy import election
from agent.proxy.election import Obj
from agent.proxy.report import HEALTH_PORT
from controlplane.client.informer import Informer
from controlplane.machinery.clock import Clock
from netsetup import rtnetlink
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
ASK_EVERY, ANSWER_WITHIN, MISSES = 1.0, 1.0, 3  # seconds, seconds, unanswered questions: silence is noticed in 4 s
REPEATS, REPEAT_SECONDS = 3, 1.0  # of the news that an address moved: one broadcast may get lost
GATHER = 0.1  # seconds
ETH_P_ARP, ETH_P_IPV6, ICMPV6 = 0x0806, 0x86DD, 58
NEIGHBOUR_ADVERTISEMENT, OVERRIDE = 136, 1 << 29
REQUEST, REPLY = 1, 2
BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")


def arp(operation: int, mac: bytes, address: str, to_mac: bytes, to_address: str, destination: bytes) -> bytes:
    """A frame: `address` is at `mac`. Pure."""
    return destination + mac + struct.pack("!H", ETH_P_ARP) + _ARP.pack(
        1, 0x0800, 6, 4, operation, mac, socket.inet_aton(address), to_mac, socket.inet_aton(to_address))


def advertisement(mac: bytes, address: str) -> bytes:
    """A frame to all hosts of the network: the IPv6 `address` is at `mac` now. Pure."""
    own, everybody = rtnetlink.packed(address), rtnetlink.packed("ff02::1")
    body = struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, OVERRIDE) + own + b"\x02\x01" + mac
    summed = own + everybody + struct.pack("!IHBB", len(body), 0, 0, ICMPV6) + body
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    total = (total & 0xFFFF) + (total >> 16)
    check = ~(total + (total >> 16)) & 0xFFFF
    head = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + own + everybody
    return (b"\x33\x33\0\0\0\x01" + mac + struct.pack("!H", ETH_P_IPV6) + head + body[:2]
            + struct.pack("!H", check) + body[4:])


def asked(frame: bytes) -> tuple[str, bytes, str] | None:
    """(who is looked for, the asker's MAC and address) of an ARP request. Pure."""
    if len(frame) < 14 + _ARP.size:
        return None
    kind, protocol, _, _, operation, mac, source, _, target = _ARP.unpack_from(frame, 14)
    if (kind, protocol, operation) != (1, 0x0800, REQUEST):
        return None
    return socket.inet_ntoa(target), mac, socket.inet_ntoa(source)


class Card:
    """One network card on which this node answers."""

    def __init__(self, index: int) -> None:
        self.name = socket.if_indextoname(index)
        self.index = index
        with rtnetlink.RtNetlink() as netlink:
            self.mac = netlink.link(self.name)[1][rtnetlink.IFLA_ADDRESS]
        self.addresses: set[str] = set()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                                     socket.htons(ETH_P_ARP))
        self._socket.bind((self.name, ETH_P_ARP))
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def tell(self, address: str) -> None:
        """Everybody who knew the address elsewhere shall know it here."""
        if ":" in address:
            self._send(advertisement(self.mac, address))
            return
        for operation, target in ((REQUEST, b"\0" * 6), (REPLY, BROADCAST)):
            self._send(arp(operation, self.mac, address, target, address, BROADCAST))

    def _readable(self) -> None:
        try:
            frame, address = self._socket.recvfrom(2048)
        except OSError:
            return
        question = asked(frame) if address[2] != socket.PACKET_OUTGOING else None  # type: ignore[attr-defined]
        if question and question[0] in self.addresses:
            wanted, mac, asker = question
            self._send(arp(REPLY, self.mac, wanted, mac, asker, mac))

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.send(frame)
        except OSError as error:
            log.warning("cannot announce on %s: %s", self.name, error)


def card_of(address: str) -> int:
    """The index of the card on whose network the address is; 0 when it is on none."""
    with rtnetlink.RtNetlink() as netlink:
        way = netlink.way(address) or {}
    if rtnetlink.RTA_GATEWAY in way or rtnetlink.RTA_OIF not in way:
        return 0
    return int(struct.unpack("=I", way[rtnetlink.RTA_OIF])[0])


class Announcer:
    """With the proxy's informers. `announced`: the addresses this node was elected for."""

    def __init__(self, node: str, services: Informer, nodes: Informer, slices: Informer, ledger: Ledger,
                 clock: Clock) -> None:
        self._node, self._ledger, self._clock = node, ledger, clock
        self._services, self._nodes, self._slices = services, nodes, slices
        services.add_index("announced", lambda service: ["yes"] if election.wanted(service) else [])
        self._cards: dict[int, Card] = {}
        self._told: set[str] = set()
        self._missed: dict[str, int] = {}
        self._ranks: dict[str, list[str]] = {}
        self._known: dict[str, str] = {}
        self._wake = asyncio.Event()
        self.announced: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; then nobody is answered any more."""
        for informer in (self._services, self._nodes, self._slices):
            informer.subscribe(lambda *_: self._wake.set())
            await informer.synced()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._wake.clear()
                    self._elect()
                    for address in self._announce():
                        group.create_task(self._repeat(address))
                    if election.ahead(self._node, self._ranks):
                        await self._ask()
                    else:
                        self._missed.clear()
                        await self._wake.wait()
                        await self._clock.sleep(GATHER)
        finally:
            for card in self._cards.values():
                card.close()
            self._proxy_neighbours(self.announced, set())

    def _elect(self) -> None:
        self._known = election.ready(self._nodes.items())
        self._ranks = {}
        for service in self._services.by("announced", "yes"):
            for address in election.wanted(service):
                meta = service["metadata"]
                slices = self._slices.by("service", f"{meta['namespace']}/{meta['name']}")
                self._ranks[address] = election.ranked(address, election.candidates(service, slices, self._known))

    async def _ask(self) -> None:
        """One round of questions to those who come first, and the pause after it."""
        nodes = election.ahead(self._node, self._ranks) & self._known.keys()
        answers = await asyncio.gather(*(self._answers(self._known[node]) for node in nodes))
        self._missed = {node: 0 if fine else self._missed.get(node, 0) + 1 for node, fine in zip(nodes, answers)}
        await self._clock.sleep(ASK_EVERY)

    async def _answers(self, address: str) -> bool:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                reader, writer = await asyncio.open_connection(address, HEALTH_PORT)
                try:
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n")
                    return (await reader.readline()).split(b" ")[1:2] == [b"200"]
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    def _announce(self) -> list[str]:
        """Answer for what is ours now; the addresses that are newly so."""
        silent = {node for node, missed in self._missed.items() if missed >= MISSES}
        ours = election.mine(self._node, self._ranks, silent)
        if ours == self.announced:
            return []
        fresh, gone = ours - self.announced, self.announced - ours
        placed = {address: card_of(address) for address in fresh}
        for address in sorted(a for a, index in placed.items() if not index):
            if address not in self._told:
                log.warning("load balancer address %s is on no network of this host", address)
                self._told.add(address)
        for index in {i for i in placed.values() if i} - self._cards.keys():
            self._cards[index] = Card(index)
        for address in gone:
            for card in self._cards.values():
                card.addresses.discard(address)
            log.info("another node answers for %s", address)
        for address, index in placed.items():
            if index:
                self._cards[index].addresses.add(address)
                log.info("answering for %s on %s", address, self._cards[index].name)
        for index in [i for i, card in self._cards.items() if not card.addresses]:
            self._cards.pop(index).close()
        self._proxy_neighbours(gone, {a for a, index in placed.items() if index})
        self.announced = ours
        return [a for a, index in placed.items() if index]

    async def _repeat(self, address: str) -> None:
        for _ in range(REPEATS):
            card = next((c for c in self._cards.values() if address in c.addresses), None)
            if card is None:
                return
            card.tell(address)
            await self._clock.sleep(REPEAT_SECONDS)

    def _proxy_neighbours(self, gone: Iterable[str], fresh: Iterable[str]) -> None:
        """IPv6: the kernel answers for addresses it is told to be a proxy of."""
        steps: list[tuple[Callable[[str, int], rtnetlink.Message], str]] = [
            *((rtnetlink.delete_proxy, a) for a in gone if ":" in a),
            *((rtnetlink.set_proxy, a) for a in fresh if ":" in a)]
        if not steps:
            return
        with rtnetlink.RtNetlink() as netlink:
            for make, address in steps:
                if index := card_of(address):
                    self._ledger.set_sysctl(f"net/ipv6/conf/{socket.if_indextoname(index)}/proxy_ndp", 1)
                    netlink.send([make(address, index)], ignore=(errno.ENOENT, errno.EEXIST, errno.ENODEV))


def keep(obj: dict[str, Any]) -> dict[str, str]:
    """The annotations of a Service that matter here."""
    given: Obj = obj["metadata"].get("annotations") or {}
    return {key: value for key, value in given.items() if key == election.ANNOUNCED}
