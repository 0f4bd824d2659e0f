"""What a user waits for on the running cluster: a new Service answers, a pod that becomes ready is reached."""

from __future__ import annotations

import asyncio
import statistics
from argparse import Namespace
from collections.abc import Callable
from time import perf_counter

from controlplane.client import config, rest
from controlplane.machinery import objects, resources
from controlplane.machinery.paths import Paths
from tests.bench import pods

SERVICES = resources.named("services")
TIMES = 10
PORT = 80
GATE = "pelamis.local/bench"  # a condition that the measurement sets: from then on the pod is ready
ANSWER_SECONDS = 60.0
PAUSE = 0.002  # seconds between attempts that are refused
ATTEMPT = 0.02  # seconds of one: before there are rules nobody answers at all, and this is the resolution


def service(name: str, app: str) -> dict:
    return {"metadata": {"name": name}, "spec": {"selector": {"app": app}, "ports": [{"port": PORT}]}}


async def reached(address: str, wanted: bool = True) -> None:
    """Until the address takes connections, or does not any more."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            try:
                async with asyncio.timeout(ATTEMPT):
                    _, writer = await asyncio.open_connection(address, PORT)
                writer.close()
                if wanted:
                    return
            except (OSError, TimeoutError):
                if not wanted:
                    return
            await asyncio.sleep(PAUSE)


async def _new_services(client: rest.Client) -> list[float]:
    """Milliseconds from the POST of a Service to its answer, for a pod that is ready."""
    took = []
    for number in range(TIMES):
        begun = perf_counter()
        made = await client.create(SERVICES, service(f"new-{number}", "bench"), pods.SPACE)
        await reached(made["spec"]["clusterIP"])
        took.append((perf_counter() - begun) * 1000)
        await client.delete(SERVICES, f"new-{number}", pods.SPACE)
    return took


async def _readiness(client: rest.Client) -> list[float]:
    """Milliseconds from the word that a pod may be ready to its Service's answer: by kubelet, slices and rules."""
    gated = pods.manifest("gated")
    gated["metadata"]["labels"] = {"app": "gated"}
    gated["spec"]["readinessGates"] = [{"conditionType": GATE}]
    await client.create(pods.PODS, gated, pods.SPACE)
    made = await client.create(SERVICES, service("gated", "gated"), pods.SPACE)
    address = made["spec"]["clusterIP"]
    async with asyncio.timeout(pods.READY_SECONDS):
        while not objects.condition(await client.get(pods.PODS, "gated", pods.SPACE), "ContainersReady"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    took = []
    for _ in range(TIMES):
        begun = perf_counter()
        await _say(client, "True")
        await reached(address)
        took.append((perf_counter() - begun) * 1000)
        await _say(client, "False")
        await reached(address, wanted=False)
    return took


async def _say(client: rest.Client, value: str) -> None:
    condition = {"type": GATE, "status": value, "lastTransitionTime": client.clock.timestamp()}
    await client.patch(pods.PODS, "gated", {"status": {"conditions": [condition]}}, pods.SPACE, subresource="status")


async def _measure(paths: Paths) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def note(what: str, took: list[float], aim: str) -> None:
        for name, choose in (("median", statistics.median), ("worst", max)):
            figure: Callable[[list[float]], float] = choose
            rows.append({"area": "services", "what": f"{what}, {name}", "figure": figure(took), "unit": "ms",
                         "aim": aim if name == "median" else ""})

    await pods.have_image(paths)
    async with rest.Client(config.load(paths.admin_kubeconfig)) as client, pods.space(client):
        await pods.start(client, ["steady"])
        note("a new Service answers after its POST", await _new_services(client), "100")
        note("a pod's readiness reaches its cluster IP", await _readiness(client), "100")
    return rows


def measure(args: Namespace) -> list[dict[str, object]]:
    return pods.on_cluster(_measure)
