"""A pod's way on the running cluster: start, crowds, exits, restarts and deletion, drawn and beside bare CRI calls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import uuid
from argparse import Namespace
from collections.abc import Callable
from time import monotonic
from typing import Any

import psutil

from agent.image import demo
from agent.kubelet.model import ContainerSpec, SandboxSpec
from agent.kubelet.runtime import Runtime
from controlplane.cli.output import say
from controlplane.client import config, rest
from controlplane.machinery import objects
from controlplane.machinery.paths import Paths
from cri_proto.client import Connection
from cri_proto.messages import cri
from tests.bench.idle import processes
from tests.bench.pods import NAMESPACES, PODS, bare, clear, have_image, manifest, on_cluster, ready, start

SPACE = "pelamis-bench"
SINGLE, CROWDS, STORM, EXITS = 20, (30, 60), 20, 10
LIMIT_SECONDS = 120.0
WIDTH = 56  # characters of the drawn timeline
Step = tuple[str, Callable[[dict[str, Any]], bool]]


def _running(pod: dict[str, Any]) -> bool:
    return any("running" in s["state"] for s in (pod.get("status") or {}).get("containerStatuses") or ())


def _box(pod: dict[str, Any]) -> bool:
    return (objects.condition(pod, "PodReadyToStartContainers") or {}).get("status") == "True"


def _restarted(pod: dict[str, Any]) -> bool:
    return any(s["restartCount"] for s in (pod.get("status") or {}).get("containerStatuses") or ())


def _exited(pod: dict[str, Any]) -> bool:
    return any("running" not in s["state"] or s["restartCount"]
               for s in (pod.get("status") or {}).get("containerStatuses") or ())


STEPS: tuple[Step, ...] = (("bound to the node", lambda p: bool(p["spec"].get("nodeName"))), ("sandbox seen", _box),
                           ("container seen running", _running), ("Ready", ready))


class Way:
    """Watches pods and notes when each step of one was first seen, in seconds since `begin`."""

    def __init__(self, client: rest.Client) -> None:
        self._client, self.begun = client, 0.0

    async def follow(self, name: str, steps: tuple[Step, ...], act: Callable[[], Any]) -> list[float]:
        """Perform `act` and say when each step of pod `name` was seen; a step "gone" is its deletion."""
        _, revision = await self._client.list(PODS, SPACE)
        watching = self._client.watch(PODS, SPACE, fields=f"metadata.name={name}", revision=revision)
        seen: dict[str, float] = {}

        async def look() -> None:
            async for kind, pod in watching:
                for step, fits in steps:
                    if step not in seen and (kind == "DELETED" if step == "gone" else fits(pod)):
                        seen[step] = monotonic() - self.begun
                if len(seen) == len(steps):
                    return
        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(look())
            self.begun = monotonic()
            await act()
        return [seen[step] for step, _ in steps]


def draw(title: str, steps: list[str], at: list[float]) -> str:
    """The steps on a line of time; `at` are seconds since the request."""
    total = max(at[-1], 1e-6)
    lines = [f"{title} ({total * 1000:.0f} ms)"]
    last = 0.0
    for step, when in zip(steps, at, strict=True):
        first, end = round(last / total * WIDTH), round(when / total * WIDTH)
        lines.append("  " + " " * first + "█" * max(end - first, 1) + " " * (WIDTH - max(end, first + 1))
                     + f" {when * 1000:6.0f}  {step} (+{(when - last) * 1000:.0f})")
        last = when
    return "\n".join(lines)


async def bare_crowd(paths: Paths, count: int) -> float:
    """Seconds until `count` pods made by bare CRI calls at once run."""
    async with Connection(paths.containerd_socket) as connection:
        runtime = Runtime(connection)

        async def one() -> str:
            uid = str(uuid.uuid4())
            spec = SandboxSpec(uid, SPACE, f"bare-{uid[:8]}", log_directory=f"{paths.run}/bench/{uid}",
                               cgroup_parent=f"/bench/{uid}")
            sandbox = await runtime.run_sandbox(spec)
            wanted = ContainerSpec("main", demo.DEMO, log_path="0.log")
            container = await runtime.create_container(sandbox, spec, wanted)
            await runtime.start_container(container)
            return sandbox
        begun = monotonic()
        made = await asyncio.gather(*(one() for _ in range(count)))
        took = monotonic() - begun
        for sandbox in made:
            await runtime.stop_sandbox(sandbox)
            await runtime.remove_sandbox(sandbox)
        return took


async def kill_main(paths: Paths, names: set[str]) -> None:
    """SIGKILL to the first process of every container of the pods called `names`."""
    async with Connection(paths.containerd_socket) as connection:
        found = await Runtime(connection).observe()
        pids = []
        for pod in found.values():
            for container in pod.containers if pod.namespace == SPACE and pod.name in names else ():
                answer = await connection.runtime.ContainerStatus(cri.ContainerStatusRequest(
                    container_id=container.id, verbose=True), timeout=LIMIT_SECONDS)
                pids.append(json.loads(answer.info["info"])["pid"])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


class Bench:
    def __init__(self, paths: Paths, client: rest.Client) -> None:
        self.paths, self.client, self.rows = paths, client, list[dict[str, object]]()

    def note(self, what: str, figure: float, unit: str, aim: str = "") -> None:
        self.rows.append({"area": "node", "what": what, "figure": figure, "unit": unit, "aim": aim})

    async def single(self) -> None:
        calls, ways = [], []
        for number in range(SINGLE):  # interleaved, so that both see the same noise
            name = f"one-{number}"
            calls += await bare(self.paths, 1)
            ways.append(await Way(self.client).follow(name, STEPS, lambda name=name: self.client.create(
                PODS, manifest(name), namespace=SPACE)))
            await clear(self.client, [name])
        middle = [statistics.median(w[i] for w in ways) for i in range(len(STEPS))]
        say(draw("one pod, from the request to Ready, medians", [s for s, _ in STEPS], middle))
        self.note("bare CRI calls of one pod, median", statistics.median(calls) * 1000, "ms")
        self.note("one pod, request to Ready, median", middle[-1] * 1000, "ms")
        self.note("ratio", middle[-1] / statistics.median(calls), "×", "≤ 1.15")

    async def crowd(self, count: int) -> None:
        self.note(f"{count} pods by bare CRI calls at once", await bare_crowd(self.paths, count), "s")
        pids = processes(self.paths)
        before = {n: sum(psutil.Process(p).cpu_times()[:2]) for n, p in pids.items()}
        names = [f"many-{n}" for n in range(count)]
        took = await start(self.client, names)
        self.note(f"{count} pods at once", took, "s", "≤ 2.7" if count == CROWDS[0] else "")
        for name, pid in pids.items():
            used = sum(psutil.Process(pid).cpu_times()[:2]) - before[name]
            if used >= 0.05:
                self.note(f"  CPU of {name} meanwhile", used, "s")
        await clear(self.client, names)

    async def endings(self) -> None:
        deletes, exits = [], []
        for number in range(EXITS):
            name = f"end-{number}"
            pod = manifest(name)
            pod["spec"]["terminationGracePeriodSeconds"] = 30
            way = Way(self.client)
            await way.follow(name, (("Ready", ready),), lambda pod=pod: self.client.create(PODS, pod, namespace=SPACE))
            exits += await way.follow(name, (("exit seen", _exited),), lambda w=way, n=name: self._kill(w, {n}))
            await way.follow(name, (("again", lambda p: _restarted(p) and ready(p)),), lambda n=name: self._touch(n))
            deletes.append(await way.follow(name, (
                ("terminating", lambda p: bool(p["metadata"].get("deletionTimestamp"))),
                ("container ended", _exited_now), ("gone", ready)),
                lambda n=name: self.client.delete(PODS, n, SPACE)))
        middle = [statistics.median(w[i] for w in deletes) for i in range(3)]
        say(draw("graceful deletion of a process that ends on SIGTERM, medians",
                 ["terminating", "end of the container seen", "object gone"], middle))
        self.note("graceful delete, request to gone, median", middle[-1] * 1000, "ms", "≤ 300")
        self.note("exit of a container, until the API shows it, median", statistics.median(exits) * 1000, "ms", "≤ 100")

    async def _kill(self, way: Way, names: set[str]) -> None:
        await kill_main(self.paths, names)
        way.begun = monotonic()

    async def _touch(self, name: str) -> None:
        """A change that makes the watch show the pod even if nothing happens any more."""
        await self.client.patch(PODS, name, {"metadata": {"labels": {"seen": "yes"}}}, SPACE)

    async def storm(self) -> None:
        names = [f"storm-{n}" for n in range(STORM)]
        await start(self.client, names)
        left = set(names)
        _, revision = await self.client.list(PODS, SPACE)
        watching = self.client.watch(PODS, SPACE, revision=revision)
        await kill_main(self.paths, left.copy())
        begun = monotonic()
        async with asyncio.timeout(LIMIT_SECONDS):
            async for _, pod in watching:
                if _restarted(pod) and ready(pod):
                    left.discard(objects.name(pod))
                if not left:
                    break
        self.note(f"{STORM} containers killed at once, until all run again", monotonic() - begun, "s")
        await clear(self.client, names)


def _exited_now(pod: dict[str, Any]) -> bool:
    return any("terminated" in s["state"] for s in (pod.get("status") or {}).get("containerStatuses") or ())


async def _measure(paths: Paths) -> list[dict[str, object]]:
    await have_image(paths)
    async with rest.Client(config.load(paths.admin_kubeconfig)) as client:
        await client.create(NAMESPACES, {"metadata": {"name": SPACE}})
        bench = Bench(paths, client)
        try:
            await bench.single()
            for count in CROWDS:
                await bench.crowd(count)
            await bench.endings()
            await bench.storm()
        finally:
            await client.delete(NAMESPACES, SPACE)
    return bench.rows


def measure(args: Namespace) -> list[dict[str, object]]:
    return on_cluster(_measure)
