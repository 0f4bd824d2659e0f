"""Pods leave a node before something is done to it: no new ones, those that can move are evicted, the rest stay.

Owns what may be evicted (`leaving`, pure) and the waiting. Promises to go through evictions, so that disruption budgets
hold, to need no more than the node's own identity, and that a node which took pods before takes them again afterwards,
whatever came of it. Called by `pelamis upgrade --drain`.

Upstream: k8s.io/kubectl/pkg/drain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from controlplane.client.config import load
from controlplane.client.rest import Client
from controlplane.machinery import objects
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding, NotFound, TooManyRequests
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named

NODES, PODS = named("nodes"), named("pods")
DRAIN_SECONDS = 600.0  # grace periods and budgets of a full node
PAUSE = 0.5
MIRROR = "kubernetes.io/config.mirror"


def leaving(pods: Iterable[dict]) -> list[dict]:  # type: ignore[type-arg]
    """The pods of a node that run elsewhere once they are evicted: not a DaemonSet's, nor static, nor at their end."""
    found = []
    for pod in pods:
        kinds = {owner.get("kind") for owner in (pod.get("metadata") or {}).get("ownerReferences") or ()}
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if "DaemonSet" not in kinds and MIRROR not in objects.annotations(pod) and not ended:
            found.append(pod)
    return found


@asynccontextmanager
async def drained(paths: Paths, name: str, clock: Clock = SYSTEM) -> AsyncIterator[int]:
    """How many pods left the node; while this lasts, none is placed on it. Raises Finding when one does not leave."""
    async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-drain") as client:
        closed = bool(((await client.get(NODES, name)).get("spec") or {}).get("unschedulable"))
        await client.patch(NODES, name, {"spec": {"unschedulable": True}})
    try:
        async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-drain") as client:
            gone = await _empty(client, name, clock)
        yield gone
    finally:
        if not closed:
            async with Client(load(paths.kubeconfig("node")), user_agent="pelamis-drain") as client:
                await client.patch(NODES, name, {"spec": {"unschedulable": None}})


async def _empty(client: Client, name: str, clock: Clock) -> int:
    deadline, asked, why = clock.monotonic() + DRAIN_SECONDS, set[str](), ""
    while True:
        pods = leaving((await client.list(PODS, fields=f"spec.nodeName={name}"))[0])
        if not pods:
            return len(asked)
        for pod in pods:
            if objects.uid(pod) in asked:
                continue
            try:
                await client.create(PODS, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {
                    "name": objects.name(pod), "namespace": objects.namespace(pod)}}, subresource="eviction",
                    name=objects.name(pod))
                asked.add(objects.uid(pod))
            except NotFound:
                pass
            except TooManyRequests as error:
                why = str(error)
        if clock.monotonic() > deadline:
            left = ", ".join(f"{objects.namespace(p)}/{objects.name(p)}" for p in pods[:5])
            raise Finding(f"{len(pods)} pods do not leave {name}: {left}", why, "kubectl get poddisruptionbudgets -A, "
                          "or upgrade without --drain: no container is restarted either way")
        await clock.sleep(PAUSE)
