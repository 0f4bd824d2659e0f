"""The server on real sockets of the loopback interface, with another real server behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import dnslib

from agent.dns import metrics, upstreams, zone
from agent.dns.forward import Forwarder
from agent.dns.responder import Responder
from agent.dns.server import Server
from controlplane.machinery.clock import FakeClock

from .test_zone import DB, WEB, Objects, service

HOST = "127.53.53.53"  # an address of its own, where no port is taken


class Elsewhere(asyncio.DatagramProtocol):
    """Somebody else's server: knows every name but `none.org`, answers `slow.org` never, `many.org` at length,
    `long.org` by TCP alone and breaks off at `broken.org`."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address) -> None:
        question = dnslib.DNSRecord.parse(data)
        name = str(question.q.qname)
        self.asked.append(name)
        reply = question.reply()
        if name == "slow.org.":
            return
        if name == "none.org.":
            reply.header.rcode = 3
            reply.add_auth(*dnslib.RR.fromZone("org 900 SOA a b 1 2 3 4 60"))
        elif name == "long.org.":
            reply.header.tc = 1
        else:
            count = 90 if name == "many.org." else 1
            reply.add_answer(*dnslib.RR.fromZone("\n".join(f"{name} 60 A 192.0.2.{n + 1}" for n in range(count))))
        self.transport.sendto(b"\0\0" + reply.pack()[2:], address)  # somebody who guesses a number is not believed
        self.transport.sendto(reply.pack()[:-3 if name == "broken.org." else None], address)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = dnslib.DNSRecord.parse(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        reply = question.reply()
        reply.add_answer(*dnslib.RR.fromZone("\n".join(f"{question.q.qname} 60 A 192.0.2.{n}" for n in range(90))))
        writer.write(len(reply.pack()).to_bytes(2, "big") + reply.pack())
        writer.close()


class Rig:
    def __init__(self) -> None:
        self.clock, self.objects = FakeClock(), Objects()
        self.objects.SERVICES = [*Objects.SERVICES,
                                 service("a", "alias", type="ExternalName", externalName="web.a.svc.cluster.local"),
                                 service("a", "long", type="ExternalName", externalName="long.org")]

    async def run(self, scenario: Callable[[Rig], Awaitable[None]], tmp: Path) -> None:
        loop = asyncio.get_running_loop()
        transport, self.elsewhere = await loop.create_datagram_endpoint(Elsewhere, local_addr=(HOST, 0))
        streams = await asyncio.start_server(self.elsewhere.stream, *transport.get_extra_info("sockname"))
        (tmp / "resolv.conf").write_text("nameserver 192.0.2.254\n")
        others = self.others = upstreams.Upstreams(self.clock.monotonic, lambda: (), (str(tmp / "resolv.conf"),))
        others.config = upstreams.Config({("silent",): ((HOST, 9),)}, (transport.get_extra_info("sockname"),))
        own = zone.Zone(self.objects, "cluster.local", ["10.96.0.0/16"], "10.96.0.10")
        self.responder = Responder(own, Forwarder(others, self.clock), self.clock)
        self.server = Server(self.responder, HOST, 0)
        task = asyncio.create_task(self.server.run())
        await asyncio.wait_for(self.server.listening.wait(), 5)
        try:
            await scenario(self)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            transport.close()
            streams.close()

    async def ask(self, name: str, kind: str = "A", tcp: bool = False, size: int = 0) -> dnslib.DNSRecord:
        question = dnslib.DNSRecord.question(name, kind)
        if size:
            question.add_ar(dnslib.EDNS0(udp_len=size))
        data = await asyncio.to_thread(question.send, HOST, self.server.port, tcp, 5)
        reply = dnslib.DNSRecord.parse(data)
        assert reply.header.id == question.header.id and reply.header.qr
        return reply


def told(reply: dnslib.DNSRecord) -> list[str]:
    return [str(r.rdata) for r in reply.rr]


def test_cluster_names(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for tcp in (False, True, False):
            reply = await rig.ask(WEB, tcp=tcp)
            assert told(reply) == ["10.96.0.7"] and reply.header.aa
        assert (await rig.ask("nope." + WEB)).header.rcode == 3
        assert sorted(told(await rig.ask(DB))) == ["10.244.0.5", "10.244.1.6"]
        rig.objects.SERVICES = [service("a", "web", ("10.96.0.99",))]
        rig.responder.changed()
        assert told(await rig.ask(WEB)) == ["10.96.0.99"]
        assert rig.elsewhere.asked == []
        assert 'coredns_dns_responses_total{rcode="NXDOMAIN"} 1' in metrics.render(rig.responder)
    asyncio.run(Rig().run(scenario, tmp_path))


def test_other_names_are_forwarded_and_kept(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        first, *_ = await asyncio.gather(*(rig.ask("Example.org") for _ in range(5)))
        assert told(first) == ["192.0.2.1"] and first.rr[0].ttl == 60 and str(first.q.qname) == "Example.org."
        assert rig.elsewhere.asked == ["Example.org."]  # once for all five
        await rig.clock.advance(20)
        assert (await rig.ask("example.org")).rr[0].ttl == 40
        await rig.clock.advance(11)
        assert (await rig.ask("example.org")).rr[0].ttl == 60 and len(rig.elsewhere.asked) == 2
        for _ in range(2):
            assert (await rig.ask("none.org")).header.rcode == 3
        assert rig.elsewhere.asked.count("none.org.") == 1
        cut = await rig.ask("many.org")
        assert cut.header.tc and not cut.rr
        assert told(await rig.ask("out.a.svc.cluster.local")) == ["example.org.", "192.0.2.1"]
        assert told(await rig.ask("alias.a.svc.cluster.local")) == [WEB + ".", "10.96.0.7"]
        cut = await rig.ask("long.a.svc.cluster.local")
        assert cut.header.tc and len(cut.rr) > 10  # not the alias alone
        assert len((await rig.ask("long.a.svc.cluster.local", tcp=True)).rr) == 91
        for name in ("x.silent", "broken.org"):  # nobody listens there; nobody could read that
            assert (await rig.ask(name)).header.rcode == 2
    asyncio.run(Rig().run(scenario, tmp_path))


def test_the_hosts_resolvers_are_looked_at_again(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        assert (await rig.ask("example.org")).rr
        rig.others.config = upstreams.Config()
        assert rig.others.for_name(("example", "org")) == (("192.0.2.254", 53),)
        (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.7\n")  # the host is on another network
        await rig.clock.advance(upstreams.LOOK_SECONDS)
        assert rig.others.for_name(("example", "org")) == (("192.0.2.7", 53),)
    asyncio.run(Rig().run(scenario, tmp_path))


def test_what_is_no_question_gets_no_answer(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        def send(data: bytes) -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
                link.settimeout(5)
                link.connect((HOST, rig.server.port))
                for message in (b"x", b"\0" * 12, dnslib.DNSRecord.question("a.b").reply().pack(), data):
                    link.send(message)
                return link.recv(512) if data[2:4] else b""

        transfer = dnslib.DNSRecord.question("cluster.local", "AXFR").pack()
        replies = await asyncio.to_thread(send, transfer)
        assert replies[3] & 15 in (1, 5)
        assert told(await rig.ask(WEB)) == ["10.96.0.7"]
    asyncio.run(Rig().run(scenario, tmp_path))
