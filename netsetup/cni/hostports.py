"""Host ports: a pod's port on the node's own addresses.

Owns the chains KUBE-HOSTPORTS and KUBE-HP-<hash>. `rules` is pure: all mappings of the node to one batch, in which the
dispatch chain is rewritten whole, so that a batch also repairs what somebody flushed. Traffic that comes from the pod
itself or from this node's loopback is marked for masquerading (the mark is handled by `netsetup.masquerade`), or the
answer would not come back through us.

Called by the CNI daemon in its worker thread, only when a pod with a host port comes or goes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

from netsetup import xtables
from netsetup.ipam import Holding
from netsetup.ledger import Ledger
from netsetup.masquerade import HOST_PORT_MARK

DISPATCH = "KUBE-HOSTPORTS"
CHAIN = "KUBE-HP-"
HOOKS = [(hook, f'-m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j {DISPATCH}')
         for hook in ("PREROUTING", "OUTPUT")]


def chain_name(container: str, mapping: dict[str, Any]) -> str:
    key = f"{container}/{mapping.get('hostIP', '')}:{mapping['hostPort']}/{mapping.get('protocol', 'tcp')}".lower()
    return CHAIN + base64.b32encode(hashlib.sha256(key.encode()).digest()).decode()[:16]


def rules(holdings: Iterable[Holding], gone: Iterable[str] = ()) -> str:
    """The batch for the nat table that makes exactly these mappings so; `gone`: chains to delete.

    The holdings' addresses are of one family; a mapping that names a host's address of the other one is not its."""
    chains, dispatch, inner = [f":{DISPATCH} - [0:0]"], [], []
    for held in holdings:
        six = ":" in held.address
        length, loopback = (128, "::1/128") if six else (32, "127.0.0.0/8")
        for mapping in held.ports:
            if mapping.get("hostIP") and (":" in mapping["hostIP"]) != six:
                continue
            protocol = str(mapping.get("protocol") or "tcp").lower()
            name = chain_name(held.container, mapping)
            host_ip = mapping.get("hostIP") or ""
            only = f"-d {host_ip}/{length} " if host_ip not in ("", "0.0.0.0", "::") else ""
            chains.append(f":{name} - [0:0]")
            dispatch.append(f"-A {DISPATCH} {only}-p {protocol} -m {protocol} --dport {mapping['hostPort']} -j {name}")
            inner += [f"-A {name} -s {source} -j MARK --set-xmark {HOST_PORT_MARK}"
                      for source in (f"{held.address}/{length}", loopback)]
            inner.append(f"-A {name} -p {protocol} -m {protocol} -j DNAT "
                         f"--to-destination {f'[{held.address}]' if six else held.address}:{mapping['containerPort']}")
    dead = [name for name in gone if f":{name} - [0:0]" not in chains]
    return "\n".join(["*nat", *chains, *(f":{name} - [0:0]" for name in dead), *dispatch, *inner,
                      *(f"-X {name}" for name in dead), "COMMIT", ""])


def apply(backend: xtables.Backend, ledger: Ledger, holdings: list[Holding], gone: Iterable[str] = ()) -> None:
    """Raises xtables.RestoreError."""
    ledger.record("iptables", prefix=DISPATCH, family=backend.family)
    ledger.record("iptables", prefix=CHAIN, family=backend.family)
    backend.restore(rules(holdings, gone))
    missing = [(hook, rule) for hook, rule in HOOKS if rule not in (backend.rules("nat", hook) or ())]
    if missing:
        backend.restore("\n".join(["*nat", *(f"-I {hook} 1 {rule}" for hook, rule in missing), "COMMIT", ""]))
