"""One simulation: `python -m tests.simulation.run --seed 7 --nodes 20 --hours 50`.

Owns the assembly: an API server on a memory log, the controllers and the scheduler on faulty wires, model nodes, and
the story. Prints a report as JSON; exit code 1 when a rule was broken, with the command that shows it again. The same
seed gives the same story: the hash seed is fixed before anything is imported.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.simulation.virtual import Loop, Stuck, VirtualClock

Obj = dict[str, Any]


def labelled(kind: str, name: str, replicas: int | None, cpu: str = "100m", **spec: Any) -> Obj:
    made: Obj = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": {
        "selector": {"matchLabels": {"app": name}}, **spec, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}}}}
    if replicas is not None:
        made["spec"]["replicas"] = replicas
    return made


def default_documents() -> list[Obj]:
    """A bit of everything: workloads whose rules differ, and budgets."""
    budgets = [{"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {**kept, "selector": {"matchLabels": {"app": name}}}}
               for name, kept in (("web", {"minAvailable": 2}), ("api", {"maxUnavailable": "25%"}),
                                  ("db", {"minAvailable": "60%"}))]
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    return [labelled("Deployment", "web", 6, strategy=surge), labelled("Deployment", "api", 4),
            labelled("StatefulSet", "db", 3, serviceName="db"), labelled("DaemonSet", "agent", None), *budgets]


class Components:
    """The controllers and the scheduler, which can be killed and started again."""

    def __init__(self, server: Any, faults: Any, loop: Loop, seed: int) -> None:
        self._server, self._faults, self._loop, self._seed = server, faults, loop, seed
        self._task: asyncio.Task[None] | None = None
        self.starts = 0

    async def restart(self) -> None:
        await self.stop()
        self.starts += 1
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._run(ready), name="components")
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, ready: asyncio.Event) -> None:
        from controlplane.client.events import Recorder
        from controlplane.client.informer import Informer
        from controlplane.controllers.manager import Manager, Settings
        from controlplane.controllers.nodes.lifecycle import NodeLifecycle
        from controlplane.controllers.runtime import NODES, PODS, keep_for
        from controlplane.scheduler.loop import NAME, Scheduler
        from controlplane.scheduler.world import World
        from tests.simulation.wire import DirectClient
        skew = self._faults.random.uniform(-120, 120) if self.starts > 1 else 0.0
        clock = VirtualClock(self._loop, self._seed + self.starts, skew)
        client = DirectClient(self._server, clock, self._faults, "kube-controller-manager")
        other = DirectClient(self._server, clock, self._faults, "kube-scheduler")
        manager = Manager(client, Settings(), clock)
        # Heartbeats every few seconds of every node would be nearly all that is simulated; nodes are lost otherwise.
        manager.controllers = [c for c in manager.controllers if not isinstance(c, NodeLifecycle)]
        recorder, nodes = Recorder(other, NAME), Informer(other, NODES, clock=clock)
        scheduler = Scheduler(other, manager.informers.of(PODS), nodes, World(manager.informers, keep_for), recorder,
                              clock)
        async with asyncio.TaskGroup() as group:
            for work in (manager.follow(ready.set), manager.work(), nodes.run(), recorder.run(), scheduler.run()):
                group.create_task(work)


async def simulate(loop: Loop, seed: int, nodes: int, hours: float, documents: list[Obj],
                   say: Callable[[str], None]) -> Obj:
    """The report of one simulation."""
    from controlplane.apiserver.config import Options
    from controlplane.apiserver.server import Server
    from controlplane.store.memory import MemoryLog
    from tests.simulation.invariants import Invariants
    from tests.simulation.kubelets import Kubelets
    from tests.simulation.story import Story
    from tests.simulation.wire import DirectClient, Faults
    server = Server(Options(secure_port=0, bind_address="127.0.0.1", advertise_address="10.0.0.1"), MemoryLog(),
                    clock=VirtualClock(loop, seed))
    await server.start()
    faults = Faults(seed)
    components = Components(server, faults, loop, seed)
    rules = Invariants(server, loop.time)
    rounds = 0
    try:
        async with asyncio.TaskGroup() as group:
            client = DirectClient(server, VirtualClock(loop, seed + 1000))
            kubelets = Kubelets(server, client, seed, group)
            await components.restart()
            story = Story(client, kubelets, faults, rules, seed, components.restart, say)
            await story.begin(nodes, documents)
            placed = spread(rules.all("pods"))
            begun = loop.time()
            while loop.time() < hours * 3600 and not rules.broken:
                await story.round()
                rounds += 1
            await components.stop()
            for task in list(group._tasks):
                task.cancel()
    finally:
        await components.stop()
        await server.stop()
        gc.unfreeze()
    return {"seed": seed, "nodes": nodes, "hours": round(loop.time() / 3600, 1), "rounds": rounds,
            "settled first after seconds": round(begun, 1), "pods per node, least and most": placed,
            "faults": faults.made, "restarts": components.starts - 1, "writes": rules.writes, "broken": rules.broken}


def spread(pods: list[Obj]) -> list[int]:
    counts: dict[str, int] = {}
    for pod in pods:
        name = (pod.get("spec") or {}).get("nodeName") or ""
        counts[name] = counts.get(name, 0) + 1
    return [min(counts.values(), default=0), max(counts.values(), default=0)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="simulate")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--nodes", type=int, default=12)
    made.add_argument("--hours", type=float, default=24.0)
    made.add_argument("-f", "--filename", action="append", default=[])
    made.add_argument("-v", "--verbose", action="store_true")
    return made


def main() -> int:
    options = parser().parse_args()
    logging.basicConfig(level=logging.WARNING if options.verbose else logging.CRITICAL, stream=sys.stderr)
    documents = default_documents()
    if options.filename:
        from controlplane.cli.whatif import documents as read
        documents = read([str(Path(name)) for name in options.filename], "default")
    loop = Loop()

    def say(text: str) -> None:
        if options.verbose:
            print(f"{loop.time():12,.1f} s  {text}", file=sys.stderr)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            report = runner.run(simulate(loop, options.seed, options.nodes, options.hours, documents, say))
    except Stuck as stuck:
        report = {"seed": options.seed, "broken": [str(stuck)]}
    print(json.dumps(report))
    if report["broken"]:
        files = "".join(f" -f {name}" for name in options.filename)
        print(f"again: pelamis simulate --seed {options.seed} --nodes {options.nodes} --hours {options.hours:g}{files}",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of the story
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation.run", *sys.argv[1:]],
                  {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
