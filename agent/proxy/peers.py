"""Routes to the pods of the other nodes.

Owns the loop from Node objects to this node's routing table: when nodes come, go or change address or range, the routes
of ours are made to agree, all at once. The same happens when this host's own addresses or routes change, for they
decide whether a node is reached directly or through the tunnel. A node that cannot be routed to is told once, not at
every change. While somebody else gives pods their network, no route is ours.

Run by `proxy`, whose identity may read nodes. The routes themselves are `netsetup.routes`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from controlplane.client.informer import Informer
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.resources import named
from netsetup import hostwatch, routes
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
GATHER = 0.1  # seconds: nodes report their status often, and routes seldom follow from it
RETRY = 10.0  # seconds until routes that failed are tried again: a segment comes up by itself or not at all
KEPT = ("addresses", "conditions")  # of a node's status; its images alone are larger than everything else we keep


class Peers:
    """Follow the nodes for as long as `run` runs. The routes stay after it. `aside()`: they are somebody else's now."""

    def __init__(self, client: Any, node_name: str, ledger: Ledger, clock: Clock = SYSTEM,
                 aside: Callable[[], bool] = bool) -> None:
        self._node, self._clock, self._routes, self._aside = node_name, clock, routes.Routes(ledger), aside
        self.nodes = Informer(client, named("nodes"), keep=_trim, clock=clock)
        self._wake = asyncio.Event()
        self._moved = False
        self._told: set[str] = set()

    async def run(self, do: Callable[[Callable[[], Any]], Any]) -> None:
        """`do`: runs blocking work on a worker thread."""
        self.nodes.subscribe(lambda *_: self._wake.set())
        async with asyncio.TaskGroup() as group:
            group.create_task(self.nodes.run())
            group.create_task(self._follow(do))
            group.create_task(self._watch_host())

    async def _follow(self, do: Callable[[Callable[[], Any]], Any]) -> None:
        await self.nodes.synced()
        have: tuple[set[routes.Route], set[routes.Route]] | None = None
        while True:
            self._wake.clear()
            nodes = [] if self._aside() else self.nodes.items()
            wanted = routes.plan(nodes, self._node), routes.own_ends(nodes, self._node)
            if wanted != have or self._moved:
                self._moved = False
                have = wanted if await self._reconcile(do, *wanted) else None
            try:
                async with asyncio.timeout(RETRY if have is None else None):
                    await self._wake.wait()
                await self._clock.sleep(GATHER)
            except TimeoutError:
                pass

    async def _watch_host(self) -> None:
        """Wake when this host's own addresses or networks change; pods coming and going are none of it."""
        with hostwatch.HostWatch(self.look):
            await asyncio.Event().wait()

    def look(self) -> None:
        """What routes follow from, beside the nodes, may have changed."""
        self._moved = True
        self._wake.set()

    async def _reconcile(self, do: Callable[[Callable[[], Any]], Any], wanted: set[routes.Route],
                         own: set[routes.Route]) -> bool:
        try:
            problems = [str(p) for p in await do(lambda: self._routes.reconcile(wanted, own))]
        except OSError as error:
            problems = [f"routes to other nodes: {error}"]
        for problem in problems:
            if problem not in self._told:
                log.warning("%s", problem)
        self._told = set(problems)
        return not problems


def _trim(node: dict[str, Any]) -> None:
    node["status"] = {key: value for key, value in (node.get("status") or {}).items() if key in KEPT}
    node["metadata"].pop("managedFields", None)
    node["metadata"].pop("annotations", None)
