"""Rules of legacy iptables that no binary on this host would show."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netsetup import legacytables, xtables

from .conftest import Namespace

pytestmark = pytest.mark.kernel


def test_left_over_rules_are_seen_and_cleaned_without_a_binary(make_namespace: Callable[[str], Namespace],
                                                               monkeypatch) -> None:
    legacy = xtables.Backend("legacy")
    if not legacy.present or not legacytables.available():
        pytest.skip("needs iptables-legacy, to make the rules, and python-iptables, to find them")
    host = make_namespace("host")
    host.run(legacy.restore, "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n:DOCKER - [0:0]\n"
             "-A PREROUTING -j KUBE-SERVICES\n-A PREROUTING -j DOCKER\n-A KUBE-SERVICES -j KUBE-SVC-A\n"
             "-A KUBE-SVC-A -p tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n")
    found = host.run(legacytables.chains, "", 4, ("nat",))["nat"]
    assert (found["KUBE-SERVICES"], found["KUBE-SVC-A"], found["PREROUTING"]) == (1, 1, 2)

    def nothing_installed(self: xtables.Backend, tool: str) -> str | None:
        return None if self.variant == "legacy" else command(self, tool)

    command = xtables.Backend.command
    monkeypatch.setattr(xtables.Backend, "command", nothing_installed)
    assert host.run(xtables.remove_chains, "KUBE-") == 2
    monkeypatch.undo()
    saved = host.run(legacy.save, "nat")
    assert "KUBE" not in saved and "-A PREROUTING -j DOCKER" in saved


def test_rules_go_where_the_hosts_other_rules_are(make_namespace: Callable[[str], Namespace]) -> None:
    if not all(xtables.Backend(variant).present for variant in xtables.BACKENDS) or not xtables.Backend("").is_nft:
        pytest.skip("needs both variants of iptables, nf_tables the default")
    host = make_namespace("host")
    assert host.run(xtables.detect).variant == "nft"
    host.sh("iptables-legacy -t nat -A PREROUTING -j ACCEPT")
    assert host.run(xtables.detect).variant == "legacy"
    host.sh("iptables-nft -t nat -A PREROUTING -j ACCEPT; iptables-nft -t nat -A PREROUTING -j ACCEPT")
    assert host.run(xtables.detect).variant == "nft"
    host.sh("iptables-legacy -t mangle -N KUBE-IPTABLES-HINT")
    assert host.run(xtables.detect).variant == "legacy"
