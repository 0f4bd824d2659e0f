"""Pod start on the running cluster: from the request to Ready seen by a watch, beside the bare CRI calls."""

from __future__ import annotations

import asyncio
import statistics
import uuid
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from agent.image import demo
from agent.kubelet.model import ContainerSpec, SandboxSpec
from agent.kubelet.specs import PAUSE_PROFILE
from controlplane.client import config, rest
from controlplane.machinery import objects, resources
from controlplane.machinery.errors import Finding, NotFound
from controlplane.machinery.paths import Paths
from cri_proto.client import Connection

PODS, NAMESPACES = resources.named("pods"), resources.named("namespaces")
SPACE = "pelamis-bench"
SINGLE, TOGETHER = 10, 30
READY_SECONDS = 120.0


def manifest(name: str, node: str = "") -> dict:
    return {"metadata": {"name": name, "labels": {"app": "bench"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "enableServiceLinks": False,
        **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        "containers": [{"name": "main", "image": demo.DEMO}]}}


def ready(pod: dict) -> bool:
    return (objects.condition(pod, "Ready") or {}).get("status") == "True"


async def start(client: rest.Client, names: list[str], node: str = "") -> float:
    """Seconds until all of `names`, created at once, were seen Ready; on `node` when it is given."""
    _, revision = await client.list(PODS, SPACE)
    left = set(names)
    watching = client.watch(PODS, SPACE, revision=revision)
    begun = monotonic()

    async def follow() -> None:
        async for _, pod in watching:
            if ready(pod):
                left.discard(objects.name(pod))
                if not left:
                    return
    async with asyncio.timeout(READY_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        for name in names:
            tasks.create_task(client.create(PODS, manifest(name, node), namespace=SPACE))
    return monotonic() - begun


@asynccontextmanager
async def space(client: rest.Client) -> AsyncIterator[None]:
    """The namespace of what is measured, gone again at the end: the next area makes its own of the same name."""
    await client.create(NAMESPACES, {"metadata": {"name": SPACE}})
    try:
        yield
    finally:
        with suppress(NotFound):
            await client.delete(NAMESPACES, SPACE)
            async with asyncio.timeout(READY_SECONDS):
                while await client.get(NAMESPACES, SPACE):  # noqa: ASYNC110 - outside of what is measured
                    await asyncio.sleep(0.1)


async def clear(client: rest.Client, names: list[str]) -> None:
    for name in names:
        await client.delete(PODS, name, SPACE, grace=0)
    while (await client.list(PODS, SPACE))[0]:  # noqa: ASYNC110 - outside of what is measured
        await asyncio.sleep(0.05)


def bare_sandbox(paths: Paths) -> SandboxSpec:
    """One more sandbox, as the node makes them."""
    uid = str(uuid.uuid4())
    return SandboxSpec(uid, SPACE, f"bare-{uid[:8]}", log_directory=f"{paths.run}/bench/{uid}",
                       cgroup_parent=f"/bench/{uid}", seccomp=f"Localhost:{paths.kubelet / PAUSE_PROFILE}")


async def bare(paths: Paths, count: int) -> list[float]:
    """Seconds of RunPodSandbox + CreateContainer + StartContainer, one pod at a time."""
    from agent.kubelet.cri.runtime import Runtime
    took = []
    async with Connection(paths.containerd_socket) as connection:
        runtime = Runtime(connection)
        for _ in range(count):
            spec = bare_sandbox(paths)
            begun = monotonic()
            sandbox = await runtime.run_sandbox(spec)
            wanted = ContainerSpec("main", demo.DEMO, log_path="0.log")
            container = await runtime.create_container(sandbox, spec, wanted)
            await runtime.start_container(container)
            took.append(monotonic() - begun)
            await runtime.stop_sandbox(sandbox)
            await runtime.remove_sandbox(sandbox)
    return took


async def have_image(paths: Paths) -> None:
    """The pods' image on this node, also where the cluster was made without the demo."""
    async with Connection(paths.containerd_socket) as connection:
        await demo.install(connection, paths, (demo.DEMO,))


async def _measure(paths: Paths) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def note(what: str, figure: float, unit: str, aim: str = "") -> None:
        rows.append({"area": "pods", "what": what, "figure": figure, "unit": unit, "aim": aim})
    await have_image(paths)
    async with rest.Client(config.load(paths.admin_kubeconfig)) as client, space(client):
        calls, one = [], []
        for number in range(SINGLE):  # interleaved, so that both see the same noise
            calls += await bare(paths, 1)
            one.append(await start(client, [f"one-{number}"]))
            await clear(client, [f"one-{number}"])
        note("bare CRI calls of one pod, median", statistics.median(calls) * 1000, "ms")
        note("one pod, request to Ready, median", statistics.median(one) * 1000, "ms")
        note("ratio", statistics.median(one) / statistics.median(calls), "×", "≤ 1.5")
        names = [f"many-{n}" for n in range(TOGETHER)]
        note(f"{TOGETHER} pods at once", await start(client, names), "s")
        await clear(client, names)
    return rows


def on_cluster(measure: Callable[[Paths], Coroutine[Any, Any, list[dict[str, object]]]]) -> list[dict[str, object]]:
    """The rows that `measure` finds on the cluster that runs here. Raises Finding."""
    paths = Paths.from_environment()
    if not paths.admin_kubeconfig.exists():
        raise Finding("no cluster runs here to measure pods on", fix="./pelamis up --demo")
    try:
        return asyncio.run(measure(paths))
    except NotFound as error:
        raise Finding("the cluster is not complete", str(error), "./pelamis status") from None


def measure(args: Namespace) -> list[dict[str, object]]:
    return on_cluster(_measure)
