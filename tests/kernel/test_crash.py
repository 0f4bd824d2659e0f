"""A service proxy that is killed in the middle of a load leaves rules that work, and the next one completes them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.proxy import compat
from agent.proxy.iptables import TRIAL, TRIAL_TARGET, Writer, listed
from agent.proxy.model import service_ports
from agent.proxy.rules import Change, Hook, RuleSet
from netsetup import xtables
from tests.unit.agent.proxy.test_golden import SERVICES
from tests.unit.agent.proxy.test_semantics import in_family

from . import proxynode
from .conftest import Namespace
from .proxynode import PODS, A, B, Cluster, endpoints, service

pytestmark = pytest.mark.kernel
cluster = proxynode.cluster
CHECKOUT = Path(__file__).resolve().parents[2]
COUNT = 600
# Loads many services beside the one that must go on answering, again and again until it is killed.
LOADER = f"""
import sys
from agent.proxy.model import service_ports
from agent.proxy.side import Side
from netsetup import xtables
from tests.kernel.proxynode import PODS, endpoints, service
mode, variant = sys.argv[1:]
side = Side(mode, PODS, 4, backend=xtables.Backend(variant))
wanted = {{f"s{{n}}": (f"10.96.{{6 + n // 250}}.{{n % 250}}", "{B}") for n in range({COUNT})}}
wanted["kept"] = ("10.96.5.250", "{A}")
side.plan({{("t", name): service_ports(service(name, ip), [endpoints(name, end)], "n1")
           for name, (ip, end) in wanted.items()}})
print("ready", flush=True)
while True:
    side.fail()
    side.write()
    print("loaded", flush=True)
"""


def test_a_kill_at_any_moment_leaves_working_rules(cluster: Cluster) -> None:
    cluster.put(service("kept", "10.96.5.250"), endpoints("kept", A))
    assert cluster.b.tcp("10.96.5.250", 80).startswith("a|")
    cluster.stop()
    variant = cluster.backend.variant
    for milliseconds in (5, 20, 45, 80, 130, 200):
        loader = subprocess.Popen(
            ["ip", "netns", "exec", cluster.node.name, sys.executable, "-c", LOADER, cluster.mode, variant],
            stdout=subprocess.PIPE, text=True, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
        assert loader.stdout is not None and loader.stdout.readline() == "ready\n"
        threading.Event().wait(milliseconds / 1000)  # the moment of the crash is what is varied here
        loader.kill()
        loader.wait(10)
        assert cluster.b.tcp("10.96.5.250", 80).startswith("a|"), milliseconds
    cluster.start()
    assert cluster.b.tcp("10.96.5.250", 80).startswith("a|")
    assert cluster.b.tcp("10.96.6.7", 80, 0.3) != f"b|{B}"  # what only the killed ones knew is gone
    cluster.put(service("kept", "10.96.5.250"), endpoints("kept", B))
    assert cluster.b.tcp("10.96.5.250", 80).startswith("b|")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("variant", xtables.BACKENDS)
def test_what_is_right_already_is_not_written_again(make_namespace: Callable[[str], Namespace], variant: str,
                                                    family: int, monkeypatch) -> None:
    backend, host = xtables.Backend(variant, family), make_namespace("host")
    if not backend.present:
        pytest.skip(f"iptables-{variant} is not installed")
    given: list[tuple[Change, Sequence[Hook]]] = []
    write = Writer._write
    monkeypatch.setattr(Writer, "_write", lambda self, *what: (given.append(what), write(self, *what))[1])
    pods, services = in_family((PODS, SERVICES), family)
    planner = RuleSet(pods, family)
    planner.update({("t", one["metadata"]["name"]): service_ports(one, [
        {**piece, "addressType": f"IPv{family}"} for piece in slices], "node0", family) for one, slices in services})
    everything = planner.everything()
    host.run(Writer(backend).load, everything)
    have = listed(host.run(backend.save))
    otherwise = [chain for chain, lines in everything.items() if have[chain] != lines]
    assert 4 * len(otherwise) < len(everything)  # none by iptables 1.8.9 and 1.8.11; others spell most alike
    host.run(Writer(backend).load, everything)  # as an agent does that was started again
    change, hooks = given[-1]
    assert set(change.write) == set(otherwise) and not change.delete and not hooks
    host.sh(f"{backend.command('')} -t nat -F PREROUTING; {backend.command('')} -t nat -F KUBE-POSTROUTING")
    host.run(Writer(backend).load, everything)
    change, hooks = given[-1]
    assert set(change.write) == {*otherwise, ("nat", "KUBE-POSTROUTING")}
    assert [chain for _, chain, _ in hooks] == ["PREROUTING"]


@pytest.mark.parametrize("family", [4, 6])
def test_rules_sent_to_the_kernel_are_told_as_iptables_own(make_namespace: Callable[[str], Namespace],
                                                           family: int) -> None:
    backend, host = xtables.Backend("nft", family), make_namespace("host")
    if not backend.present:
        pytest.skip("iptables-nft is not installed")
    rules = compat.specimens(family, "KUBE-TO")
    lines = "\n".join(f"-A KUBE-OWN {rule}" for rule in rules)
    host.run(backend.restore, f"*nat\n:KUBE-TO - [0:0]\n:KUBE-OWN - [0:0]\n{lines}\nCOMMIT\n")
    writer = Writer(backend)
    host.run(writer._send, Change({("nat", "KUBE-SENT"): rules}))
    assert host.run(backend.rules, "nat", "KUBE-SENT") == host.run(backend.rules, "nat", "KUBE-OWN") == list(rules)
    assert host.run(writer._understood)
    writer.close()
    again = host.run(backend.save)
    host.run(backend.restore, again)  # as a host does that puts back what it saved
    assert listed(host.run(backend.save)) == listed(again)


def test_an_iptables_that_misreads_what_is_sent_writes_it_itself(make_namespace: Callable[[str], Namespace],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    backend, host = xtables.Backend("nft"), make_namespace("host")
    if not backend.present:
        pytest.skip("iptables-nft is not installed")
    told, sent = xtables.Backend.rules, Writer._send
    monkeypatch.setattr(xtables.Backend, "rules", lambda self, table, chain: (
        told(self, table, chain) or [])[:-1] if chain == TRIAL else told(self, table, chain))
    chains: list[str] = []
    monkeypatch.setattr(Writer, "_send", lambda self, change: (
        chains.extend(name for _, name in change.write), sent(self, change))[1])
    planner = RuleSet(PODS)
    planner.update({("t", "one"): service_ports(service("one", "10.96.0.1"), [endpoints("one", A, B)], "n1")})
    host.run(Writer(backend).load, planner.everything())
    assert set(chains) == {TRIAL, TRIAL_TARGET}
    have = listed(host.run(backend.save))
    assert {chain: have.get(chain) for chain in planner.everything()} == planner.everything()
    assert not {("nat", TRIAL), ("nat", TRIAL_TARGET)} & have.keys()


@pytest.mark.parametrize("variant", xtables.BACKENDS)
def test_every_rule_that_goes_is_missed(make_namespace: Callable[[str], Namespace], variant: str) -> None:
    backend, host = xtables.Backend(variant), make_namespace("host")
    if not backend.present:
        pytest.skip(f"iptables-{variant} is not installed")
    writer, planner = Writer(backend), RuleSet(PODS)
    planner.update({("t", name): service_ports(service(name, ip), [endpoints(name, A, B)], "n1")
                    for name, ip in (("one", "10.96.0.1"), ("two", "10.96.0.2"))})
    host.run(writer.load, planner.everything())
    planner.update({("t", "two"): service_ports(service("two", "10.96.0.2"), [endpoints("two", B)], "n1")})
    host.run(writer.apply, planner.change())
    host.sh(f"iptables-{variant} -t nat -N OTHER; iptables-{variant} -t nat -A OTHER -j KUBE-MARK-MASQ")
    assert host.run(writer.intact)  # others' rules take nothing
    leaf = "KUBE-IPS-10-1"
    balancing = next(name for _, name in planner.everything() if name.startswith("KUBE-SVC-"))
    for taken in ("-t nat -D OUTPUT 1", "-D FORWARD 1", f"-t nat -D {leaf} 1", f"-t nat -F {balancing}",
                  "-t nat -F KUBE-MARK-MASQ", "-t nat -F", "-F"):
        host.sh(f"iptables-{variant} {taken}")
        assert not host.run(writer.intact), taken
        host.run(writer.load, planner.everything())
        assert host.run(writer.intact), taken
