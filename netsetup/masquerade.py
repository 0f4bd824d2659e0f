"""Pods reach the world outside the cluster, and get through a firewall that forwards nothing by itself.

Owns the chains `PELAMIS-*`: masquerading of pod traffic that leaves the cluster's range, masquerading of host-port
traffic that would otherwise be answered past us, and accepting forwarded traffic from and to this node's pods (Docker
and ufw set FORWARD to DROP; a chain of theirs cannot be overruled from another table). Rules are written as
iptables-save prints them, so that applying them again changes nothing.

Called when the CNI daemon is configured, and to put back what somebody flushed.
"""

from __future__ import annotations

from netsetup import xtables
from netsetup.ledger import Ledger

PREFIX = "PELAMIS-"
HOST_PORT_MARK = "0x2000/0x2000"


def nat_rules(pod_cidr: str, cluster_cidr: str) -> list[str]:
    """Both ranges of one family."""
    return [f"-m mark --mark {HOST_PORT_MARK} -j MASQUERADE --random-fully",
            f"-s {pod_cidr} ! -d {cluster_cidr} -m addrtype ! --dst-type LOCAL -j MASQUERADE --random-fully"]


def filter_rules(pod_cidr: str) -> list[str]:
    return [f"-s {pod_cidr} -j ACCEPT", f"-d {pod_cidr} -j ACCEPT"]


def apply(backend: xtables.Backend, ledger: Ledger, pod_cidr: str, cluster_cidr: str) -> bool:
    """True when rules were changed. Raises xtables.RestoreError or Finding."""
    ledger.record("iptables", prefix=PREFIX, family=backend.family)
    nat = xtables.ensure(backend, "nat", {f"{PREFIX}POSTROUTING": nat_rules(pod_cidr, cluster_cidr)},
                         [("POSTROUTING", f"-j {PREFIX}POSTROUTING")])
    accept = xtables.ensure(backend, "filter", {f"{PREFIX}FORWARD": filter_rules(pod_cidr)}, [])
    hooked = _hook_forward(backend)
    return nat or accept or hooked


def remove(backend: xtables.Backend) -> None:
    """No pod of this node needs them. Raises Finding."""
    xtables.remove_from(backend, (f"{PREFIX}POSTROUTING", f"{PREFIX}FORWARD"))


def _hook_forward(backend: xtables.Backend) -> bool:
    """The accepting jump goes last in FORWARD: REJECT rules of services without endpoints come before it."""
    rule = f"-j {PREFIX}FORWARD"
    if rule in (backend.rules("filter", "FORWARD") or ()):
        return False
    backend.restore(f"*filter\n-A FORWARD {rule}\nCOMMIT\n")
    return True
