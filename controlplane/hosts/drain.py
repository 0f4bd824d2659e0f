"""Pods leave a node before something is done to it: no new ones, those that can move are evicted, the rest stay.

Owns what may be evicted (`leaving`, pure) and the waiting. Promises to go through evictions, so that disruption budgets
hold, to say which pod it waits for and why, to need no more than the node's own identity, and that a node which took
pods before takes them again afterwards, whatever came of it. Called by `pelamis upgrade --drain`.

Upstream: k8s.io/kubectl/pkg/drain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from controlplane.client.config import load
from controlplane.client.rest import Client
from controlplane.machinery import objects, podfacts
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Finding, NotFound
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named

NODES, PODS = named("nodes"), named("pods")
PAUSE = 0.5
NAMED = 5  # pods that a message names: more would hide the fix
MIRROR = "kubernetes.io/config.mirror"
MARK = "pelamis.io/drained"  # on a node that nobody but us closed: opened again by the next drain where we are killed


def leaving(pods: Iterable[dict]) -> list[dict]:  # type: ignore[type-arg]
    """The pods of a node that run elsewhere once they are evicted: not a DaemonSet's, nor static, nor at their end."""
    found = []
    for pod in pods:
        kinds = {owner.get("kind") for owner in (pod.get("metadata") or {}).get("ownerReferences") or ()}
        if "DaemonSet" not in kinds and MIRROR not in objects.annotations(pod) and not podfacts.finished(pod):
            found.append(pod)
    return found


@asynccontextmanager
async def drained(paths: Paths, name: str, say: Callable[[str], None], limit: float,
                  clock: Clock = SYSTEM) -> AsyncIterator[int]:
    """How many pods left the node; while this lasts, none is placed on it. What it waits for is told by `say`. Raises
    Finding when a pod does not leave within `limit` seconds."""
    async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-drain") as client:
        node = await client.get(NODES, name)
        closed = (node.get("spec") or {}).get("unschedulable") and MARK not in objects.annotations(node)
        if not closed:
            await client.patch(NODES, name, {"metadata": {"annotations": {MARK: "true"}},
                                             "spec": {"unschedulable": True}})
    try:
        async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-drain") as client:
            gone = await _empty(client, name, say, limit, clock)
        yield gone
    finally:
        if not closed:
            async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-drain") as client:
                await client.patch(NODES, name, {"metadata": {"annotations": {MARK: None}},
                                                 "spec": {"unschedulable": None}})


async def _empty(client: Client, name: str, say: Callable[[str], None], limit: float, clock: Clock) -> int:
    deadline, asked, waiting = clock.monotonic() + limit, set[str](), dict[str, str]()
    while True:
        pods = leaving((await client.list(PODS, fields=f"spec.nodeName={name}"))[0])
        if not pods:
            return len(asked)
        before, waiting = waiting, {}
        for pod in pods:
            called = f"{objects.namespace(pod)}/{objects.name(pod)}"
            if objects.uid(pod) not in asked and not (why := await _evicted(client, pod)):
                asked.add(objects.uid(pod))
            waiting[called] = "it is ending" if objects.uid(pod) in asked else why
            if waiting[called] != before.get(called) and objects.uid(pod) not in asked:
                say(f"waiting for {called}: {why}")
        if clock.monotonic() > deadline:
            raise Finding(f"{len(pods)} pods did not leave {name} within {limit:.0f} s",
                          "; ".join(f"{called}: {why}" for called, why in list(waiting.items())[:NAMED]),
                          "kubectl get poddisruptionbudgets -A; a longer --drain-timeout; or upgrade without --drain: "
                          "no container is restarted either way")
        await clock.sleep(PAUSE)


async def _evicted(client: Client, pod: dict) -> str:  # type: ignore[type-arg]
    """Ask for the pod's eviction; why it may not go yet, "" when it goes."""
    try:
        await client.create(PODS, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {
            "name": objects.name(pod), "namespace": objects.namespace(pod)}}, subresource="eviction",
            name=objects.name(pod))
    except NotFound:
        pass
    except ApiError as error:  # a budget, or what a later try may not meet
        return "; ".join(cause.message for cause in error.causes) or str(error)
    return ""
