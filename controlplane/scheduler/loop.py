"""The scheduler's runner: takes waiting pods one by one, asks `decider` for a node, binds.

Deciding is serial on one snapshot, binding is pipelined: a chosen pod is assumed on its node at once and bound in the
background, so the next decision does not wait for the API. A failed binding is forgotten and the pod tried again. All
state is re-derived from the informers, so the process may be killed at any point: a pod is either bound or waiting.

Called by the controllers' process; talks to the apiserver through the client only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.client.queue import first_of
from controlplane.client.rest import Client
from controlplane.machinery import objects
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.scheduler import claims, gangs, nearest, preemption
from controlplane.scheduler.binder import CLAIMS, Binder
from controlplane.scheduler.configuration import NAME, Configuration, Profile
from controlplane.scheduler.decider import Decider, Errand
from controlplane.scheduler.extenders import Extenders
from controlplane.scheduler.fit import Ask
from controlplane.scheduler.herald import Herald
from controlplane.scheduler.listening import Listening
from controlplane.scheduler.queue import Queue, Waiting
from controlplane.scheduler.verdict import Verdict
from controlplane.scheduler.world import World

__all__ = ["NAME", "Scheduler"]
log = logging.getLogger("scheduler")
TASKS = 32  # bindings and explanations under way at once: enough to hide a commit's latency, few enough to stay fair
WAITING_FOR_VOLUMES = 512  # bindings that wait for volumes: they cost no requests, and must not hold up the others
Obj = dict[str, Any]


class Scheduler:
    def __init__(self, client: Client, pods: Informer, nodes: Informer, world: World, recorder: Recorder,
                 clock: Clock = SYSTEM, configuration: Configuration | None = None) -> None:
        self._configuration = configuration or Configuration()
        self._clock, self._pods, self._nodes, self._world = clock, pods, nodes, world
        self._extenders = Extenders(self._configuration.extenders)
        self.decider = Decider(world)
        self.queue = Queue(self._configuration.backoff_first, self._configuration.backoff_most)
        self._herald = Herald(client, pods, recorder, clock)
        self._binder = Binder(client, world.informer(CLAIMS.name), recorder, self._extenders)
        self._listening = Listening(self.decider, self.queue, clock, self._configuration.profiles.keys())
        self._slots = asyncio.Semaphore(TASKS)
        self._patient = asyncio.Semaphore(WAITING_FOR_VOLUMES)
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Schedule until cancelled."""
        await asyncio.gather(self._pods.synced(), self._nodes.synced(), self._world.synced())
        self._listening.start(self._pods, self._nodes, self._world)
        wake = self._listening.wake
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                wake.clear()
                waiting = self.queue.pop(self._clock.monotonic())
                if waiting is None:
                    await self._pause(wake)
                else:
                    await self._schedule(waiting)

    async def _pause(self, wake: asyncio.Event) -> None:
        """Sleep until an event or the next deadline."""
        deadline = self.queue.deadline()
        if deadline is None:
            await wake.wait()
            return
        await first_of(self._clock.sleep(max(0.0, deadline - self._clock.monotonic())), wake.wait())

    async def _start(self, work: Coroutine[Any, Any, None], slots: asyncio.Semaphore) -> None:
        """Run `work` in the background as soon as there is a slot for it."""
        await slots.acquire()
        assert self._tasks is not None

        async def bounded() -> None:
            try:
                await work
            except Exception:
                log.exception("a decision about a pod cannot be carried out")
            finally:
                slots.release()
        self._tasks.create_task(bounded())

    # --- one pod, or one group of pods -------------------------------------------------------------------------

    def _profile(self, pod: Obj) -> Profile:
        return self._configuration.profiles[(pod.get("spec") or {}).get("schedulerName") or NAME]

    async def _schedule(self, waiting: Waiting) -> None:
        """Judge the pod. Where it, or what it refers to, cannot be read, others do not wait for that."""
        try:
            await self._judge(waiting)
        except Exception as error:
            log.exception("pod %s/%s cannot be judged", *objects.key(waiting.pod))
            self.queue.refused(waiting.uid, self._clock.monotonic())
            why = f"what it asks for cannot be read: {error!r}"
            await self._start(self._herald.explain(waiting.pod, why, "", None), self._slots)

    async def _judge(self, waiting: Waiting) -> None:
        gang = gangs.of(waiting.pod)
        if gang is not None:
            await self._together(gang, waiting)
            return
        wants = self.decider.ask(waiting.pod, self._profile(waiting.pod))
        try:
            found = await self._decide(wants)
        except ApiError as error:
            await self._refuse(waiting, wants, Verdict("", self.decider.snapshot.size, {}, error.message))
            return
        if waiting.uid not in self.queue:  # deleted while an extender thought about it
            return
        if found.node:
            await self._place(waiting, found.node)
        else:
            await self._refuse(waiting, wants, found)

    async def _decide(self, wants: Ask) -> Verdict:
        profile = self._profile(wants.pod)
        if not self._extenders.concerned(wants.pod):
            return self.decider.decide(wants, profile)
        fitting = self.decider.fitting(wants, profile)
        if not fitting:
            return self.decider.decide(wants, profile)
        known = {objects.name(node): node for node in self._nodes.items()}
        ranked, refused = await self._extenders.rank(wants.pod, fitting, known)
        if ranked:
            return Verdict(ranked[0], len(known))
        counted = dict(self.decider.decide(wants, profile).refusals)
        for reason in refused.values():
            counted[reason] = counted.get(reason, 0) + 1
        return Verdict("", len(known), counted, table=self.decider.tables.of(wants, profile.weights))

    async def _together(self, gang: gangs.Gang, first: Waiting) -> None:
        """Place enough of a group at once, or nobody."""
        members = [w for pod in self._pods.items() if gangs.of(pod) == gang
                   and (w := self.queue.get(objects.uid(pod))) is not None]
        running = sum(gangs.of(pod) == gang and bool((pod.get("spec") or {}).get("nodeName"))
                      for pod in self._pods.items())
        for waiting in members:
            self.queue.take(waiting)
        early = gangs.incomplete(gang, running, members)
        placed: list[tuple[Waiting, str, Errand | None]] = []
        failed: list[tuple[Waiting, Ask, Verdict]] = []
        for waiting in members if not early else ():
            wants = self.decider.ask(waiting.pod, self._profile(waiting.pod))
            found = self.decider.decide(wants, self._profile(waiting.pod))
            if found.node:
                placed.append((waiting, found.node, self.decider.assume(waiting.pod, found.node)))
            else:
                failed.append((waiting, wants, found))
        if early or running + len(placed) < gang.least:
            why = early or f"only {running + len(placed)} of the {gang.least} pods that pod group {gang.name} starts " \
                           f"with fit: {failed[0][2].message}"
            for waiting, _, errand in placed:
                self.decider.forget(waiting.uid)
                if errand is not None:
                    self.decider.release(errand, done=False)
            for waiting in members:
                wants = self.decider.ask(waiting.pod, self._profile(waiting.pod))
                await self._refuse(waiting, wants, Verdict("", self.decider.snapshot.size, {}, why.rstrip(".")))
            return
        for waiting, node, errand in placed:
            await self._bind_later(waiting, node, errand)
        for waiting, wants, found in failed:
            await self._refuse(waiting, wants, found)

    async def _place(self, waiting: Waiting, node: str) -> None:
        await self._bind_later(waiting, node, self.decider.assume(waiting.pod, node))

    async def _bind_later(self, waiting: Waiting, node: str, errand: Errand | None) -> None:
        self._listening.binding[waiting.uid] = node
        await self._start(self._bind(waiting.pod, waiting.uid, node, errand),
                          self._slots if errand is None or errand.volumes is None else self._patient)

    async def _bind(self, pod: Obj, uid: str, node: str, errand: Errand | None) -> None:
        done = False
        try:
            await self._binder.bind(pod, node, errand, self._profile(pod).bind_seconds)
            done = True
        except (ApiError, OSError, TimeoutError) as error:
            if not isinstance(error, NotFound | Conflict):  # gone, or bound by somebody else: the informer will tell
                log.warning("binding %s/%s to %s failed: %s", objects.namespace(pod), objects.name(pod), node, error)
            self._listening.unbind(uid, node)
            live = self._pods.get(objects.namespace(pod), objects.name(pod))
            if live is not None and objects.uid(live) == uid and uid in self.queue:
                self.queue.put(live, self._clock.monotonic())  # what happened to it meanwhile was not looked at
            self.queue.refused(uid, self._clock.monotonic(), park=False)
        finally:
            if errand is not None:
                self.decider.release(errand, done)

    # --- no node -----------------------------------------------------------------------------------------------

    async def _refuse(self, waiting: Waiting, wants: Ask, found: Verdict) -> None:
        """Park the pod and say why; let less important pods make room, when that helps."""
        pod, message, nominated = waiting.pod, found.message, None
        if found.nodes and not found.outright and self._profile(pod).preempts:
            plans, why = self.decider.preempt(wants, found)
            plan = preemption.choose(await self._extenders.spare(pod, plans))
            held = (pod.get("status") or {}).get("nominatedNodeName") or ""
            if plan is not None:
                nominated = plan.node
                lesser = self.decider.outranked(plan.node, wants.priority)
                self.decider.nominate(pod, plan.node)
                await self._start(self._herald.evict(plan, pod, lesser), self._slots)
            elif why == preemption.TERMINATING:
                nominated = held
            elif held:
                nominated = ""
                self.decider.renounce(waiting.uid)
            if plan is None:
                message = f"{message} preemption: {why}"
        if claims.ELSEWHERE.reasons[0] in found.refusals and (claim := self.decider.idle_claim(pod)) is not None:
            await self._start(self._binder.give_back(claim, True, pod), self._slots)
        advice = nearest.sentence(nearest.miss(found.table, wants)) if nominated in (None, "") else ""
        self.queue.refused(waiting.uid, self._clock.monotonic(), verdict=(wants, found))
        log.debug("pod %s/%s: %s", objects.namespace(pod), objects.name(pod), message)
        await self._start(self._herald.explain(pod, message, advice, nominated), self._slots)
