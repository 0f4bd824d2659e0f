"""The controllers by themselves: a Deployment that grows and shrinks on a fresh API server, and what they cost at rest.

No node and no scheduler: what is measured is how fast pods are made and unmade.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from time import monotonic

import psutil

from controlplane.client import config, rest
from controlplane.machinery import objects, resources
from tests.bench.api import running, server

DEPLOYMENTS, PODS, ACCOUNTS = (resources.named(n) for n in ("deployments.apps", "pods", "serviceaccounts"))
REPLICAS = 1000
LIMIT_SECONDS = 120.0  # of one phase
SETTLE_SECONDS = 8.0  # status writes and look-agains that follow a change must not count as idle
IDLE_SECONDS = 10.0
AIMS = {"create": "≥ 300"}


def deployment() -> dict:
    pod = {"containers": [{"name": "main", "image": "docker.io/library/nginx:1.27", "ports": [{"containerPort": 80}]}]}
    return {"metadata": {"name": "web"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                                                  "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod}}}


async def scaled(client: rest.Client, replicas: int) -> float:
    """Seconds from the change of the Deployment's size until its pods are as many, as a watch sees them."""
    pods, revision = await client.list(PODS, "default")
    present = {objects.uid(pod) for pod in pods}
    watching = client.watch(PODS, "default", revision=revision)
    begun = monotonic()

    async def follow() -> None:
        async for kind, pod in watching:
            if kind == "DELETED":
                present.discard(objects.uid(pod))
            elif kind != "BOOKMARK":
                present.add(objects.uid(pod))
            if len(present) == replicas:
                return
    async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        tasks.create_task(client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": replicas}}, "default", "merge"))
    return monotonic() - begun


async def _measure(kubeconfig: Path, pid: int) -> dict[str, tuple[float, str]]:
    async with rest.Client(config.load(kubeconfig)) as client:
        async with asyncio.timeout(LIMIT_SECONDS):
            while not (await client.list(ACCOUNTS, "default"))[0]:  # noqa: ASYNC110 - outside of what is measured
                await asyncio.sleep(0.05)
        await client.create(DEPLOYMENTS, deployment(), namespace="default")
        grow = await scaled(client, REPLICAS)
        shrink = await scaled(client, 0)
        await asyncio.sleep(SETTLE_SECONDS)
        process = psutil.Process(pid)
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(IDLE_SECONDS)
        idle = 100 * (sum(process.cpu_times()[:2]) - before) / IDLE_SECONDS
        return {"create": (REPLICAS / grow, "pods/s"), "delete": (REPLICAS / shrink, "pods/s"),
                "idle, of one core": (idle, "%"), "resident": (process.memory_info().rss / 1e6, "MB")}


def measure(args: Namespace) -> list[dict[str, object]]:
    with server() as (_, kubeconfig, _), running(
            kubeconfig.parent, "controllers", "controlplane.controllers", f"--kubeconfig={kubeconfig}",
            "--leader-elect=false") as pid:
        found = asyncio.run(_measure(kubeconfig, pid))
    return [{"area": "controllers", "what": f"Deployment 0 ⇄ {REPLICAS}, {what}" if unit == "pods/s" else what,
             "figure": figure, "unit": unit, "aim": AIMS.get(what, "")} for what, (figure, unit) in found.items()]
