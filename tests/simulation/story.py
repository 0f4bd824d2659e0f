"""What happens in a simulated cluster: people change things, machines come and go, components die, and in the end all
must agree.

Owns the acts and their order, drawn from a seed. A round is a stormy stretch with faults and some acts, then calm until
everything has settled, then hours in which nobody may write. Called by `run`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from controlplane.client.rest import Client
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named
from tests.simulation.invariants import Invariants, ready
from tests.simulation.kubelets import Kubelets
from tests.simulation.wire import Faults

ACTS = 12  # in one storm
PAUSE_SECONDS = 60.0  # at most, between acts
SETTLE_SECONDS = 3600.0  # of calm, after which all must agree: back-offs end far sooner
QUIET_SECONDS = 700.0  # after that nothing may be written: the last look-agains are ten minutes apart
IDLE_SECONDS = 6 * 3600.0  # of a round: nothing to do, nothing done
LOOK_SECONDS = 5.0
EVICTIONS = 60  # tries while one node is drained
PODS, NODES = named("pods"), named("nodes")
DEPLOYMENTS, STATEFULSETS = named("deployments.apps"), named("statefulsets.apps")
Obj = dict[str, Any]


class Story:
    """`restart` ends the controllers and the scheduler where they stand and starts them anew."""

    def __init__(self, client: Client, kubelets: Kubelets, faults: Faults, rules: Invariants, seed: int,
                 restart: Callable[[], Awaitable[None]], say: Callable[[str], None]) -> None:
        self._client, self._kubelets, self._faults, self._rules = client, kubelets, faults, rules
        self._random, self._restart, self._say = random.Random(seed), restart, say
        self._next = self._jobs = 0

    async def begin(self, nodes: int, documents: list[Obj]) -> None:
        for number in range(nodes):
            await self._kubelets.add(number)
        self._next = nodes
        from controlplane.cli.why import resource_of
        for document in documents:
            await self._client.create(resource_of(document["kind"].lower(), []), document,
                                      objects.namespace(document) or "default")
        await self.settle("the beginning")

    async def round(self) -> None:
        acts = [self.scale, self.roll, self.kill, self.drain, self.lose_node, self.restart, self.recreate,
                self.work]
        self._faults.on = True
        for _ in range(ACTS):
            act = self._random.choice(acts)
            self._say(f"{act.__name__}")
            try:
                await act()
            except ApiError as error:
                self._say(f"  {act.__name__}: {error.message}")
            await asyncio.sleep(self._random.random() * PAUSE_SECONDS)
            if self._rules.broken:  # what comes after is of no interest, and may be without end
                return
        self._faults.on = False
        await self._uncordon()
        await self.settle("a storm")
        if self._rules.broken:
            return
        await asyncio.sleep(QUIET_SECONDS)
        before = self._rules.writes
        await asyncio.sleep(IDLE_SECONDS)
        if self._rules.writes != before:
            self._rules.tell(f"{self._rules.writes - before} writes in {IDLE_SECONDS / 3600:.0f} idle hours")

    async def settle(self, after: str) -> None:
        """Wait until all agree; a broken rule when that does not come."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (left := self._rules.unsettled()) and not self._rules.broken:
            if loop.time() - begun > SETTLE_SECONDS:
                self._rules.tell(f"not settled after {after}: {'; '.join(left[:5])}")
                return
            await asyncio.sleep(LOOK_SECONDS)
        self._say(f"settled {loop.time() - begun:,.0f} s after {after}")
        await asyncio.sleep(LOOK_SECONDS)
        for orphan in self._rules.orphans():
            self._rules.tell(orphan)

    # --- acts --------------------------------------------------------------------------------------------------

    async def _change(self, resource: Any, patch: Obj) -> None:
        there = self._rules.all(resource.name)
        if there:
            one = self._random.choice(there)
            await self._client.patch(resource, objects.name(one), patch, objects.namespace(one), "merge")

    async def scale(self) -> None:
        """Somebody changes a size."""
        await self._change(self._random.choice((DEPLOYMENTS, STATEFULSETS)),
                           {"spec": {"replicas": self._random.randint(0, 12)}})

    async def roll(self) -> None:
        """Somebody rolls out a new version, perhaps in the middle of the last."""
        resource = self._random.choice((DEPLOYMENTS, STATEFULSETS, named("daemonsets.apps")))
        version = str(self._random.randint(1, 10**6))
        await self._change(resource, {"spec": {"template": {"metadata": {"annotations": {"version": version}}}}})

    async def kill(self) -> None:
        """Pods are deleted."""
        pods = self._rules.all("pods")
        for pod in self._random.sample(pods, min(3, len(pods))):
            await self._client.delete(PODS, objects.name(pod), objects.namespace(pod))

    async def drain(self) -> None:
        """A node is cordoned and its pods evicted, as kubectl drain does it; nobody else disturbs them meanwhile."""
        node = self._random.choice(self._rules.all("nodes"))
        await self.settle("the acts before a drain")
        await self._client.patch(NODES, objects.name(node), {"spec": {"unschedulable": True}}, kind="merge")
        for _ in range(EVICTIONS):
            left = [pod for pod in self._rules.all("pods") if objects.get(pod, "spec.nodeName") == objects.name(node)
                    and (objects.controller_of(pod) or {}).get("kind") != "DaemonSet" and ready(pod)]
            for pod in left:
                await self._evict(pod)
            if not left:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _evict(self, pod: Obj) -> None:
        name, namespace = objects.name(pod), objects.namespace(pod)
        try:
            await self._client.create(PODS, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {
                "name": name, "namespace": namespace}}, namespace, "eviction", name)
            self._rules.evicted(pod)
        except NotFound:
            pass
        except ApiError as error:
            if error.http_code != 429:
                raise

    async def _uncordon(self) -> None:
        for node in self._rules.all("nodes"):
            if (node.get("spec") or {}).get("unschedulable"):
                await self._client.patch(NODES, objects.name(node), {"spec": {"unschedulable": None}}, kind="merge")

    async def lose_node(self) -> None:
        """A machine is gone for good, and another comes."""
        await self._kubelets.remove(objects.name(self._random.choice(self._rules.all("nodes"))))
        await asyncio.sleep(self._random.random() * PAUSE_SECONDS)
        await self._kubelets.add(self._next)
        self._next += 1

    async def restart(self) -> None:
        """The controllers and the scheduler die in the middle of whatever they do."""
        await self._restart()

    async def work(self) -> None:
        """A Job is given out, and forgotten some time after it is done."""
        self._jobs += 1
        pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
        await self._client.create(named("jobs.batch"), {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"job-{self._jobs}", "namespace": "default"},
            "spec": {"completions": self._random.randint(1, 8), "parallelism": self._random.randint(1, 4),
                     "ttlSecondsAfterFinished": self._random.choice((0, 60, 300)), "template": {"spec": pod}}})

    async def recreate(self) -> None:
        """A Deployment is deleted and made again under its name."""
        there = self._rules.all(DEPLOYMENTS.name)
        if not there:
            return
        one = self._random.choice(there)
        await self._client.delete(DEPLOYMENTS, objects.name(one), objects.namespace(one),
                                  propagation=self._random.choice(("Background", "Foreground")))
        fresh = {"apiVersion": one["apiVersion"], "kind": one["kind"], "spec": one["spec"],
                 "metadata": {"name": objects.name(one), "namespace": objects.namespace(one),
                              "labels": objects.labels(one)}}
        for _ in range(EVICTIONS):
            try:
                await self._client.create(DEPLOYMENTS, fresh, objects.namespace(one))
                return
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                await asyncio.sleep(LOOK_SECONDS)
