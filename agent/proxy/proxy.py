"""The service proxy: watches Services and EndpointSlices and keeps the node's rules true.

Owns the loop from a change in the API to rules in the kernel: changes are gathered for a few milliseconds, only the
services they concern are planned again, and only the chains that differ are written; stale UDP flows go after that. It
works from a first full load and afterwards by differences; any error, and any loss caused by somebody else, leads back
to a full load, with growing pauses. It keeps no state of its own: a restarted proxy loads everything again over the
rules that are there, without a moment in which a service does not answer. Stopping it leaves the rules in place.

The agent creates one and runs `run()`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from agent.proxy import model
from agent.proxy.announce import Announcer, keep
from agent.proxy.guard import Guard
from agent.proxy.health import HealthServers
from agent.proxy.lockwatch import LockWatch
from agent.proxy.model import ServiceKey, ServicePort
from agent.proxy.orphans import Orphans
from agent.proxy.peers import Peers
from agent.proxy.report import Report
from agent.proxy.side import Side, uncollected
from controlplane.client.informer import Informer
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import named
from netsetup import xtables
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
GATHER = 0.02  # seconds to wait for more changes: a rollout makes many at once, and 20 ms nobody notices
RETRY_FIRST, RETRY_LIMIT = 1.0, 30.0  # seconds between full loads that fail: iptables may be busy or broken for long
ZONE = "topology.kubernetes.io/zone"
LEAVING = "ToBeDeletedByClusterAutoscaler"  # the taint of a node that an autoscaler empties
LOOK = 600.0  # seconds between looks at rules that tell of their loss themselves (nf_tables events)
LOOK_LEGACY = 10.0  # and where nothing tells at all: a look is one system call while nothing has changed
LOOK_GATHER = 0.1  # seconds from the first sign of a loss to the look: a flush is many events


class Proxy:
    """`pod_cidr`: the ranges whose traffic is not masqueraded, the cluster's, one of each family it has, by commas.

    `mode` is one of `side.MODES`. `repair` runs too when rules were lost. With a `ledger` it also keeps the routes to
    other nodes' pods, but not while `aside()`."""

    def __init__(self, client: Any, node_name: str, pod_cidr: str, ledger: Ledger | None = None,
                 mode: str = "iptables", clock: Clock = SYSTEM, backend: xtables.Backend | None = None,
                 repair: Callable[[], Awaitable[None]] | None = None, aside: Callable[[], bool] = bool) -> None:
        self._node, self._clock, self._mode, self._backend = node_name, clock, mode, backend
        self._ledger, self._repair, self._pods = ledger, repair, pod_cidr.split(",")
        self.services = Informer(client, named("services"), keep=_trim, clock=clock)
        self.slices = Informer(client, named("endpointslices.discovery.k8s.io"), keep=_trim, clock=clock,
                                indexes={"service": lambda s: [_slice_owner(s)]})
        self._peers = Peers(client, node_name, ledger, clock, aside) if ledger else None
        self.sides: list[Side] = []
        self._dirty: set[ServiceKey] = set()
        self._zone = ""
        self._writing = False
        self._wake, self._look = asyncio.Event(), asyncio.Event()
        self._guard: Guard | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="proxy")
        self.report = Report(mode, clock)
        self._health = HealthServers(lambda: self.report.healthy)
        self._orphans = Orphans(client, self.slices, self._pods, self._do, clock)
        self.synced = asyncio.Event()  # set once the kernel holds every service known at start
        self.syncs = 0
        self.full_loads = 0

    async def run(self) -> None:
        """Until cancelled. Rules stay in the kernel."""
        self.services.subscribe(lambda _kind, _old, new: self._mark(new["metadata"]["namespace"],
                                                                     new["metadata"]["name"]))
        self.slices.subscribe(self._slice_changed)
        self.slices.subscribe(self._orphans.changed)
        if self._peers:
            self._peers.nodes.subscribe(self._node_changed)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.services.run())
                group.create_task(self.slices.run())
                group.create_task(self._follow())
                group.create_task(self._heal())
                group.create_task(self._look_now_and_then())
                group.create_task(self.report.run())
                group.create_task(self._orphans.run())
                if self._peers and self._ledger:
                    group.create_task(self._peers.run(self._do))
                    group.create_task(Announcer(self._node, self.services, self._peers.nodes, self.slices, self._ledger,
                                                self._clock).run())
        finally:
            await self._health.close()
            self._worker.shutdown(wait=False, cancel_futures=True)
            for side in self.sides:
                side.writer.close()  # so that the next process may own what is there

    def look_at_routes(self) -> None:
        """Whether they are ours to make may have changed."""
        if self._peers:
            self._peers.look()

    def _mark(self, namespace: str, name: str, service: bool = True) -> None:
        self.report.changed(service)
        self._dirty.add((namespace, name))
        self._wake.set()

    def _node_changed(self, _kind: str, _old: model.Obj | None, new: model.Obj) -> None:
        """This node's zone decides which endpoints are near, and whether it is to go who is sent here."""
        if new["metadata"]["name"] != self._node:
            return
        self.report.eligible = not new["metadata"].get("deletionTimestamp") and all(
            taint.get("key") != LEAVING for taint in (new.get("spec") or {}).get("taints") or ())
        zone = (new["metadata"].get("labels") or {}).get(ZONE, "")
        if zone != self._zone:
            self._zone = zone
            for service in self.services.items():
                self._mark(service["metadata"]["namespace"], service["metadata"]["name"])

    def _slice_changed(self, _kind: str, old: model.Obj | None, new: model.Obj) -> None:
        for piece in (old, new):
            owner = _slice_owner(piece) if piece else ""
            if owner:
                namespace, _, name = owner.partition("/")
                self._mark(namespace, name, False)

    async def _follow(self) -> None:
        await self.services.synced()
        await self.slices.synced()
        self._guard = _guard(self._look.set)
        retry = 0.0
        try:
            while True:
                try:
                    if not self.sides:
                        self.sides = await self._do(self._make_sides)
                    await self._sync()
                    retry = 0.0
                except (xtables.RestoreError, Finding, OSError) as error:
                    retry = min(max(RETRY_FIRST, retry * 2), RETRY_LIMIT)
                    log.error("service rules could not be written, next attempt in %.0f s: %s", retry, error)
                    self.report.failures += 1
                    for side in self.sides:
                        side.fail()
                    await self._clock.sleep(self._clock.jitter(retry))
                    continue
                await self._wake.wait()
                await self._clock.sleep(GATHER)
        finally:
            if self._guard:
                self._guard.close()

    async def _heal(self) -> None:
        """Look at what may be lost. Changes need not wait for that: to look at many rules takes a while."""
        retry = 0.0
        while True:
            await self._look.wait()
            await self._clock.sleep(LOOK_GATHER)
            self._look.clear()
            try:
                if True in [await self._do(side.lost) for side in self.sides]:
                    log.warning("rules of the service proxy were removed by somebody else; loading them again")
                    self._wake.set()
                if self._repair:
                    await self._repair()
                retry = 0.0
            except (xtables.RestoreError, Finding, OSError) as error:
                retry = min(max(RETRY_FIRST, retry * 2), RETRY_LIMIT)
                log.error("what somebody removed cannot be put back, next attempt in %.0f s: %s", retry, error)
                self._look.set()
                await self._clock.sleep(self._clock.jitter(retry))

    def _make_sides(self) -> list[Side]:
        return [Side(self._mode, pods, 6 if ":" in pods else 4, self._ledger, self._backend) for pods in self._pods]

    async def _sync(self) -> None:
        """One round: plan what changed, write what differs."""
        self._wake.clear()
        keys, self._dirty = self._dirty, set()
        with uncollected(len(keys)):
            changed = [ports for side in self.sides
                       for ports in side.plan({k: self._plan(k, side.family) for k in keys})]
        due = [side for side in self.sides if side.due]
        begun, whole = self._clock.monotonic(), 0
        if due:
            whole = await self._write(due)
            self.full_loads += whole
        self.report.wrote(self._clock.monotonic() - begun if due else 0.0, bool(whole))
        for side in self.sides:
            if side.stale:
                await self._do(side.forget_flows)
        self._orphans.rules_are_in()
        if self._health.concerns(changed):
            await self._health.update(self.sides[0].ports)
        self.syncs += bool(due)
        self.synced.set()

    async def _write(self, sides: list[Side]) -> int:
        """How many of the sides were loaded whole."""
        self._writing = True
        try:
            with self._deaf(sides):
                whole = sum([await self._do(side.write) for side in sides])
        finally:
            self._writing = False
        if whole or any(side.writer.suspicious() for side in sides if not side.writer.tells):
            self._look.set()  # somebody else wrote at the same time, or may have while nobody could tell
        return whole

    @contextmanager
    def _deaf(self, sides: list[Side]) -> Iterator[None]:
        """While everything is loaded: what is not heard meanwhile is looked for afterwards."""
        if self._guard is None or not any(side.writer.tells and side.loads for side in sides):
            yield
            return
        with self._guard.deaf():
            yield

    def _plan(self, key: ServiceKey, family: int) -> tuple[ServicePort, ...]:
        slices = self.slices.by("service", f"{key[0]}/{key[1]}")
        return model.service_ports(self.services.get(*key), slices, self._node, family, self._zone)

    async def _look_now_and_then(self) -> None:
        await self.synced.wait()
        if all(side.writer.tells for side in self.sides):
            await self._look_every(LOOK)
        try:
            with LockWatch(self._look_if_suspicious):
                await self._look_every(LOOK)
        except OSError as error:
            log.info("the use of iptables cannot be watched, rules are looked at now and then instead: %s", error)
            await self._look_every(LOOK_LEGACY)

    async def _look_every(self, pause: float) -> None:
        while True:
            await self._clock.sleep(self._clock.jitter(pause, 0.1))
            self._look_if_suspicious()

    def _look_if_suspicious(self) -> None:
        """What happens while we write ourselves is our own doing, most likely: the tables' sizes are in motion."""
        if not self._writing and any(side.writer.suspicious() for side in self.sides):
            self._look.set()

    async def _do(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _guard(on_loss: Callable[[], None]) -> Guard | None:
    try:
        guard = Guard(on_loss)
    except OSError as error:
        log.info("no events from nf_tables, rules are looked at now and then instead: %s", error)
        return None
    guard.open()
    return guard


def _slice_owner(piece: model.Obj) -> str:
    meta = piece["metadata"]
    service = (meta.get("labels") or {}).get(model.SERVICE_LABEL)
    return f"{meta.get('namespace', '')}/{service}" if service else ""


def _trim(obj: model.Obj) -> None:
    """Before an object is kept: what rules never need."""
    meta = obj["metadata"]
    meta.pop("managedFields", None)
    if kept := keep(obj):
        meta["annotations"] = kept
    else:
        meta.pop("annotations", None)
    meta.pop("ownerReferences", None)
