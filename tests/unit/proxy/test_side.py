"""What is written when rules of many services are lost: those that clients use come first."""

from agent.proxy import side
from agent.proxy.iptables import Writer
from agent.proxy.model import Endpoint, ServicePort
from netsetup import flows, xtables
from netsetup.rtnetlink import packed


class Kernel(xtables.Backend):
    """An nf_tables backend that keeps what it is given."""

    def __init__(self, nat: str) -> None:
        super().__init__("nft")
        object.__setattr__(self, "nat", nat)
        object.__setattr__(self, "given", [])

    def save(self, table: str = "") -> str:
        return self.nat

    def restore(self, text: str) -> None:
        self.given.append(text)


def loaded(monkeypatch, nat: str) -> list[str]:
    monkeypatch.setattr(side, "URGENT", 2)
    monkeypatch.setattr(flows, "destinations", lambda family: {packed("10.96.0.7")})
    kernel = Kernel(nat)
    one = side.Side("iptables", "10.244.0.0/16", 4, backend=kernel)
    monkeypatch.setattr(Writer, "leave", lambda self: None)
    one.plan({("t", f"s{n}"): (ServicePort("t", f"s{n}", "", "tcp", f"10.96.0.{n}", 80,
                                           cluster=(Endpoint("10.244.1.2", 80),)),) for n in range(1, 10)})
    one.write()
    return kernel.given


def test_services_in_use_come_before_all_others(monkeypatch):
    first, *_, last = loaded(monkeypatch, "")
    assert [n for n in range(1, 10) if f" -d 10.96.0.{n}/32 " in first] == [1, 7]
    assert "-I PREROUTING 1" in first and "-j KUBE-IPS-2-1" in first  # and are led to at once
    assert all(f" -d 10.96.0.{n}/32 " in last for n in range(1, 10))


def test_rules_in_force_are_only_replaced_by_whole_ones(monkeypatch):
    for text in loaded(monkeypatch, "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j KUBE-OLD\n"):
        shown = [n for n in range(1, 10) if f" -d 10.96.0.{n}/32 " in text]
        assert len(shown) in (0, 9)
