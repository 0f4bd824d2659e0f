"""The ledger takes back real changes to a host's kernel, in a namespace of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.proxy.iptables import Writer
from agent.proxy.rules import RuleSet
from netsetup import routes, xtables
from netsetup.ledger import Ledger

from .conftest import Namespace

pytestmark = pytest.mark.kernel
STATE = ("ip -o link; ip -4 -o addr; ip route; cat /proc/sys/net/ipv4/ip_forward;"
         " iptables-nft-save | grep -e '^-A'; iptables-legacy-save | grep -e '^-A'; true")


def settle(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_every_kind_of_change_is_taken_back(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> None:
    host = make_namespace("host")
    host.sh("ip link add up0 type veth peer name up1; ip addr add 192.168.5.1/24 dev up0; ip link set up0 up;"
            "ip link set up1 up; iptables-nft -A FORWARD -s 192.0.2.0/24 -j DROP;"
            "iptables-legacy -t nat -N THEIRS; iptables-legacy -t nat -A OUTPUT -j THEIRS")
    before = host.sh(STATE)
    ledger = Ledger(tmp_path / "lib/ledger.jsonl")
    ledger.record("link", prefix="pel")
    ledger.record("link", name="extra")
    ledger.record("address", address="192.168.6.1/24", device="up0")
    ledger.record("route", destination="198.51.100.0/24", device="up0", gateway="192.168.5.7")
    ledger.record("iptables", prefix="KUBE-")
    ledger.record("iptables", prefix="PELAMIS-")
    host.run(ledger.set_sysctl, "net/ipv4/ip_forward", 1)
    host.sh("ip link add pelaa type veth peer name pelbb; ip link add extra type veth peer name other;"
            "ip addr add 192.168.6.1/24 dev up0; ip route add 198.51.100.0/24 via 192.168.5.7 dev up0;"
            "for v in nft legacy; do iptables-$v -t nat -N KUBE-SERVICES; iptables-$v -t nat -N KUBE-SVC-X;"
            " iptables-$v -t nat -I OUTPUT -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES;"
            " iptables-$v -t nat -A KUBE-SERVICES -j KUBE-SVC-X; iptables-$v -N PELAMIS-FORWARD;"
            " iptables-$v -A FORWARD -j PELAMIS-FORWARD; done")
    nodes = {routes.Route("10.244.7.0/24", "192.168.5.7")}
    assert host.run(routes.Routes(ledger).reconcile, nodes) == []
    assert "10.244.7.0/24 via 192.168.5.7" in host.sh("ip route")
    unreachable = {routes.Route("10.244.8.0/24", "203.0.113.1")}
    assert len(host.run(routes.Routes(ledger).reconcile, unreachable)) == 1  # named, and the stale one is gone
    assert "10.244" not in host.sh("ip route")
    host.run(routes.Routes(ledger).reconcile, nodes)

    target = tmp_path / "mounted"
    target.mkdir()
    ledger.record("mount", target=target)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
    name = f"{host.name}-made"
    ledger.record("netns", name=name)
    subprocess.run(["ip", "netns", "add", name], check=True)

    host.run(ledger.undo)
    assert ledger.findings == []
    assert settle(host.sh(STATE)) == settle(before)
    assert "KUBE" not in host.sh("iptables-nft-save; iptables-legacy-save")
    assert not target.is_mount() and not Path(f"/run/netns/{name}").exists()
    assert host.run(ledger.undo) == [] and not ledger.path.parent.exists()


def test_tables_made_for_us_go_too_unless_others_use_them(make_namespace: Callable[[str], Namespace],
                                                          tmp_path: Path) -> None:
    host, ledger = make_namespace("tables"), Ledger(tmp_path / "ledger.jsonl")
    host.sh("iptables-nft -t mangle -A FORWARD -s 192.0.2.1 -j DROP")
    before = host.sh("nft list ruleset; cat /proc/net/ip_tables_names")
    host.run(lambda: ledger.record("iptables", prefix="KUBE-"))
    writer = Writer(xtables.Backend("nft"), ledger)
    host.run(writer.load, RuleSet("10.244.0.0/16").everything())
    host.sh("iptables-nft -t mangle -N KUBE-X")
    assert host.run(writer.intact) and "table ip nat" in host.sh("nft list ruleset")
    host.run(ledger.undo)
    assert ledger.findings == [] and host.sh("nft list ruleset; cat /proc/net/ip_tables_names") == before


def test_undoing_what_is_gone_already_succeeds(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> None:
    host, ledger = make_namespace("bare"), Ledger(tmp_path / "ledger.jsonl")
    ledger.record("link", name="nolink")
    ledger.record("address", address="192.0.2.1/24", device="nolink")
    ledger.record("route", destination="198.51.100.0/24", device="nolink")
    ledger.record("route", destination="203.0.113.0/24")
    ledger.record("mount", target=tmp_path / "nomount")
    ledger.record("netns", name="nonamespace")
    ledger.record("cgroup", path="/pelamis-never-made")
    ledger.record("iptables", prefix="KUBE-")
    ledger.record("file", path=tmp_path / "nofile")
    ledger.record("symlink", path=tmp_path / "nolink")
    assert len(host.run(ledger.undo)) == 10 and ledger.findings == []
