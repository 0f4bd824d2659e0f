"""The scheduler's runner: takes waiting pods one by one, asks `verdict` for a node, binds.

Deciding is serial on one snapshot, binding is pipelined: a chosen pod is assumed on its node at once and bound in the
background, so the next decision does not wait for the API. A failed binding is forgotten and the pod tried again. All
state is re-derived from the informers, so the process may be killed at any point: a pod is either bound or waiting.

Called by the controllers' process; talks to the apiserver through the client only.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery import objects, resources
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.scheduler import fit, verdict
from controlplane.scheduler.queue import Queue, Waiting
from controlplane.scheduler.snapshot import Snapshot, counts

log = logging.getLogger("scheduler")
NAME = "default-scheduler"
PODS = resources.named("pods")
BINDINGS = 32  # bindings under way at once: enough to hide a commit's latency, few enough to stay fair to others
CONDITION_MESSAGE_BYTES = 1024  # what an event may hold; the condition follows it


class Scheduler:
    def __init__(self, client: Client, pods: Informer, nodes: Informer, recorder: Recorder,
                 clock: Clock = SYSTEM) -> None:
        self._client, self._recorder, self._clock = client, recorder, clock
        self._pods, self._nodes = pods, nodes
        self._snapshot, self._queue = Snapshot(), Queue()
        self._binding: dict[str, str] = {}  # uid -> node, while the API has not confirmed it
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(BINDINGS)

    async def run(self) -> None:
        """Schedule until cancelled."""
        await asyncio.gather(self._pods.synced(), self._nodes.synced())
        self._nodes.subscribe(self._on_node)
        self._pods.subscribe(self._on_pod)
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                waiting = self._queue.pop(self._clock.monotonic())
                if waiting is None:
                    await self._pause()
                else:
                    await self._schedule(waiting, tasks)

    async def _pause(self) -> None:
        """Sleep until an event or the next deadline."""
        deadline = self._queue.deadline()
        if deadline is None:
            await self._wake.wait()
            return
        timer = asyncio.ensure_future(self._clock.sleep(max(0.0, deadline - self._clock.monotonic())))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({timer, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            woken.cancel()

    def _on_node(self, kind: str, old: dict[str, Any] | None, new: dict[str, Any]) -> None:
        if kind == "DELETED":
            self._snapshot.drop_node(objects.name(new))
            return
        before = [(n.labels, n.taints, n.unschedulable, n.allocatable) for n in self._snapshot.nodes
                  if n.name == objects.name(new)]
        self._snapshot.set_node(new)
        after = [(n.labels, n.taints, n.unschedulable, n.allocatable) for n in self._snapshot.nodes
                 if n.name == objects.name(new)]
        if before != after:
            self._room()

    def _on_pod(self, kind: str, old: dict[str, Any] | None, new: dict[str, Any]) -> None:
        uid, spec = objects.uid(new), new.get("spec") or {}
        node = spec.get("nodeName") or ""
        if kind == "DELETED" or not counts(new):
            self._queue.drop(uid)
            self._binding.pop(uid, None)
            if self._snapshot.node_of(uid):
                self._snapshot.remove(uid)
                self._room()
        elif node:
            self._queue.drop(uid)
            self._binding.pop(uid, None)
            self._snapshot.place(new, node)
        elif (spec.get("schedulerName") or NAME) == NAME and uid not in self._binding and (
                not spec.get("schedulingGates") and not new["metadata"].get("deletionTimestamp")):
            self._queue.put(new, self._clock.monotonic())
            self._wake.set()

    def _room(self) -> None:
        self._queue.cluster_changed(self._clock.monotonic())
        self._wake.set()

    async def _schedule(self, waiting: Waiting, tasks: asyncio.TaskGroup) -> None:
        pod, uid = waiting.pod, waiting.uid
        found = verdict.decide(fit.ask(pod), self._snapshot.nodes)
        if not found.node:
            first = waiting.attempts == 0
            self._queue.refused(uid, self._clock.monotonic())
            self._recorder.event(pod, "Warning", "FailedScheduling", found.message)
            if first:
                log.info("pod %s/%s: %s", objects.namespace(pod), objects.name(pod), found.message)
            await self._slots.acquire()
            tasks.create_task(self._explain(pod, found.message))
            return
        self._snapshot.place(pod, found.node)
        self._binding[uid] = found.node
        await self._slots.acquire()
        tasks.create_task(self._bind(pod, uid, found.node))

    async def _bind(self, pod: dict[str, Any], uid: str, node: str) -> None:
        name, namespace = objects.name(pod), objects.namespace(pod)
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": namespace, "uid": uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        try:
            await self._client.create(PODS, body, namespace=namespace, name=name, subresource="binding")
            self._recorder.event(pod, "Normal", "Scheduled", f"Successfully assigned {namespace}/{name} to {node}")
        except (NotFound, Conflict):
            self._unplace(uid, node)  # gone, or bound by somebody else: the informer tells the truth soon
            self._queue.refused(uid, self._clock.monotonic(), park=False)
        except (ApiError, OSError) as error:
            log.warning("binding %s/%s to %s failed: %s", namespace, name, node, error)
            self._unplace(uid, node)
            self._queue.refused(uid, self._clock.monotonic(), park=False)
            self._wake.set()
        finally:
            self._slots.release()

    def _unplace(self, uid: str, node: str) -> None:
        if self._binding.pop(uid, None) == node and self._snapshot.node_of(uid) == node:
            self._snapshot.remove(uid)

    async def _explain(self, pod: dict[str, Any], message: str) -> None:
        """Keep the reason in the pod's PodScheduled condition, where `kubectl describe` and programs look."""
        try:
            text = message[:CONDITION_MESSAGE_BYTES]
            live = self._pods.get(objects.namespace(pod), objects.name(pod)) or pod
            condition = objects.condition(live, "PodScheduled") or {}
            if condition.get("message") == text and condition.get("reason") == "Unschedulable":
                return
            fresh = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text,
                     "lastProbeTime": None, "lastTransitionTime": condition.get("lastTransitionTime")
                     if condition.get("status") == "False" else self._clock.timestamp()}
            await self._client.patch(PODS, objects.name(pod), {"status": {"conditions": [fresh]}},
                                     namespace=objects.namespace(pod), subresource="status")
        except (ApiError, OSError) as error:
            log.debug("the condition of %s was not written: %s", objects.name(pod), error)
        finally:
            self._slots.release()
