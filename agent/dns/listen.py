"""The cluster's DNS address on this node.

Owns that the address is this node's own (on the loopback interface, never announced and never a source of anything
else), and that the host's firewall lets questions to it pass. So a question is delivered locally, without translation
and without an entry in the table of connections that two questions could race for. The ledger knows both; the rules
return with the other rules when somebody flushes them.

Called by `dns`, on a worker thread.
"""

from __future__ import annotations

import errno

from netsetup import rtnetlink, xtables
from netsetup.ledger import Ledger

CHAIN = "PELAMIS-DNS"
LOOPBACK = 1  # the index of lo in every namespace
METRICS_PORT = 9153


def host_prefix(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def rules(addresses: list[str]) -> list[str]:
    """As iptables-save prints them."""
    return [f"-d {host_prefix(a)} -p {protocol} -m {protocol} --dport {port} -j ACCEPT"
            for a in sorted(addresses) for protocol, port in (("udp", 53), ("tcp", 53), ("tcp", METRICS_PORT))]


def take(address: str, ledger: Ledger | None) -> None:
    """Make the address this node's. Raises OSError."""
    if ledger:
        ledger.record("address", device="lo", address=host_prefix(address))
    with rtnetlink.RtNetlink() as netlink:
        netlink.send([rtnetlink.add_address(host_prefix(address), LOOPBACK, rtnetlink.RT_SCOPE_HOST)],
                     ignore=(errno.EEXIST,))


def leave(address: str) -> None:
    """The opposite of `take`."""
    with rtnetlink.RtNetlink() as netlink:
        netlink.send([rtnetlink.delete_address(host_prefix(address), LOOPBACK)], ignore=(errno.EADDRNOTAVAIL,))


def admit(addresses: list[str], ledger: Ledger | None, backend: xtables.Backend) -> bool:
    """Let questions through the host's firewall; True when rules changed. Raises xtables.RestoreError or Finding."""
    mine = [a for a in addresses if (":" in a) == (backend.family == 6)]
    if ledger and mine:
        ledger.record("iptables", prefix="PELAMIS-", family=backend.family)
    return bool(mine) and xtables.ensure(backend, "filter", {CHAIN: rules(mine)}, [("INPUT", f"-j {CHAIN}")])
