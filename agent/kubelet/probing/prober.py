"""Runs the probes of one pod's containers and keeps their verdicts.

Owns one task per probe of a running container, sleeping until its next attempt is due; attempts of all pods share one
bound. Promises that a verdict that changes wakes the pod's worker at once, that liveness and readiness wait for
startup, and that probes end with their container. Never kills anything: the worker reads `started`, `ready` and
`unhealthy`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from agent.kubelet.model import ObservedContainer, ObservedPod
from agent.kubelet.plan import Unhealthy, of_pod
from agent.kubelet.probing.checks import Checks, Failed
from agent.kubelet.probing.probes import KINDS, Timing, Verdict, judge
from agent.kubelet.restarts import is_sidecar
from controlplane.machinery.clock import Clock

PARALLEL = 32  # attempts at once on the whole node: a storm of slow probes must not eat the agent's memory

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
Tell = Callable[[str, str, str, str], None]  # container name, event type, reason, message


class Prober:
    """The probes of one pod. `changed()` is called when a verdict changed; `tell` makes events."""

    def __init__(self, checks: Checks, bound: asyncio.Semaphore, clock: Clock, spawn: Spawn,
                 changed: Callable[[], None], tell: Tell) -> None:
        self._checks, self._bound, self._clock = checks, bound, clock
        self._spawn, self._changed, self._tell = spawn, changed, tell
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._started: dict[str, asyncio.Event] = {}
        self.ready: set[str] = set()  # container ids
        self.unhealthy: dict[str, Unhealthy] = {}
        self.results: Counter[tuple[str, str, str]] = Counter()  # by container name, kind and outcome

    @property
    def started(self) -> frozenset[str]:
        return frozenset(id for id, event in self._started.items() if event.is_set())

    def sync(self, pod: dict[str, Any], seen: ObservedPod, *, ending: bool, held: Collection[str] = ()) -> None:
        """Follow what runs now. While the pod is `ending` only readiness goes on; of the containers called as in
        `held` the start is not complete yet."""
        running = {c.id: c for c in seen.running}
        for key in [k for k in self._tasks if k[0] not in running or (ending and k[1] != "readiness")]:
            self._tasks.pop(key).cancel()
        for id in [i for i in self._started if i not in running]:
            del self._started[id]
            self.ready.discard(id)
            self.unhealthy.pop(id, None)
        specs = {c["name"]: c for c in of_pod(pod)}
        plain_init = {c["name"] for c in pod["spec"].get("initContainers") or () if not is_sidecar(c)}
        for id, container in running.items():
            if id not in self._started and container.name in specs and container.name not in held:
                self._begin(pod, specs[container.name], container, seen, probed=container.name not in plain_init)

    def _begin(self, pod: dict[str, Any], spec: dict[str, Any], container: ObservedContainer, seen: ObservedPod, *,
               probed: bool) -> None:
        self._started[container.id] = asyncio.Event()
        told = _told(pod, container.id)
        if not spec.get("startupProbe") or not probed or told.get("started"):
            self._started[container.id].set()
        if not spec.get("readinessProbe") or not probed or told.get("ready"):
            self.ready.add(container.id)
        if not probed:
            return
        sandbox = seen.sandbox
        ip = next(iter(sandbox.ips), "") if sandbox else ""
        ip = ip or ((pod.get("status") or {}).get("hostIP") or "127.0.0.1")
        for kind, field in KINDS.items():
            if spec.get(field) and not (kind == "startup" and self._started[container.id].is_set()):
                self._tasks[container.id, kind] = self._spawn(
                    self._probe(kind, spec[field], spec, container, ip), f"{kind} probe of {spec['name']}")

    async def _probe(self, kind: str, probe: dict[str, Any], spec: dict[str, Any], container: ObservedContainer,
                     ip: str) -> None:
        timing, verdict = Timing.of(probe), Verdict(good=container.id in self.ready if kind == "readiness" else None)
        if kind != "startup":
            await self._started[container.id].wait()
        await self._clock.sleep(max(0.0, container.started_at + timing.delay - self._clock.now()))
        while True:
            problem, warning, began = "", "", self._clock.monotonic()
            async with self._bound:
                try:
                    warning = await self._checks.run(probe, spec, container.id, ip, timing.timeout)
                except Failed as error:
                    problem = str(error) or "failed"
            self.results[spec["name"], kind, "failed" if problem else "successful"] += 1
            before = verdict.good
            verdict, pause, counts = judge(verdict, timing, not problem, kind)
            if warning:
                self._tell(spec["name"], "Warning", "ProbeWarning", f"{kind.capitalize()} probe warning: {warning}")
            if counts:
                self._tell(spec["name"], "Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {problem}")
            if verdict.good != before and self._apply(kind, probe, container.id, bool(verdict.good)):
                return
            early = bool(problem) and not counts  # a period is from one attempt's beginning to the next one's
            await self._clock.sleep(pause if early else max(0.0, began + pause - self._clock.monotonic()))

    def _apply(self, kind: str, probe: dict[str, Any], id: str, good: bool) -> bool:
        """Take over a new verdict; True when this probe has done its work."""
        done = False
        if kind == "readiness":
            (self.ready.add if good else self.ready.discard)(id)
        elif kind == "startup" and good:
            self._started[id].set()
            done = True
        elif not good:
            grace = probe.get("terminationGracePeriodSeconds")
            self.unhealthy[id] = Unhealthy(kind.capitalize(), None if grace is None else float(grace))
            done = True
        self._changed()
        return done


def _told(pod: dict[str, Any], id: str) -> dict[str, Any]:
    """What the API already says of this very container: a restarted kubelet does not make it unready."""
    status = pod.get("status") or {}
    for group in ("containerStatuses", "initContainerStatuses"):
        for entry in status.get(group) or ():
            if (entry.get("containerID") or "").endswith(f"://{id}"):
                return dict(entry)
    return {}
