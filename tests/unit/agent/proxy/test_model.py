"""Services and slices become service ports: which count, which endpoints, and what a change makes stale."""

from __future__ import annotations

import asyncio
import random
import struct
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.proxy import compat, conntrack, guard, iptables, rules
from agent.proxy.conntrack import Flow
from agent.proxy.health import HealthServers
from agent.proxy.model import Candidates, Endpoint, ServicePort, choose, service_ports
from agent.proxy.trace import Packet, outcomes, parse


def slices(*states: tuple[str, str, dict], port: int = 8080, protocol: str = "TCP", name: str = "") -> list[dict]:
    return [{"metadata": {}, "addressType": "IPv4", "ports": [{"name": name, "port": port, "protocol": protocol}],
             "endpoints": [{"addresses": [a], "nodeName": n, "conditions": c} for a, n, c in states]}]


def service(**spec) -> dict:
    return {"metadata": {"namespace": "d", "name": "s", "labels": spec.pop("labels", {})},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "TCP"}], **spec}}


READY, NOT = {"ready": True}, {"ready": False, "serving": False}
DRAINING = {"ready": False, "serving": True, "terminating": True}
DYING = {"ready": False, "serving": False, "terminating": True}


def chosen(*states: tuple[str, str, dict]) -> tuple[list[str], list[str]]:
    port = service_ports(service(), slices(*states), "me")[0]
    return [e.address for e in port.cluster], [e.address for e in port.local]


def test_ready_endpoints_and_draining_ones_as_a_last_resort() -> None:
    assert chosen(("1.1.1.1", "me", READY), ("1.1.1.2", "it", {}), ("1.1.1.3", "me", NOT),
                  ("1.1.1.4", "me", DRAINING)) == (["1.1.1.1", "1.1.1.2"], ["1.1.1.1"])
    assert chosen(("1.1.1.1", "me", DRAINING), ("1.1.1.2", "it", DRAINING), ("1.1.1.3", "it", DYING)) == \
        (["1.1.1.1", "1.1.1.2"], ["1.1.1.1"])
    assert chosen(("1.1.1.1", "it", READY), ("1.1.1.2", "me", DRAINING)) == (["1.1.1.1"], ["1.1.1.2"])
    twice = slices(("1.1.1.1", "me", NOT)) + slices(("1.1.1.1", "me", READY))  # a slice being rebalanced
    assert service_ports(service(), twice, "me")[0].cluster == (Endpoint("1.1.1.1", 8080, True),)


def test_which_services_are_ours() -> None:
    for other in (service(clusterIP="None"), service(type="ExternalName", clusterIP=""),
                  service(labels={"service.kubernetes.io/service-proxy-name": "x"}), service(clusterIP="fd00::1")):
        assert service_ports(other, [], "me") == ()
    assert service_ports(None, [], "me") == ()
    two = [{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30053}]
    several = service(ports=two, type="NodePort", sessionAffinity="ClientIP", externalIPs=["192.0.2.1", "fd00::2"])
    a, b = service_ports(several, slices(("1.1.1.1", "me", READY), port=53, protocol="UDP", name="b"), "me")
    assert (a.name, a.cluster, b.cluster[0].port, b.node_port, b.affinity) == ("d/s:a", (), 53, 30053, 10800)
    assert a.external_ips == ("192.0.2.1",)
    broken = service(type="LoadBalancer", externalIPs=["y", "192.0.2.1"], loadBalancerSourceRanges=["z", "10.1.2.3/8"])
    broken["status"] = {"loadBalancer": {"ingress": [{"ip": "x"}, {"ip": "01.2.3.4"}, {"ip": "192.0.2.7"}]}}
    port = service_ports(broken, [], "me")[0]  # from before it was checked: no reason to write no rules at all
    assert (port.external_ips, port.load_balancer_ips, port.source_ranges) == (
        ("192.0.2.1",), ("192.0.2.7",), ("10.0.0.0/8",))


def udp(*addresses: str, node_port: int = 0) -> tuple[ServicePort, ...]:
    return (ServicePort("d", "dns", "", "udp", "10.96.0.53", 53, node_port,
                        cluster=tuple(Endpoint(a, 53) for a in addresses)),)


def test_stale_flows() -> None:
    only = frozenset({"1.1.1.1"})
    assert conntrack.stale(udp("1.1.1.1", "1.1.1.2"), udp("1.1.1.2", "1.1.1.3")) == \
        [Flow("udp", "10.96.0.53", 53, "1.1.1.1")]
    assert conntrack.stale(udp(), udp("1.1.1.1", node_port=30053)) == \
        [Flow("udp", "10.96.0.53", 53, keep=only), Flow("udp", "", 30053, keep=only)]
    assert conntrack.stale(udp("1.1.1.1"), ()) == [Flow("udp", "10.96.0.53", 53, "1.1.1.1")]
    assert conntrack.stale(udp("1.1.1.1"), udp("1.1.1.1")) == []
    elsewhere = udp("1.1.1.1")[0]._replace(cluster=(Endpoint("1.1.1.1", 5353),))  # another target port
    assert conntrack.stale(udp("1.1.1.1"), (elsewhere,)) == [Flow("udp", "10.96.0.53", 53, "1.1.1.1")]
    tcp = service_ports(service(), slices(("1.1.1.1", "me", READY)), "me")
    assert conntrack.stale(tcp, ()) == []  # TCP finds out by itself
    one = udp("1.1.1.1")[0]
    assert conntrack.stale((one,), (one._replace(port_name="dns"),)) == []  # a second port was added: all have names
    assert conntrack.stale((one,), (one._replace(external_ips=("192.0.2.1",)),)) == \
        [Flow("udp", "192.0.2.1", 53, keep=only)]
    assert conntrack.stale((one,), (one._replace(port=54),)) == [
        Flow("udp", "10.96.0.53", 53, "1.1.1.1"), Flow("udp", "10.96.0.53", 54, keep=only)]


def test_flows_stay_with_endpoints_that_serve_but_get_nobody_new() -> None:
    def ports(*conditions: dict, **hints: list[dict]) -> tuple[ServicePort, ...]:
        listed = slices(*((f"1.1.1.{n}", "it", c) for n, c in enumerate(conditions, 1)), protocol="UDP")
        for entry, zones in zip(listed[0]["endpoints"], hints.get("zones", ())):
            entry["hints"] = {"forZones": [zones]}
        return service_ports(service(ports=[{"port": 80, "protocol": "UDP"}]), listed, "me", zone="a")

    before, draining = ports(READY, READY), ports(READY, DRAINING)
    assert (draining[0].cluster, draining[0].beside) == ((Endpoint("1.1.1.1", 8080),), (Endpoint("1.1.1.2", 8080),))
    assert conntrack.stale(before, draining) == []
    assert conntrack.stale(draining, ports(READY, DYING)) == [Flow("udp", "10.96.0.1", 80, "1.1.1.2")]
    near = ports(READY, READY, zones=[{"name": "a"}, {"name": "b"}])
    assert (len(near[0].cluster), conntrack.stale(before, near)) == (1, [])


names = st.sampled_from(["a", "b", "c", "d"])
ports = st.builds(
    lambda number, addresses, affinity, node_port, local, protocol: (ServicePort(
        "n", "s", "p", protocol, f"10.96.{number % 3}.{number}", 80, node_port, affinity=affinity,
        external_local=local, load_balancer_ips=("203.0.113.9",) if local else (),
        cluster=tuple(Endpoint(a, 80, a == "10.0.0.1") for a in sorted(addresses)),
        local=tuple(Endpoint(a, 80, True) for a in addresses if a == "10.0.0.1")),),
    st.integers(1, 60), st.sets(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"])), st.sampled_from([0, 60]),
    st.sampled_from([0, 30001]), st.booleans(), st.sampled_from(["tcp", "udp"]))


def named(key: str, made: tuple[ServicePort, ...]) -> tuple[ServicePort, ...]:
    return tuple(p._replace(service=key) for p in made)


def missing(kernel: dict) -> set[rules.Chain]:
    """Chains that rules lead to and that are not there."""
    return {(table, line.rpartition("-j ")[2].split()[0]) for (table, _), lines in kernel.items()
            for line in lines if "-j KUBE-" in line} - kernel.keys()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(names, st.one_of(st.just(()), ports), min_size=1), max_size=8), st.integers(1, 5))
def test_differences_add_up_to_everything_and_never_lead_nowhere(steps: list[dict], chunk: int) -> None:
    made, kernel, last = rules.RuleSet("10.0.0.0/8"), rules.RuleSet("10.0.0.0/8").everything(), {}
    for step in steps:
        made.update({("n", key): named(key, value) for key, value in step.items()})
        change = made.change()
        assert all(kernel.get(c) != r for c, r in change.write.items())  # nothing is written that is there already
        for text in iptables.batches(change, chunk):
            chains = parse(text)
            for table, rest in chains.items():
                gone = {line.split()[1] for line in text.split(f"*{table}\n")[1].split("COMMIT")[0].splitlines()
                        if line.startswith("-X ")}
                for name, tokens in rest.items():
                    kernel[table, name] = tuple(" ".join(t) for t in tokens)
                kernel = {c: r for c, r in kernel.items() if c[0] != table or c[1] not in gone}
            assert not missing(kernel)
        last |= {key: named(key, value) for key, value in step.items()}
    fresh = rules.RuleSet("10.0.0.0/8")
    fresh.update({("n", key): value for key, value in last.items()})
    assert fresh.everything() == made.everything()
    assert kernel.keys() == made.everything().keys()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(names, st.one_of(st.just(()), ports), min_size=1), max_size=8))
def test_parts_add_up_to_the_change_and_never_lead_nowhere(steps: list[dict]) -> None:
    made, kernel = rules.RuleSet("10.0.0.0/8"), {}
    changes = [rules.Change(made.everything())]
    for step in steps:
        made.update({("n", key): named(key, value) for key, value in step.items()})
        changes.append(made.change())
    for change in changes:
        for known, part in iptables.parts(change):
            assert not known or all(table == "nat" and all(map(compat.knows, lines))
                                    for (table, _), lines in part.write.items())
            kernel |= part.write
            kernel = {chain: lines for chain, lines in kernel.items() if chain not in part.delete}
            assert not missing(kernel)
    assert kernel == made.everything()


def test_one_endpoint_is_one_transaction_of_our_own() -> None:
    made = rules.RuleSet("10.0.0.0/8")
    one = slices(("1.1.1.1", "it", READY))
    made.update({("d", "s"): service_ports(service(), one, "me"),
                 ("d", "beside"): service_ports(service(clusterIP="10.96.4.1"), one, "me")})  # in the same leaf
    made.everything()
    made.update({("d", "s"): service_ports(service(), slices(("1.1.1.2", "it", READY)), "me")})
    (known, part), = iptables.parts(made.change())
    assert known and len(part.write) == 1
    made.update({("d", "s"): ()})
    (known, part), = iptables.parts(made.change())
    assert known and part.write and part.delete


def test_a_load_puts_next_to_each_other_what_the_kernel_comes_to_in_turn() -> None:
    made = rules.RuleSet("10.0.0.0/8")
    made.update({("d", str(n)): service_ports(service(clusterIP=f"10.96.{n}.{n * 7 % 256}"),
                                              slices(("1.1.1.1", "it", READY)), "me") for n in range(50)})
    everything, met = made.everything(), []

    def meet(name: str) -> None:
        if name in met or ("nat", name) not in everything:
            return
        met.append(name)
        for line in everything["nat", name]:
            meet(line.rpartition("-j ")[2])

    meet("KUBE-SERVICES")
    _, part = next(iptables.parts(rules.Change(everything)))
    assert [c for _, c in part.write if c.startswith("KUBE-SVC-")] == [c for c in met if c.startswith("KUBE-SVC-")]


def test_rules_that_are_not_known_go_by_iptables_restore() -> None:
    long = "x" * (compat.COMMENT_BYTES + 1)
    for rule in ("-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", "-p sctp -m sctp --dport 7 -j KUBE-SVC-A",
                 "-m recent --name KUBE-SEP-A --rcheck -j KUBE-SEP-A", f'-m comment --comment "{long}" -j KUBE-SVC-A',
                 "-j DROP", "-j MASQUERADE --random-fully"):
        assert not compat.knows(rule)
    assert all(compat.knows(rule) for family in (4, 6) for rule in compat.specimens(family, "KUBE-SVC-A"))


def test_balancing_gives_every_endpoint_the_same_chance() -> None:
    five = slices(*((f"1.1.1.{n}", "it", READY) for n in range(1, 6)))
    made = rules.piece(service_ports(service(), five, "me"), "10.0.0.0/8")
    chain = next(r for (_, c), r in made.own.items() if c.startswith("KUBE-SVC-"))
    left, shares = 1.0, []
    for line in chain:
        chance = float(line.split("--probability ")[1].split()[0]) if "--probability" in line else 1.0
        shares.append(left * chance)
        left *= 1 - chance
    assert len(shares) == 5 and all(abs(s - 0.2) < 1e-9 for s in shares)


def test_many_services_do_not_lengthen_the_way_of_a_packet() -> None:
    made = rules.RuleSet("10.0.0.0/8")
    one = slices(("1.1.1.1", "it", READY))
    numbers = random.Random(7).sample(range(2**20), 4000)  # as the API gives them out, in a range of any size
    made.update({("d", str(n)): service_ports(service(clusterIP=str(IPv4Address("10.96.0.0") + n)), one, "me")
                 for n in {*numbers, 3 * 256 + 7}})
    everything = made.everything()
    for last in range(1 << rules.DEPTH):
        leaf, lines = rules.branches(last, 4)
        passed = sum(len(everything.get(("nat", chain), ())) for chain in {leaf, *(chain for (_, chain), _ in lines)})
        assert passed <= 5 * 4 + 1 + 2 + 16  # branches, node ports, who is masqueraded, the leaf's services
    text = "".join(iptables.batches(rules.Change(everything), hooks=rules.HOOKS))
    assert outcomes(parse(text), Packet("10.1.1.1", "10.96.3.7")) == {"1.1.1.1:8080"}


def test_chains_of_another_version_go() -> None:
    text, = iptables.batches(rules.Change(delete={("nat", "KUBE-IPS-0A600100-24"), ("nat", "KUBE-IPS-4-B")}))
    assert "-X KUBE-IPS-0A600100-24\n" in text and "-X KUBE-IPS-4-B\n" in text


def test_events_that_take_our_rules() -> None:
    def event(kind: int, body: bytes) -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    assert guard.removes_ours(event(guard.NFT_MSG_DELRULE, b"nat\0KUBE-SVC-X\0\0"))
    assert guard.removes_ours(event(0xA00, b"----") + event(guard.NFT_MSG_DELTABLE, b"\0\0\0\0nat\0"))
    assert not guard.removes_ours(event(guard.NFT_MSG_DELRULE, b"nat\0DOCKER\0\0"))
    assert not guard.removes_ours(event(0xA06, b"nat\0KUBE-SVC-X\0"))  # a new rule takes nothing


def test_health_servers_tell_whether_this_node_has_endpoints() -> None:
    async def main() -> list[bytes]:
        servers, answers = HealthServers(lambda: healthy), []
        healthy = True
        probe, one = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0), (Endpoint("1.1.1.1", 80, True),)
        number = probe.sockets[0].getsockname()[1]
        probe.close()
        for local, healthy in ((one, True), ((), True), (one, False)):  # noqa: B007 - the servers ask for it
            port = ServicePort("d", "s", "", "tcp", "10.96.0.1", 80, external_local=True, health_port=number,
                               ready_here=len(local), local=local)
            await servers.update({("d", "s"): (port,)})
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            answers.append(await reader.read())
            writer.close()
        await servers.update({})
        await servers.close()
        return answers
    yes, no, stuck = asyncio.run(main())
    assert yes.startswith(b"HTTP/1.1 200") and b'"localEndpoints": 1' in yes and no.startswith(b"HTTP/1.1 503")
    assert stuck.startswith(b"HTTP/1.1 503") and b'"serviceProxyHealthy": false' in stuck


def test_hints_keep_traffic_near_unless_somebody_would_have_none():
    def near(*hints, node="me", zone="z1"):
        ready = {Endpoint(f"1.1.1.{n}", 80): {
            "forNodes": [{"name": name} for name in nodes], "forZones": [{"name": name} for name in zones]}
            for n, (nodes, zones) in enumerate(hints)}
        return [e.address[-1] for e in choose(Candidates(ready, []), node, zone)[0]]

    assert near(((), ("z1",)), ((), ("z2",))) == ["0"]
    assert near(((), ("z1",)), ((), ())) == ["0", "1"]  # one has no hint: all count
    assert near(((), ("z2",)), ((), ("z3",))) == ["0", "1"]  # none for us
    assert near((("me",), ("z1",)), (("other",), ("z1",))) == ["0"]
    assert near((("other",), ("z1",)), (("third",), ("z2",))) == ["0"]  # nobody on this node: then the zone
    assert near(((), ("z1",)), ((), ("z2",)), zone="") == ["0", "1"]
