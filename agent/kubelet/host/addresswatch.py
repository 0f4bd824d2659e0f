"""Whether this host still has the address that the cluster knows the node by.

Owns the look at the host's addresses, made when one of them or a link changed, never in between. A node whose address
is gone cannot be reached, and says so in its Ready condition until the address is back. One that was never the host's
own, such as that of a router in front of it, is not looked for. Run by the agent's
housekeeping; the node's status reads `problem`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from controlplane.machinery.clock import Clock
from netsetup.addresses import links_of_addresses
from netsetup.hostwatch import HostWatch

log = logging.getLogger(__name__)
CALM_SECONDS = 1.0  # a renewal takes an address away and gives it back at once


class AddressWatch:
    """`changed()` is called when `problem` has changed; `addresses()` are the host's own."""

    def __init__(self, wanted: tuple[str, ...], changed: Callable[[], None], clock: Clock,
                 addresses: Callable[[], Iterable[str]] = links_of_addresses) -> None:
        self._wanted, self._changed, self._clock, self._addresses = wanted, changed, clock, addresses
        self.problem, self._had = "", set[str]()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Look whenever something changed, until cancelled."""
        with HostWatch(self._news.set):
            while True:
                self._news.clear()
                self.look()
                await self._news.wait()
                await self._clock.sleep(CALM_SECONDS)

    def look(self) -> None:
        present = set(self._addresses())
        self._had |= present & set(self._wanted)
        missing = next((one for one in self._wanted if one in self._had - present), "")
        problem = f'node IP: "{missing}" not found in the host\'s network interfaces' if missing else ""
        if problem != self.problem:
            log.warning("%s", problem or "the node's address is back")
            self.problem = problem
            self._changed()
