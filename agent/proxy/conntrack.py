"""Forget connections that would keep going to a removed endpoint.

Owns the decision which flows are stale (pure). A UDP client keeps its socket, and its packets keep refreshing an entry
that leads nowhere. Stale are: flows to an endpoint that no longer serves an address of a service, and flows to such an
address from before it had endpoints (their entry was made without a destination, or with another service's). An
endpoint that only gets no new flows, because it is on its way out or further off than others, keeps those it has. They
are deleted (`netsetup.flows`) after the new rules are in, or the next packet would revive the old entry. TCP is another
matter: an endpoint that left a Service may go on serving whom it has; `orphans` asks whether it is alive.

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
    """Entries to delete: original destination ("" for any address, as for node ports) and, unless "", the endpoint.

    `keep`: the endpoints whose flows stay."""

    protocol: str
    address: str
    port: int
    endpoint: str = ""
    keep: frozenset[str] = frozenset()


Target = tuple[str, str, int]  # protocol, address, port


def stale(old: Iterable[ServicePort], new: Iterable[ServicePort]) -> list[Flow]:
    """The flows that the change of one service from `old` ports to `new` ones makes stale."""
    before, after = _serving(old), _serving(new)
    found = [Flow(*target, endpoint) for target, was in before.items()
             for endpoint in sorted({address for address, _ in was - after.get(target, set())})]
    return found + [Flow(*target, keep=frozenset(address for address, _ in now)) for target, now in after.items()
                    if now and not before.get(target)]


def _serving(ports: Iterable[ServicePort]) -> dict[Target, set[tuple[str, int]]]:
    """Who serves each address of a service. With its port: an endpoint that listens elsewhere is another one."""
    found: dict[Target, set[tuple[str, int]]] = {}
    for port in ports:
        if port.protocol in NUMBERS:
            ends = {(e.address, e.port) for e in (*port.cluster, *port.local, *port.beside)}
            found |= {(port.protocol, address, port.port): ends for address in port.addresses}
            if port.node_port:
                found[port.protocol, "", port.node_port] = ends
    return found


def forget(stale_flows: Iterable[Flow], family: int = 4) -> None:
    """Delete the entries. What cannot be deleted is logged: it ends by its own time-out."""
    for flow in stale_flows:
        try:
            flows.forget(flows.Match(family, NUMBERS[flow.protocol], flow.port, destination=flow.address,
                                     endpoint=flow.endpoint), flow.keep)
        except OSError as error:
            log.warning("stale flow %s stays until its time-out: %s", flow, error)
