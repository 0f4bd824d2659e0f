"""One pod's worker: looks, plans, acts, tells; and sleeps until something of its pod changes.

Owns everything this node knows of one pod beyond the API and the runtime: back-offs, failures, probes, what is under
way. Promises that wake-ups are deduplicated, that long work (pulls, graceful stops) never delays a decision, that a
runtime that is away is asked again and nothing is killed for it, and that the worker ends only when nothing of the pod
is left here. Called by `kubelet`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from agent.kubelet import plan
from agent.kubelet.compute.resizer import Resizer
from agent.kubelet.context import Context
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.failures import Failures
from agent.kubelet.model import ObservedPod, RuntimeEvent
from agent.kubelet.probing.prober import Prober
from agent.kubelet.reporting import lastwords, status
from agent.kubelet.reporting.containerstatus import Report
from agent.kubelet.reporting.statuswriter import PODS, StatusWriter
from agent.kubelet.reporting.waiting import Waiting
from agent.kubelet.steps import StepFailed, Steps
from controlplane.machinery.errors import ApiError, Conflict, NotFound

log = logging.getLogger(__name__)

DELETE_RETRY = 1.0
FINISH = "/finish"
REFRESH, RESIZE, RELEASE = "/refresh", "/resize", "/release"


class Worker:
    def __init__(self, context: Context, pod: dict[str, Any], seen: ObservedPod, *, gone: bool = False,
                 doomed: tuple[str, str] | None = None, static: bool = False) -> None:
        self.context, self.clock = context, context.clock
        self.pod, self.seen, self.gone = pod, seen, gone
        self.uid = pod["metadata"]["uid"]
        self.resizer = Resizer(context, pod)
        self.steps = Steps(context, self.resizer.view(pod), seen)
        self.steps.made = self.resizer.started
        self.static = static  # from a file of this node: the API has an image of it, which `mirrored` tells of
        self._wake = asyncio.Event()
        self._look = False  # the runtime may have news
        self._refresh = False  # an object in a volume or the environment changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unseen: set[str] = set()  # work and stops that ended after the last look began: it may not show them
        self._kills: dict[str, float] = {}  # container id -> monotonic deadline of the stop under way
        self._stopped: set[str] = set()
        self._failures = Failures(self.clock)
        self._waiting = Waiting(context)
        self._doomed = doomed
        self._marks: tuple[tuple[str, str, str, str], ...] = ()
        self._short_grace: float | None = None  # instead of the pod's own, for an eviction
        self._first_seen, self._ending_since, self._edited_at = self.clock.now(), 0.0, 0.0
        self._done = False
        self._released = False  # an ended pod's volumes are given back
        self._ended = False  # everything is stopped and cleaned; the API may drop the pod
        self._writer: StatusWriter | None = None
        self._group: asyncio.TaskGroup
        self._prober: Prober
        self._resized: frozenset[str] = frozenset()
        self._quiet_tasks: set[asyncio.Task[Any]] = set()
        self._words = lastwords.LastWords(context.node)

    # --- news

    def update(self, pod: dict[str, Any]) -> None:
        """The API has a newer object. What failed for the old one's sake is tried again."""
        if plan.inside(pod) != plan.inside(self.pod):
            self.refresh()
        if pod["spec"] != self.pod["spec"]:
            self._failures.forgive()
            self._edited_at = self.clock.now()
        self.pod = pod
        if self._writer is not None:
            self._writer.learn(pod)
        self._wake.set()

    def doom(self, reason: str, message: str, grace: float | None = None, *marks: tuple[str, str, str, str]) -> None:
        """The pod fails as a whole: its containers are stopped within `grace` seconds (None: its own)."""
        self._doomed, self._short_grace, self._marks = (reason, message), grace, marks
        self._wake.set()

    @property
    def active(self) -> bool:
        """Whether the pod holds what it asked for: it neither failed nor finished."""
        return not self.gone and not self._doomed and not plan.finished(self.pod, self.seen)

    async def stopped(self) -> None:
        """Until nothing of the pod runs any more."""
        await self.steps.until(lambda: not self.seen.running)

    async def emptied(self) -> None:
        """Until its volumes are given back, too."""
        await self.steps.until(lambda: (self._released or self._ended) and not self.seen.running)

    @property
    def probed(self) -> Mapping[tuple[str, str, str], int]:
        """How often each probe ended how: by container name, kind and outcome."""
        return self._prober.results if hasattr(self, "_prober") else {}

    def wake(self) -> None:
        self._wake.set()

    def mirrored(self, image: dict[str, Any] | None) -> None:
        """The API has this image of a static pod, or none any more."""
        if image is None:
            self._writer = None
        elif self._writer is not None and self._writer.uid == image["metadata"]["uid"]:
            self._writer.learn(image)
        else:
            self._writer = StatusWriter(self.context.client, self.clock, image, self._quiet)
        self._wake.set()

    @property
    def shown(self) -> dict[str, Any]:
        """The pod with the newest status the API has or would have."""
        return self.pod | {"status": self._writer.current} if self._writer else self.pod

    def removed(self) -> None:
        """The API no longer has the object."""
        self.gone = True
        self._wake.set()

    def look(self) -> None:
        """The runtime has news of the pod."""
        self._look = True
        self._wake.set()

    def hear(self, event: RuntimeEvent) -> None:
        """The runtime tells of the pod. A sandbox that ends by our own call is looked at when that returns."""
        if event.kind != "changed" or not self._tasks.keys() & {plan.SANDBOX, FINISH}:
            self.look()

    def refresh(self) -> None:
        """An object the pod uses changed: mounted files follow, and what failed for its sake is tried again."""
        self._refresh = True
        self._failures.forgive()
        self._wake.set()

    def retry(self, *, crashes: bool = False) -> None:
        """Circumstances changed (the network is ready, the runtime is back): wait out no failures, nor `crashes`."""
        self._failures.not_before.clear()
        if crashes:
            self._failures.backoffs.clear()
        self.look()

    # --- the loop

    async def run(self) -> None:
        """Until nothing of the pod is left on this node."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            if not self.static:
                self._writer = StatusWriter(self.context.client, self.clock, self.pod, self._quiet)
            self._prober = Prober(self.context.checks, self.context.probing, self.clock, self._quiet, self._wake.set,
                                  lambda name, kind, reason, text: self.context.tell(self.pod, kind, reason, text,
                                                                                     name))
            while not self._done:
                self._wake.clear()
                wake_at = await self._pass()
                self.steps.look(self.seen)
                await self._wait(wake_at)
            self.steps.drop()
            self._prober.sync(self.pod, ObservedPod(self.uid, "", ""), ending=True)
            for task in [*self._tasks.values(), *self._quiet_tasks]:
                task.cancel()

    async def _wait(self, wake_at: float) -> None:
        """Sleep until woken or `wake_at` (seconds since the epoch; 0.0 = no timer)."""
        if self._done or self._wake.is_set():
            return
        timer = self._later(wake_at)
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    async def _pass(self) -> float:
        """Look, plan, act, tell. Returns when to pass again without news, or 0.0."""
        if self.gone and self._ended:
            self._done = True
            return 0.0
        if self._look:
            self._look = False
            ended = set(self._unseen)
            try:
                found = await self.context.runtime.observe(self.uid)
            except CallError as error:
                self._trouble("cannot be looked at", error, logging.DEBUG)
                self._look = True
                return self.clock.now() + self._failures.pause("/observe")
            self._failures.succeeded("/observe")
            self._unseen -= ended
            for id in ended & self._kills.keys():
                del self._kills[id]
            self.seen = found.get(self.uid) or replace(self.seen, sandboxes=(), containers=())
        now = self.clock.now()
        ending = self.gone or plan.deleting(self.pod)
        if ending and not self._ending_since:
            self._ending_since = now
            self._abandon()
        due = plan.overdue(self.pod)
        if due and now >= due and not self._doomed and not plan.finished(self.pod, self.seen):
            self._doomed = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
            self.context.tell(self.pod, "Normal", *self._doomed)
        self._prober.sync(self.pod, self.seen, ending=ending, held=self._hooked())
        self._resize(ending or bool(self._doomed))
        made = plan.plan(self.shown, self.seen, now, self._facts())
        for action in made.actions:
            self._act(action)
        over = not ending and bool(self._doomed or plan.finished(self.pod, self.seen))
        if ending or over:
            self.steps.renew_at = 0.0
        if over and not (made.actions or self._tasks or self._kills or self._released):
            self._begin(RELEASE, self._release(), look=False)
        if (self._refresh or 0 < self.steps.renew_at <= now) and not (ending or over) and REFRESH not in self._tasks:
            self._refresh = False
            self.steps.renew_at = 0.0
            self._begin(REFRESH, self.steps.refresh_volumes(), look=False)
        waiting, shown_at = self._waiting.reasons(self.pod, self.seen, self._failures.known,
                                                  self._failures.not_before, made.waiting, now)
        self._report(waiting, now)
        return min(filter(None, (made.wake_at, shown_at, self.steps.renew_at)), default=0.0)

    async def _release(self) -> None:
        """The pod runs no more: its volumes are free for others, and their room on the disk too."""
        await self.steps.give_back()
        self._released = True

    def _hooked(self) -> set[str]:
        """Containers being started that are not to be called so before their postStart hook has run."""
        return {c["name"] for c in plan.of_pod(self.pod)
                if c["name"] in self._tasks and (c.get("lifecycle") or {}).get("postStart")}

    def _resize(self, ending: bool) -> None:
        """Take over changed resources."""
        changes = [] if ending else self.resizer.consider(self.pod, self.seen)
        self.steps.pod = self.resizer.view(self.pod)
        self._resized = frozenset(c.name for c in changes if c.restart)
        if changes and RESIZE not in self._tasks:
            self._begin(RESIZE, self.resizer.actuate(self.pod, self.seen, changes), look=False)

    def _facts(self) -> plan.Facts:
        return plan.Facts(
            busy=frozenset(self._tasks) - {REFRESH, RESIZE} | self._unseen, resized=self._resized,
            grace=self._short_grace, backoffs=self._failures.backoffs, not_before=self._failures.not_before,
            unhealthy=self._prober.unhealthy, started=self._prober.started, stopped=frozenset(self._stopped),
            doomed=self._doomed, gone=self.gone, terminating_since=self._ending_since, edited_at=self._edited_at)

    # --- telling

    def _report(self, waiting: dict[str, tuple[str, str]], now: float) -> None:
        if self.gone or self._writer is None:
            return
        report = Report(waiting=waiting, ready=frozenset(self._prober.ready), started=self._prober.started,
                        messages=self._words.of(self.pod, self.seen), host_ips=self.context.node.ips,
                        doomed=self._doomed, ended=self._ended, start_time=self._first_seen, marks=self._marks,
                        runtime=self.context.node.runtime, recursive=self.context.node.recursive,
                        resize=tuple(self.resizer.conditions()), allocated=self.resizer.allocated,
                        actual=self.resizer.actual, images=self.steps.images,
                        devices=self.context.devices.told(self.pod))
        hooked = self._hooked()
        told = replace(self.seen, containers=tuple(c for c in self.seen.containers if c.state != "running"
                                                   or c.name not in hooked)) if hooked else self.seen
        made = status.compute(self.pod, told, now, report, self._writer.current)
        self.context.ends.update(status.ends(self._writer.current, made))
        self._writer.offer(made)

    # --- acting

    def _act(self, action: plan.Action) -> None:
        if isinstance(action, plan.RunSandbox):
            if plan.SANDBOX not in self._tasks:
                self.steps.prepare(self._group)
                self._begin(plan.SANDBOX, self.steps.run_sandbox(action))
        elif isinstance(action, plan.StartContainer):
            if action.failed_at:
                self._failures.restarted(action.name, action.failed_at)
            self._begin(action.name, self.steps.start(action))
        elif isinstance(action, plan.KillContainer):
            self._kill(action)
        elif isinstance(action, plan.StopSandbox):
            self._begin(plan.SANDBOX, self._stop_sandbox(action.id))
        elif isinstance(action, plan.RemoveContainer):
            self._begin(action.id, self.steps.remove_container(action.id))
        elif isinstance(action, plan.RemoveSandbox):
            self._begin(action.id, self.context.runtime.remove_sandbox(action.id))
        elif isinstance(action, plan.Reset):
            self._failures.restarted(action.name, action.failed_at)
            self._begin(plan.RESET, self.steps.reset(action.ids))
        elif not self._ended:
            self._begin(FINISH, self._finish())

    def _begin(self, key: str, work: Coroutine[Any, Any, None], *, look: bool = True) -> None:
        """Perform `work` as the only one under `key`; its end wakes the worker."""
        if key in self._tasks or self._failures.not_before.get(key, 0.0) > self.clock.now():
            work.close()
            return
        self._tasks[key] = self._group.create_task(self._perform(key, work, look), name=f"{key} of {self.uid}")

    async def _perform(self, key: str, work: Coroutine[Any, Any, None], look: bool) -> None:
        try:
            await work
            self._failures.succeeded(key)
        except StepFailed as failure:
            names = [c["name"] for c in plan.of_pod(self.pod)] if key == plan.SANDBOX else [key]
            self._later(self._failures.add(key, names, failure.reason, failure.message))
        except (CallError, OSError, ApiError) as error:
            self._trouble(key.strip("/"), error)
            self._later(self._failures.delay(key))
        finally:
            self._tasks.pop(key, None)
            if look:
                self._look = True
                self._unseen.add(key)
            self._wake.set()

    def _trouble(self, what: str, error: Exception, level: int = logging.WARNING) -> None:
        """Log it; and of a pod that is to go, say in its events what it waits for."""
        log.log(level, "pod %s: %s: %s", self.pod["metadata"]["name"], what, error)
        if plan.deleting(self.pod):
            self.context.tell(self.pod, "Warning", "FailedKillPod", f"error killing pod: {error}")

    def _later(self, when: float) -> asyncio.Task[None] | None:
        """Wake at `when`, 0.0 = never: for failures whose retry no plan knows of."""
        async def timer() -> None:
            await self.clock.sleep(max(0.0, when - self.clock.now()))
            self._wake.set()
        return self._quiet(timer(), "timer") if when else None

    def _quiet(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Work that ends with the worker and reports by other means."""
        task = self._group.create_task(work, name=f"{name} of {self.uid}")
        self._quiet_tasks.add(task)
        task.add_done_callback(self._quiet_tasks.discard)
        return task

    def _abandon(self) -> None:
        """The pod is ending: give up pulls and starts that have made nothing yet."""
        self.steps.drop()
        for name, task in self._tasks.items():
            if plan.named(self.pod, name) and self.seen.container(name) is None and name not in self.steps.making:
                task.cancel()

    def _kill(self, action: plan.KillContainer) -> None:
        deadline = self.clock.monotonic() + action.grace
        if deadline >= self._kills.get(action.id, float("inf")) - 1:
            return
        again = action.id in self._kills
        self._kills[action.id] = deadline
        self._quiet(self._killing(action, deadline, again), f"stop {action.name}")

    async def _killing(self, action: plan.KillContainer, deadline: float, again: bool) -> None:
        try:
            if again:  # a shorter grace period was asked for: no second hook, no second event
                await self.context.runtime.stop_container(action.id, action.grace)
            else:
                await self.steps.kill(action)
        except CallError as error:
            self._trouble(f"cannot stop {action.name}", error)
            self._later(self.clock.now() + self._failures.pause("stop"))
        finally:
            if any(c.id == action.id and c.state == "exited" for c in self.seen.containers):
                self._kills.pop(action.id, None)  # its event was faster
                self._wake.set()
            else:
                if self._kills.get(action.id) == deadline:
                    self._unseen.add(action.id)
                self.look()

    async def _stop_sandbox(self, id: str) -> None:
        await self.context.runtime.stop_sandbox(id)
        self._stopped.add(id)

    async def _finish(self) -> None:
        """Clean the host, give the API the last status, then the object back."""
        await self.steps.finish()
        self._ended = True
        self._wake.set()
        if self.gone:
            return
        self._report({}, self.clock.now())
        assert self._writer is not None
        await self._writer.settled()
        meta = self.pod["metadata"]
        while not self.gone:
            try:
                await self.context.client.delete(PODS, meta["name"], meta.get("namespace", ""), grace=0, uid=self.uid)
                break  # the watch tells when it is gone; with finalizers that may be much later
            except (NotFound, Conflict):
                self.gone = True
            except ApiError as error:
                log.debug("cannot delete pod %s: %s", meta["name"], error.message)
                await self.clock.sleep(self.clock.jitter(DELETE_RETRY))
