"""One address family of the service proxy: what its services want now, and the writer that keeps the kernel at it.

Owns the choice of planner and writer (`iptables`: `rules` and `iptables`; `nftables`: `maps` and `nftables`), and which
service ports were planned last, from which follow the flows that became stale. Planning is pure and quick; `write`
blocks and runs on the proxy's worker thread.

Called by `proxy`, which has one per family.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from agent.proxy import conntrack, iptables, maps, nftables, rules
from agent.proxy.model import ServiceKey, ServicePort
from netsetup import xtables
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
MODES: dict[str, Callable[[str, int], Planner]] = {"iptables": rules.RuleSet, "nftables": maps.MapSet}  # and who plans
MANY = 500  # services from which on a load is worth `uncollected` and somebody who stands in meanwhile


class Planner(Protocol):
    def update(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> None: ...
    def change(self) -> Any: ...
    def everything(self) -> Any: ...


class Writer(Protocol):
    @property
    def tells(self) -> bool: ...
    def bare(self) -> bool: ...
    def load(self, everything: Any) -> None: ...
    def fits(self, change: Any) -> bool: ...
    def apply(self, change: Any) -> None: ...
    def suspicious(self) -> bool: ...
    def intact(self) -> bool: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...


@contextmanager
def uncollected(services: int) -> Iterator[None]:
    """Work without the collector of cyclic garbage: a full load makes hundreds of thousands of objects that all stay,
    and looking through them again and again takes longer than making them. What is made counts as old afterwards."""
    if services < MANY or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # together: everything to the oldest generation, without a look at it
        gc.enable()


class Side:
    """`pods`: the range of this family whose traffic is not masqueraded."""

    def __init__(self, mode: str, pods: str, family: int, ledger: Ledger | None = None,
                 backend: xtables.Backend | None = None) -> None:
        self.family, self._pods, self._ledger = family, pods, ledger
        self._planner = MODES[mode](pods, family)
        self.writer: Writer
        if isinstance(self._planner, maps.MapSet):
            self.writer = nftables.Writer(self._planner.chains, ledger)
        else:
            self.writer = iptables.Writer(backend or xtables.detect(family), ledger)
        self.ports: dict[ServiceKey, tuple[ServicePort, ...]] = {}
        self.stale: list[conntrack.Flow] = []  # to be forgotten once the rules are in
        self._whole = self._first = True
        self._stood_in = False  # maps serve beside the writer's rules
        self._change: Any = None

    def plan(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> list[tuple[ServicePort, ...]]:
        """Take what some services want now; the old and new ports of those that changed."""
        changed = {key: ports for key, ports in services.items() if ports != self.ports.get(key, ())}
        seen = [*changed.values(), *(self.ports[key] for key in changed if key in self.ports)]
        for key, ports in changed.items():
            self.stale += conntrack.stale(self.ports.get(key, ()), ports)
            if ports:
                self.ports[key] = ports
            else:
                self.ports.pop(key, None)
        self._planner.update(changed)
        if not self._whole:
            self._change = self._planner.change()
        return seen

    def fail(self) -> None:
        """A write did not succeed: the next one loads everything."""
        self._whole = True

    @property
    def due(self) -> bool:
        return self._whole or bool(self._change)

    @property
    def loads(self) -> bool:
        """Whether a write would be a load of everything."""
        return self._whole or not self.writer.fits(self._change)

    def write(self) -> bool:
        """Make the kernel agree; whether everything was loaded. Raises OSError, RestoreError or Finding."""
        whole = self.loads
        if whole:
            with uncollected(len(self.ports)):
                if len(self.ports) > MANY and self.writer.bare():
                    self._stand_in()
                self.writer.load(self._planner.everything())
            if self._first or self._stood_in:  # what served until now sees every packet too
                self.writer.leave()
        else:
            self.writer.apply(self._change)
        self._whole = self._first = self._stood_in = False
        self._change = None
        return whole

    def _stand_in(self) -> None:
        """Have every service answer by maps, which are in at once, while chains are loaded that take seconds."""
        planner = maps.MapSet(self._pods, self.family)
        planner.update(self.ports)
        writer = nftables.Writer(planner.chains, self._ledger)
        try:
            writer.load(planner.everything())
            self._stood_in = True
        except OSError as error:
            log.info("services answer when all are loaded, not before: %s", error)
        finally:
            writer.close()

    def lost(self) -> bool:
        """Look whether somebody removed rules; then the next write loads everything."""
        if not self._whole and not self.writer.intact():
            self._whole = True
            return True
        return False

    def forget_flows(self) -> None:
        """After the rules are in: what still goes to endpoints that are no more."""
        flows, self.stale = self.stale, []
        conntrack.forget(flows, self.family)
