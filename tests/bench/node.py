"""A pod's way on the running cluster: start, crowds, exits, restarts and deletion, drawn and beside bare CRI calls; a
hundred pods that do nothing; and, where one is given by path, another kubelet with the same pods."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
from argparse import Namespace
from collections.abc import Callable
from time import monotonic
from typing import Any

import psutil

from agent.image import demo
from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.model import ContainerSpec
from controlplane.cli.output import say
from controlplane.client import config, rest
from controlplane.machinery import objects
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from cri_proto.client import Connection
from cri_proto.messages import cri
from tests.bench import upstream
from tests.bench.idle import cpu, processes, resident
from tests.bench.pods import (
    PODS,
    SPACE,
    bare,
    bare_sandbox,
    clear,
    have_image,
    manifest,
    on_cluster,
    ready,
    space,
    start,
)

SINGLE, CROWDS, STORM, EXITS = 20, (30, 60), 20, 10
IDLE, SETTLE_SECONDS = 100, 10.0  # pods that do nothing; what their start still causes must not count
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


def runtime_cpu(paths: Paths) -> float:
    """CPU seconds of containerd, its shims, and what these have run and seen end."""
    used = 0.0
    for process in psutil.process_iter(["name", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            words = process.info["cmdline"] or []
            shim = process.info["name"].startswith("containerd-shim") and str(paths.containerd_socket) in words
            if shim or (process.info["name"] == "containerd" and str(paths.etc / "containerd.toml") in words):
                used += sum(process.cpu_times()[:4])
    return used


async def bare_crowd(paths: Paths, count: int) -> tuple[float, float]:
    """Seconds until `count` pods made by bare CRI calls at once run, and the runtime's CPU seconds meanwhile."""
    async with Connection(paths.containerd_socket) as connection:
        runtime = Runtime(connection)

        async def one() -> str:
            spec = bare_sandbox(paths)
            sandbox = await runtime.run_sandbox(spec)
            wanted = ContainerSpec("main", demo.DEMO, log_path="0.log")
            container = await runtime.create_container(sandbox, spec, wanted)
            await runtime.start_container(container)
            return sandbox
        before, begun = runtime_cpu(paths), monotonic()
        made = await asyncio.gather(*(one() for _ in range(count)))
        took, used = monotonic() - begun, runtime_cpu(paths) - before
        for sandbox in made:
            await runtime.stop_sandbox(sandbox)
            await runtime.remove_sandbox(sandbox)
        return took, used


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
        took, used = await bare_crowd(self.paths, count)
        self.note(f"{count} pods by bare CRI calls at once", took, "s")
        self.note("  CPU of the runtime meanwhile", used, "s")
        pids = processes(self.paths)
        before, spent = cpu(pids), runtime_cpu(self.paths)
        names = [f"many-{n}" for n in range(count)]
        took = await start(self.client, names)
        self.note(f"{count} pods at once", took, "s", "≤ 2.7" if count == CROWDS[0] else "")
        self.note("  CPU of the runtime meanwhile", runtime_cpu(self.paths) - spent, "s")
        for name, used in cpu(pids).items():
            if name != "containerd" and used - before[name] >= 0.05:
                self.note(f"  CPU of {name} meanwhile", used - before[name], "s")
        begun = monotonic()
        await clear(self.client, names)
        self.note(f"{count} pods deleted", monotonic() - begun, "s")

    async def idle(self, seconds: float) -> None:
        """What the agent costs while many pods do nothing."""
        names = [f"idle-{n}" for n in range(IDLE)]
        await start(self.client, names)
        await asyncio.sleep(SETTLE_SECONDS)
        pid = {"agent": processes(self.paths)["agent"]}
        before, begun = cpu(pid)["agent"], monotonic()
        await asyncio.sleep(seconds)
        used = 100 * (cpu(pid)["agent"] - before) / (monotonic() - begun)
        self.note(f"agent with {IDLE} idle pods, of one core", used, "%", "≤ 1")
        self.note(f"agent with {IDLE} idle pods, resident", resident(pid["agent"]), "MB", "≤ 90")
        await clear(self.client, names)

    async def beside(self, binary: str) -> None:
        """The kubelet `binary` with the same pods."""
        async with upstream.node(binary, self.paths, self.client) as node:
            took, deletes = [], []
            for number in range(EXITS):
                name = f"up-{number}"
                pod = manifest(name, node)
                pod["spec"]["terminationGracePeriodSeconds"] = 30
                way = Way(self.client)
                took += await way.follow(name, (("Ready", ready),), lambda pod=pod: self.client.create(
                    PODS, pod, namespace=SPACE))
                deletes += await way.follow(name, (("gone", ready),), lambda n=name: self.client.delete(PODS, n, SPACE))
            self.note("given kubelet: one pod, request to Ready, median", statistics.median(took) * 1000, "ms")
            self.note("given kubelet: graceful delete, median", statistics.median(deletes) * 1000, "ms")
            for count in CROWDS:
                names = [f"up-many-{n}" for n in range(count)]
                self.note(f"given kubelet: {count} pods at once", await start(self.client, names, node), "s")
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


async def low_level(paths: Paths) -> str:
    """What runs the pods that choose no runtime class."""
    async with Connection(paths.containerd_socket) as connection:
        status = await connection.runtime.Status(cri.StatusRequest(verbose=True), timeout=LIMIT_SECONDS)
    return str(json.loads(status.info["config"])["containerd"]["defaultRuntimeName"])


async def _measure(paths: Paths, idle_seconds: float, kubelet: str) -> list[dict[str, object]]:
    await have_image(paths)
    say(f"{await low_level(paths)} runs the pods")
    async with rest.Client(config.load(paths.admin_kubeconfig)) as client:
        bench = Bench(paths, client)
        async with space(client):
            await bench.single()
            for count in CROWDS:
                await bench.crowd(count)
            await bench.endings()
            await bench.storm()
            await bench.idle(idle_seconds)
            if kubelet:
                try:
                    await bench.beside(kubelet)
                except Finding as finding:  # what was measured before is told all the same
                    say(str(finding))
    return bench.rows


def measure(args: Namespace) -> list[dict[str, object]]:
    return on_cluster(lambda paths: _measure(paths, args.idle_seconds, args.kubelet))
