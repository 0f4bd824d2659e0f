"""Model nodes: pods bound to them start, run, end and go, as a kubelet would have it, without containers.

Owns the Node objects and the life of the pods on them. A pod runs a few seconds after it is bound, ends by itself when
it is meant to end, and is removed soon after it was asked to leave. Called by `run`.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from controlplane.apiserver.server import Server
from controlplane.client.rest import Client
from controlplane.machinery import objects, resources
from controlplane.machinery.errors import AlreadyExists, ApiError, NotFound
from controlplane.store.cache import prefix_of

PODS, NODES = resources.named("pods"), resources.named("nodes")
START_SECONDS, WORK_SECONDS, STOP_SECONDS = 3.0, 60.0, 2.0  # at most: to start, to do a Job's work, to stop
ZONES = 3
Obj = dict[str, Any]


def node(number: int) -> Obj:
    name = f"node-{number}"
    amounts = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                                                  "topology.kubernetes.io/zone": f"zone-{number % ZONES}"}},
            "status": {"capacity": amounts, "allocatable": amounts,
                       "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}}


class Kubelets:
    def __init__(self, server: Server, client: Client, seed: int, group: asyncio.TaskGroup) -> None:
        self._client, self._group, self._random = client, group, random.Random(seed)
        self._lives: dict[str, tuple[str, asyncio.Task[None]]] = {}  # uid -> what is being done about the pod
        server.cache.observe(prefix_of(PODS.name), lambda event: self._heard(event.kind, event.item.obj))

    async def add(self, number: int) -> None:
        try:
            await self._client.create(NODES, node(number))
        except AlreadyExists:
            return
        await self._client.patch(NODES, f"node-{number}", {"spec": {"taints": None}}, kind="merge")

    async def remove(self, name: str) -> None:
        """The machine is gone, and the cloud has said so."""
        await self._client.delete(NODES, name)

    def _heard(self, kind: str, pod: Obj) -> None:
        uid = objects.uid(pod)
        doing, task = self._lives.get(uid, ("", None))
        if kind == "DELETED":
            if task is not None:
                task.cancel()
            self._lives.pop(uid, None)
        elif not objects.get(pod, "spec.nodeName"):
            return
        elif objects.deleting(pod):
            if doing != "stop":
                if task is not None:
                    task.cancel()
                self._lives[uid] = ("stop", self._group.create_task(self._stop(pod)))
        elif not doing:
            self._lives[uid] = ("run", self._group.create_task(self._run(pod)))

    async def _run(self, pod: Obj) -> None:
        await asyncio.sleep(self._random.random() * START_SECONDS)
        now = self._client.clock.timestamp()
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": now}
                      for kind in ("Initialized", "ContainersReady", "Ready")]
        if not await self._tell(pod, {"phase": "Running", "startTime": now, "conditions": conditions}):
            return
        if pod["spec"].get("restartPolicy", "Always") == "Always":
            return
        await asyncio.sleep(self._random.random() * WORK_SECONDS)
        done = [{"type": "Ready", "status": "False", "reason": "PodCompleted", "lastTransitionTime": now}]
        await self._tell(pod, {"phase": "Succeeded", "conditions": done})

    async def _tell(self, pod: Obj, status: Obj) -> bool:
        try:
            await self._client.patch(PODS, objects.name(pod), {"metadata": {"uid": objects.uid(pod)}, "status": status},
                                     objects.namespace(pod), "strategic", "status")
            return True
        except ApiError:
            return False

    async def _stop(self, pod: Obj) -> None:
        await asyncio.sleep(self._random.random() * STOP_SECONDS)
        try:
            await self._client.delete(PODS, objects.name(pod), objects.namespace(pod), grace=0, uid=objects.uid(pod))
        except (NotFound, ApiError):
            return
