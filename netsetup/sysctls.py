"""The kernel settings a node needs, set through the ledger.

Owns the list and its reasons. A setting the kernel or the namespace does not let us change is returned, not raised:
only `REQUIRED` ones stop a node. Values already at least as good are left alone.

Called once when the CNI daemon is configured.
"""

from __future__ import annotations

import os
from pathlib import Path

from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

REQUIRED = {
    "net/ipv4/ip_forward": 1,  # a node routes between its pods and everybody else
}
WANTED = {
    "net/ipv4/conf/all/route_localnet": 1,  # node ports answer on 127.0.0.1; KUBE-FIREWALL drops martians from outside
    "net/netfilter/nf_conntrack_tcp_timeout_established": 86400,  # the kernel's five days keep dead entries too long
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": 3600,  # a half-closed connection lives an hour, as upstream's
}
SIX = Path("/proc/sys/net/ipv6/conf")
CONNECTIONS_PER_CPU = 32768
CONNECTIONS_LEAST = 131072


def apply(ledger: Ledger, six: bool = False) -> list[Finding]:
    """Set everything, with `six` also what IPv6 needs; what could not be set. Raises Finding for a required one."""
    problems = []
    for key, value in {**REQUIRED, **(_six() if six else {})}.items():
        try:
            ledger.set_sysctl(key, value)
        except OSError as error:
            raise Finding(f"cannot set {key.replace('/', '.')} = {value}", str(error),
                          "run as root on a host that may route") from error
    wanted = dict(WANTED)
    most = max(CONNECTIONS_LEAST, CONNECTIONS_PER_CPU * (os.cpu_count() or 1))
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_max") as current:
            if int(current.read()) < most:
                wanted["net/netfilter/nf_conntrack_max"] = most
    except (OSError, ValueError):
        pass
    for key, value in wanted.items():
        try:
            ledger.set_sysctl(key, value)
        except OSError as error:
            problems.append(Finding(f"cannot set {key.replace('/', '.')} = {value}", str(error)))
    return problems


def _six() -> dict[str, int]:
    """A node that routes IPv6 would no longer hear its own router, unless each link says that it still wants to."""
    hearing = [p.parent.name for p in SIX.glob("*/accept_ra") if p.read_text().strip() == "1"]
    return {**{f"net/ipv6/conf/{name}/accept_ra": 2 for name in hearing}, "net/ipv6/conf/all/forwarding": 1}
