"""What the cluster's names answer, as the DNS specification of Kubernetes has it."""

from __future__ import annotations

from typing import ClassVar

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dns import names, upstreams, wire, zone
from agent.dns.zone import Record


def service(namespace: str, name: str, ips: tuple[str, ...] = (), *ports: tuple[str, str, int], **spec) -> dict:
    return {"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ips[0] if ips else "None", "clusterIPs": list(ips), **spec,
                     "ports": [{"name": n, "protocol": p, "port": number} for n, p, number in ports]}}


def endpoint(address: str, hostname: str = "", ready: bool = True) -> dict:
    return {"addresses": [address], "conditions": {"ready": ready}, **({"hostname": hostname} if hostname else {})}


def piece(namespace: str, name: str, *endpoints: dict) -> dict:
    return {"metadata": {"namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "peer", "protocol": "TCP", "port": 7000}], "endpoints": list(endpoints)}


class Objects:
    SERVICES: ClassVar[list] = [service("a", "web", ("10.96.0.7", "fd00::7"), ("http", "TCP", 80), ("", "UDP", 53)),
                               service("a", "db"), service("a", "empty"),
                service("a", "out", type="ExternalName", externalName="Example.ORG."),
                service("a", "digits", type="ExternalName", externalName="192.0.2.1")]
    SLICES: ClassVar[list] = [piece("a", "db", endpoint("10.244.0.5", "db-0"), endpoint("10.244.1.6"),
                    endpoint("10.244.1.7", "db-2", ready=False)), piece("a", "db", endpoint("10.244.0.5", "db-0")),
                    piece("a", "all", endpoint("10.244.1.8")), piece("a", "many", endpoint("10.244.1.8", "z"))]

    def service(self, namespace: str, name: str):
        return next((s for s in self.SERVICES if s["metadata"] == {"namespace": namespace, "name": name}), None)

    def slices(self, namespace: str, name: str):
        return [s for s in self.SLICES if s["metadata"]["labels"]["kubernetes.io/service-name"] == name]

    def namespace(self, name: str) -> bool:
        return name in ("a", "default")

    def services_at(self, address: str):
        return [s for s in self.SERVICES if address in s["spec"]["clusterIPs"]]

    def slices_at(self, address: str):
        return [s for s in self.SLICES if any(address in e["addresses"] for e in s["endpoints"])]


ZONE = zone.Zone(Objects(), "cluster.local", ["10.96.0.0/16", "10.244.0.0/16", "fd00::/64"], "10.96.0.10")
WEB, DB = "web.a.svc.cluster.local", "db.a.svc.cluster.local"


@pytest.mark.parametrize("name, kind, data", [
    (WEB, zone.A, ["10.96.0.7"]), (WEB, zone.AAAA, ["fd00::7"]), (WEB.upper(), zone.A, ["10.96.0.7"]),
    (WEB, zone.TXT, []), (f"_http._tcp.{WEB}", zone.SRV, [(80, 100, WEB)]), (f"_http._tcp.{WEB}", zone.A, []),
    (f"_tcp.{WEB}", zone.A, []), (f"_http._udp.{WEB}", zone.SRV, None), (f"_sctp.{WEB}", zone.A, None),
    (DB, zone.A, ["10.244.1.6", "10.244.0.5"]), (DB, zone.AAAA, []),
    (f"db-0.{DB}", zone.A, ["10.244.0.5"]), (f"10-244-1-6.{DB}", zone.A, ["10.244.1.6"]),
    (f"db-2.{DB}", zone.A, None), (f"_peer._tcp.{DB}", zone.SRV, [(7000, 50, f"10-244-1-6.{DB}"),
                                                                  (7000, 50, f"db-0.{DB}")]),
    ("empty.a.svc.cluster.local", zone.A, None), ("empty.a.svc.cluster.local", zone.SRV, None),
    ("none.a.svc.cluster.local", zone.A, None),
    ("web.b.svc.cluster.local", zone.A, None), ("a.svc.cluster.local", zone.A, []), ("b.svc.cluster.local", 1, None),
    ("svc.cluster.local", zone.A, []), ("cluster.local", zone.A, []), ("x.cluster.local", zone.A, None),
    ("1-2-3-4.a.pod.cluster.local", zone.A, ["1.2.3.4"]), ("1-2-3-4.b.pod.cluster.local", zone.A, None),
    ("fd00--9.a.pod.cluster.local", zone.AAAA, ["fd00::9"]), ("x.a.pod.cluster.local", zone.A, None),
    ("out.a.svc.cluster.local", zone.A, ["example.org"]), ("digits.a.svc.cluster.local", zone.A, None),
    ("digits.a.svc.cluster.local", zone.TXT, None), ("dns-version.cluster.local", zone.TXT, ["1.1.0"]),
    ("cluster.local", zone.NS, ["ns.dns.cluster.local"]), ("ns.dns.cluster.local", zone.A, ["10.96.0.10"]),
    ("7.0.96.10.in-addr.arpa", zone.PTR, [WEB]), ("5.0.244.10.in-addr.arpa", zone.PTR, [f"db-0.{DB}"]),
    ("6.1.244.10.in-addr.arpa", zone.PTR, [f"10-244-1-6.{DB}"]), ("7.1.244.10.in-addr.arpa", zone.PTR, None),
    ("8.1.244.10.in-addr.arpa", zone.PTR, ["z.many.a.svc.cluster.local", "10-244-1-8.all.a.svc.cluster.local"]),
    ("9.9.96.10.in-addr.arpa", zone.PTR, None),
    ("7." + "0." * 27 + "0.0.d.f.ip6.arpa", zone.PTR, [WEB]),
])
def test_answers(name: str, kind: int, data: list | None) -> None:
    answer = ZONE.lookup(names.labels(name), kind)
    assert answer is not None
    assert (answer.rcode == zone.NXDOMAIN) == (data is None)
    assert [r.data for r in answer.answers] == (data or [])


@pytest.mark.parametrize("name", ["example.org", "local", "notcluster.local", "8.8.8.8.in-addr.arpa", "in-addr.arpa"])
def test_names_of_others(name: str) -> None:
    assert ZONE.lookup(names.labels(name), zone.A) is None


@given(st.lists(st.text("abz-_.0", min_size=1, max_size=9), max_size=6))
def test_a_name_of_the_cluster_is_never_for_others(front: list[str]) -> None:
    assert ZONE.lookup(names.labels(".".join([*front, "cluster.local"])), zone.A) is not None


def ask(name: str, kind: str = "A", size: int = 0) -> wire.Question:
    record = dnslib.DNSRecord.question(name, kind)
    if size:
        record.add_ar(dnslib.EDNS0(udp_len=size))
    return wire.question(record.pack())


def test_replies_are_fitted_to_the_client() -> None:
    answer = zone.Answer(answers=[Record("many.a.svc.cluster.local", zone.A, f"10.1.{n // 250}.{n % 250}")
                                  for n in range(400)])
    for asked, limit in ((ask("Many.a.svc.cluster.local"), 512), (ask("many.a.svc.cluster.local", size=4000), 1232)):
        assert asked.size == limit
        data = wire.reply(asked, answer, "cluster.local", 7, asked.size)
        message = dnslib.DNSRecord.parse(data)
        assert len(data) <= limit and message.header.tc and len(message.rr) > limit // 40
        assert wire.answers(data, asked) and data[12:12 + len(asked.raw)] == asked.raw  # spelled as asked
    whole = dnslib.DNSRecord.parse(wire.reply(asked, answer, "cluster.local", 7, 65535))
    assert len(whole.rr) == 400 and not whole.header.tc and whole.ar[0].rtype == wire.OPT
    nothing = dnslib.DNSRecord.parse(wire.reply(asked, zone.Answer(zone.NXDOMAIN), "cluster.local", 7, 512))
    assert nothing.header.rcode == 3 and nothing.auth[0].rdata.times == (7, 7200, 1800, 86400, 5)


@given(st.binary(max_size=80))
def test_no_bytes_do_harm(data: bytes) -> None:
    for message in (data, b"\0\1\1\0\0\1\0\0\0\0\0\1" + data):
        try:
            asked = wire.question(message)
        except wire.MalformedError as error:
            assert error.reply == b"" or error.reply[3] & 15 == wire.FORMERR
        else:
            assert wire.reply(asked, zone.Answer(), "cluster.local", 1, 512)
    asked = ask("a.b")
    reply = b"\0\0\x80\0\0\1\0\1\0\0\0\0" + asked.raw + data
    if wire.whole(reply, asked):
        wire.lifetime(reply, asked, 30, 5)


def test_replies_age_and_are_kept_as_long_as_they_may() -> None:
    asked = ask("example.org", size=1232)
    record = dnslib.DNSRecord(dnslib.DNSHeader(id=9, qr=1), q=dnslib.DNSQuestion("example.org"))
    record.add_answer(*dnslib.RR.fromZone("example.org 300 A 1.2.3.4\nexample.org 20 A 1.2.3.5"))
    seconds, places = wire.lifetime(record.pack(), asked, 30, 5)
    assert seconds == 20
    aged = dnslib.DNSRecord.parse(wire.aged(record.pack(), 77, 8, places, asked.raw))
    assert aged.header.id == 77 and [r.ttl for r in aged.rr] == [292, 12]
    none = dnslib.DNSRecord(dnslib.DNSHeader(qr=1, rcode=3), q=dnslib.DNSQuestion("example.org"))
    assert wire.lifetime(none.pack(), asked, 30, 5)[0] == 0  # no SOA: not to be kept
    none.add_auth(*dnslib.RR.fromZone("org 900 SOA a b 1 2 3 4 60"))
    assert wire.lifetime(none.pack(), asked, 30, 5)[0] == 5


def test_the_hosts_resolvers_without_loops() -> None:
    stub, real = "nameserver 127.0.0.53\noptions edns0", "nameserver 10.96.0.10\nnameserver 192.0.2.1 # ours first"
    assert upstreams.choose([real, stub], ["10.96.0.10"]) == (("192.0.2.1", 53),)
    assert upstreams.choose([stub, "nameserver 192.0.2.9"], []) == (("192.0.2.9", 53),)
    assert upstreams.choose(["", stub], []) == (("127.0.0.53", 53),)
    assert upstreams.choose(["nameserver 10.96.0.10"], ["10.96.0.10"]) == ()
    config, problems = upstreams.read_config({"stubDomains": '{"corp.Example": ["10.0.0.1:5353", "x"], "b": 3}',
                                              "upstreamNameservers": "{"})
    assert config.stubs == {("corp", "example"): (("10.0.0.1", 5353),)} and len(problems) == 3
