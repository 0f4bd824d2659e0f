"""Who serves while the rules of many services are loaded: maps stand in where nothing leads to any service."""

import pytest

from agent.proxy import nftables, side
from agent.proxy.iptables import Writer
from agent.proxy.maps import MapChange
from agent.proxy.model import Endpoint, ServicePort
from netsetup import xtables

BACKEND = xtables.Backend("nft")


def written(monkeypatch: pytest.MonkeyPatch, *, bare: bool = True, services: int = 9, refused: int = 0) -> list[str]:
    """What is done, in order, until a load succeeded. `refused`: loads that fail before."""
    done: list[str] = []
    failures = [RuntimeError] * refused

    def stand_in(self: nftables.Writer, everything: MapChange) -> None:
        done.append(f"maps of {len(everything.add['services'])}")

    def load(self: Writer, everything: dict) -> None:
        done.append(f"{sum(name.startswith('KUBE-SVC-') for _, name in everything)} chains")
        if failures:
            raise failures.pop()

    monkeypatch.setattr(side, "MANY", 2)
    monkeypatch.setattr(nftables.Writer, "load", stand_in)
    monkeypatch.setattr(Writer, "load", load)
    monkeypatch.setattr(Writer, "bare", lambda self: bare)
    monkeypatch.setattr(Writer, "leave", lambda self: done.append("maps go"))
    one = side.Side("iptables", "10.244.0.0/16", 4, backend=BACKEND)
    one.plan({("t", f"s{n}"): (ServicePort("t", f"s{n}", "", "tcp", f"10.96.0.{n}", 80,
                                           cluster=(Endpoint("10.244.1.2", 80),)),) for n in range(services)})
    for _ in range(refused):
        with pytest.raises(RuntimeError):
            one.write()
        bare = False
    one.write()
    return done


def test_maps_stand_in_until_the_chains_are_loaded(monkeypatch):
    assert written(monkeypatch) == ["maps of 9", "9 chains", "maps go"]


def test_maps_serve_on_while_a_load_fails(monkeypatch):
    assert written(monkeypatch, refused=1) == ["maps of 9", "9 chains", "9 chains", "maps go"]


@pytest.mark.parametrize("few", [{"bare": False}, {"services": 2}])
def test_nobody_stands_in_for_rules_in_force_or_for_few(monkeypatch, few):
    assert not any("maps of" in step for step in written(monkeypatch, **few))
