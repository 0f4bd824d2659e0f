"""The scheduler: pods decided per second in the shapes of upstream's scheduler_perf, and bound through an API server.

The shapes run the decisions alone, in this process, on model nodes; every decision sees the ones before it. The last
row is the whole way: created over TLS, decided, bound, stored, seen by a watch.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from controlplane.client import config, rest
from controlplane.machinery import objects, resources
from controlplane.scheduler import preemption
from controlplane.scheduler.configuration import Profile
from controlplane.scheduler.decider import Decider
from controlplane.scheduler.imagined import Cluster
from tests.bench.api import running, server

PODS, NODES, ACCOUNTS = (resources.named(n) for n in ("pods", "nodes", "serviceaccounts"))
SIZES = (1000, 5000)
MEASURED = 2000  # pods decided per shape, after as many that were there before
NAMESPACES = 100  # of the shape with namespace selectors
CHURN = 20  # a node comes and a pod goes after so many decisions
BOUND_NODES, BOUND_PODS = 1000, 3000
TOGETHER = 32  # creations under way at once
LIMIT_SECONDS = 90.0
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
AIMS = {"basic": "≥ 1,000", "affinity": "> 35", "anti-affinity, namespace selector": "> 24", "spread": "> 85",
        "preemption": "> 160", "churn": "> 265"}
Obj = dict[str, Any]


def node(number: int, zones: int = 3) -> Obj:
    amounts = {"cpu": "4", "memory": "32Gi", "pods": "110"}
    return {"metadata": {"name": f"node-{number}", "labels": {HOST: f"node-{number}", ZONE: f"zone-{number % zones}"}},
            "spec": {}, "status": {"capacity": amounts, "allocatable": amounts}}


def pod(number: int, cpu: str = "100m", namespace: str = "default", **spec: Any) -> Obj:
    return {"metadata": {"name": f"pod-{number}", "namespace": namespace, "uid": f"u{number}",
                         "labels": {"color": "blue"}},
            "spec": {"containers": [{"name": "pause", "image": "pause", "resources": {
                "requests": {"cpu": cpu, "memory": "500Mi"}}}], **spec}}


def term(key: str, **where: Any) -> Obj:
    return {"topologyKey": key, "labelSelector": {"matchLabels": {"color": "blue"}}, **where}


def shapes() -> Mapping[str, Callable[[int], Obj]]:
    apart = {"podAntiAffinity": {REQUIRED: [term(HOST, namespaceSelector={"matchLabels": {"team": "devops"}})]}}
    spread = {"topologyKey": ZONE, "maxSkew": 5, "whenUnsatisfiable": "DoNotSchedule",
              "labelSelector": {"matchLabels": {"color": "blue"}}}
    return {
        "basic": pod,
        "affinity": lambda n: pod(n, affinity={"podAffinity": {REQUIRED: [term(ZONE)]}}),
        "anti-affinity, namespace selector": lambda n: pod(n, namespace=f"ns-{n % NAMESPACES}", affinity=apart),
        "spread": lambda n: pod(n, topologySpreadConstraints=[spread]),
    }


def model(nodes: int, zones: int = 3) -> Decider:
    decider = Decider(Cluster({}))
    decider.snapshot.set_namespace("default", {})
    for number in range(NAMESPACES):
        decider.snapshot.set_namespace(f"ns-{number}", {"team": "devops"})
    for number in range(nodes):
        decider.snapshot.set_node(node(number, zones))
    return decider


def place(decider: Decider, pods: Iterable[Obj]) -> int:
    """How many of the pods found a node."""
    profile, placed = Profile(), 0
    for one in pods:
        found = decider.decide(decider.ask(one, profile), profile)
        if found.node:
            decider.assume(one, found.node)
            placed += 1
    return placed


def rate(nodes: int, make: Callable[[int], Obj]) -> float:
    """Pods decided per second; half the pods are there before the clock starts, as upstream does it."""
    decider = model(nodes)
    count = min(MEASURED, nodes // 2)  # of pods that keep apart no node takes two
    place(decider, (make(number) for number in range(count)))
    begun = perf_counter()
    placed = place(decider, (make(number) for number in range(count, 2 * count)))
    seconds = perf_counter() - begun
    assert placed == count, f"only {placed} of {count} pods fit"
    return count / seconds


def churning(nodes: int) -> float:
    """As basic, while nodes come and pods go."""
    decider = model(nodes)
    begun = perf_counter()
    for number in range(MEASURED):
        place(decider, (pod(number),))
        if number % CHURN == CHURN - 1:
            decider.snapshot.set_node(node(nodes + number))
            decider.snapshot.remove(f"u{number - CHURN // 2}")
            decider.snapshot.drop_node(f"node-{nodes + number}")
    return MEASURED / (perf_counter() - begun)


def preempting(nodes: int) -> float:
    """Every node is full of unimportant pods; each important one needs three of them gone."""
    decider, profile = model(nodes), Profile()
    for number in range(nodes * 4):
        decider.snapshot.place(pod(number, cpu="900m"), f"node-{number % nodes}")
    count = min(500, nodes)
    begun = perf_counter()
    for number in range(count):
        one = pod(nodes * 4 + number, cpu="3", priority=10)
        wants = decider.ask(one, profile)
        plan = preemption.choose(decider.preempt(wants, decider.decide(wants, profile))[0])
        assert plan is not None and len(plan.victims) == 3
        for victim in plan.victims:
            decider.snapshot.remove(objects.uid(victim.pod))
        assert decider.decide(wants, profile).node == plan.node
        decider.assume(one, plan.node)
    return count / (perf_counter() - begun)


# --- the whole way -----------------------------------------------------------------------------------------------

async def _each(work: Callable[[int], Any], count: int) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(TOGETHER):
            tasks.create_task(worker())


async def _bound(kubeconfig: Path, processes: Iterable[psutil.Process]) -> tuple[float, float]:
    """Seconds from the first creation until all pods are seen bound, and those the processes worked meanwhile."""
    ready = [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2100-01-01T00:00:00Z"}]
    async with rest.Client(config.load(kubeconfig)) as client:
        async def fill(number: int) -> None:
            made = node(number)
            await client.create(NODES, {**made, "status": {**made["status"], "conditions": ready}})
        await _each(fill, BOUND_NODES)
        async with asyncio.timeout(LIMIT_SECONDS):
            while any(n["spec"].get("taints") or not n["spec"].get("podCIDR")  # noqa: ASYNC110 - not measured
                      for n in (await client.list(NODES))[0]) or not (await client.list(ACCOUNTS, "default"))[0]:
                await asyncio.sleep(0.2)
        _, revision = await client.list(PODS, "default")
        left, watching = {f"pod-{n}" for n in range(BOUND_PODS)}, client.watch(PODS, "default", revision=revision)

        async def follow() -> None:
            async for _, one in watching:
                if (one.get("spec") or {}).get("nodeName"):
                    left.discard(objects.name(one))
                    if not left:
                        return
        begun, worked = perf_counter(), _worked(processes)
        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            tasks.create_task(_each(lambda n: client.create(PODS, _bare(pod(n))), BOUND_PODS))
        return perf_counter() - begun, _worked(processes) - worked


def _worked(processes: Iterable[psutil.Process]) -> float:
    """Seconds of CPU: what tells of our work even where others keep the machine busy."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _bare(made: Obj) -> Obj:
    del made["metadata"]["uid"]
    return made


def measure(args: Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for nodes in SIZES:
        figures = {name: rate(nodes, make) for name, make in shapes().items()}
        figures |= {"churn": churning(nodes), "preemption": preempting(nodes)}
        rows += [{"area": "scheduler", "what": f"{nodes:,} nodes, {name}", "figure": figure, "unit": "pods/s",
                  "aim": AIMS[name] if nodes == max(SIZES) else ""} for name, figure in figures.items()]
    with server() as (_, kubeconfig, serving), running(
            kubeconfig.parent, "controllers", "controlplane.controllers", f"--kubeconfig={kubeconfig}",
            f"--scheduler-kubeconfig={kubeconfig}", "--leader-elect=false", "--cluster-cidr=10.0.0.0/8") as controlling:
        seconds, worked = asyncio.run(_bound(kubeconfig, [psutil.Process(pid) for pid in (serving, controlling)]))
    rows += [{"area": "scheduler", "what": f"{BOUND_NODES:,} nodes, created to bound", "unit": "pods/s",
              "figure": BOUND_PODS / seconds, "aim": "≥ 350"},
             {"area": "scheduler", "what": "… CPU of the API server and the controllers for each pod", "unit": "ms",
              "figure": 1000 * worked / BOUND_PODS, "aim": "< 5"}]
    return rows
