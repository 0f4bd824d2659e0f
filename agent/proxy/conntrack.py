"""Forget connections that would keep going to a removed endpoint.

Owns the decision which flows are stale (pure). A UDP client keeps its socket, and its packets keep refreshing an entry
that leads nowhere. Stale are: flows to an endpoint a service port no longer has, and flows to a port that had no
endpoints until now (their entry was made without a destination). They are deleted (`netsetup.flows`) after the new
rules are in, or the next packet would revive the old entry. TCP is another matter: an endpoint that left a Service may
go on serving whom it has; `orphans` asks whether it is alive.

Called by `proxy`, on its worker thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from agent.proxy.model import ServicePort
from netsetup import flows

log = logging.getLogger(__name__)
NUMBERS = {"udp": 17, "sctp": 132}


@dataclass(frozen=True, slots=True)
class Flow:
    """Entries to delete: original destination ("" for any address, as for node ports) and, unless "", the endpoint."""

    protocol: str
    address: str
    port: int
    endpoint: str = ""


def stale(old: Iterable[ServicePort], new: Iterable[ServicePort]) -> list[Flow]:
    """The flows that the change of one service from `old` ports to `new` ones makes stale."""
    before = {(p.port_name, p.protocol): p for p in old if p.protocol in NUMBERS}
    after = {(p.port_name, p.protocol): p for p in new if p.protocol in NUMBERS}
    found: list[Flow] = []
    for key in before.keys() | after.keys():
        was, now = before.get(key), after.get(key)
        gone = _endpoints(was) - _endpoints(now)
        for endpoint in sorted({address for address, _ in gone}):
            found += [Flow(key[1], address, port, endpoint) for address, port in _targets(was)]
        if _endpoints(now) and not _endpoints(was):
            found += [Flow(key[1], address, port) for address, port in _targets(now)]
    return found


def _endpoints(port: ServicePort | None) -> set[tuple[str, int]]:
    """Addresses and ports: an endpoint that listens elsewhere from now on is another one."""
    return {(e.address, e.port) for e in (*port.cluster, *port.local)} if port else set()


def _targets(port: ServicePort | None) -> list[tuple[str, int]]:
    if port is None:
        return []
    return [(a, port.port) for a in port.addresses] + ([("", port.node_port)] if port.node_port else [])


def forget(stale_flows: Iterable[Flow], family: int = 4) -> None:
    """Delete the entries. What cannot be deleted is logged: it ends by its own time-out."""
    for flow in stale_flows:
        try:
            flows.forget(flows.Match(family, NUMBERS[flow.protocol], flow.port, destination=flow.address,
                                     endpoint=flow.endpoint))
        except OSError as error:
            log.warning("stale flow %s stays until its time-out: %s", flow, error)
