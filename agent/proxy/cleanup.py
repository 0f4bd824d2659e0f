"""Take the service rules away.

Owns nothing; removes every chain named `KUBE-*` and the jumps to them, from both variants of iptables, whoever of us
wrote them (the proxy, host ports), and the proxy's own nf_tables table. What others put into the tables stays. Running
it twice is fine.

Called by the command line when the node goes down, and in tests.
"""

from __future__ import annotations

from agent.proxy.nftchains import TABLE
from netsetup import nftables, xtables

PREFIX = "KUBE-"


def cleanup(families: tuple[int, ...] = (4, 6)) -> int:
    """How many chains and tables went. Raises Finding or OSError when the kernel refuses."""
    return sum(xtables.remove_chains(PREFIX, family) for family in families) + nftables.delete(TABLE, families)
