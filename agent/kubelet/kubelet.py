"""The kubelet's heart: pods of this node from the API, news from the runtime, one worker per pod.

Owns the set of workers. Promises that a worker is woken for every change of its pod and for nothing else; that after a
restart running containers are adopted untouched; that what runs here without an object in the API is stopped gracefully
and cleaned; and that nothing is called an orphan before the API has told of every pod. Called by `agent.__main__`;
`pods()` and `observed()` serve the kubelet's own API.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from agent.kubelet.context import Context
from agent.kubelet.model import ObservedPod
from agent.kubelet.runtime import CallError
from agent.kubelet.worker import Worker
from controlplane.client.informer import Informer

log = logging.getLogger(__name__)

RELIST_SECONDS = 300.0  # the safety net under the event stream
RETRY_SECONDS = 1.0  # between attempts to list while the runtime is away


class Kubelet:
    """`pods` is an informer of this node's pods; whoever owns it runs it."""

    def __init__(self, context: Context, pods: Informer) -> None:
        self.context, self._informer = context, pods
        self._workers: dict[str, Worker] = {}
        self._observed: dict[str, ObservedPod] = {}
        self._group: asyncio.TaskGroup
        self.relisted = asyncio.Event()  # the runtime has been read once

    # --- for others

    def pods(self) -> list[dict[str, Any]]:
        """The API's objects of the pods of this node, with the newest status known."""
        return [worker.pod for worker in self._workers.values() if not worker.gone]

    def pod(self, namespace: str, name: str) -> tuple[dict[str, Any], ObservedPod] | None:
        """A pod by name, with what the runtime has of it."""
        for worker in self._workers.values():
            meta = worker.pod["metadata"]
            if (meta.get("namespace", ""), meta["name"]) == (namespace, name) and not worker.gone:
                return worker.pod, worker.seen
        return None

    def seen(self) -> list[tuple[dict[str, Any], ObservedPod]]:
        """Every pod of this node with what the runtime has of it."""
        return [(worker.pod, worker.seen) for worker in self._workers.values() if not worker.gone]

    def running_logs(self) -> list[tuple[str, str]]:
        """Id and log file of every running container: what log rotation looks at."""
        return [(container.id, container.log_path) for worker in self._workers.values()
                for container in worker.seen.containers if container.state == "running" and container.log_path]

    def changed(self, uids: set[str]) -> None:
        """An object these pods use has changed."""
        for uid in uids:
            if uid in self._workers:
                self._workers[uid].refresh()

    def retry(self) -> None:
        """Circumstances of the node changed: let every pod try again at once."""
        for worker in self._workers.values():
            worker.retry()

    # --- running

    async def run(self) -> None:
        """Until cancelled. Containers run on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._events(), name="runtime events")
            await self._relist()
            self.relisted.set()
            self._informer.subscribe(self._told)
            group.create_task(self._safety_net(), name="relist")
            await self._informer.synced()
            self._adopt_orphans()

    async def _relist(self) -> None:
        failed = False
        while True:
            try:
                self._observed = await self.context.runtime.observe()
                return
            except CallError as error:
                log.log(logging.DEBUG if failed else logging.WARNING, "waiting for the container runtime: %s", error)
                failed = True
                await self.context.clock.sleep(RETRY_SECONDS)

    async def _safety_net(self) -> None:
        while True:
            await self.context.clock.sleep(self.context.clock.jitter(RELIST_SECONDS, 0.1))
            await self._everything()

    async def _everything(self) -> None:
        """Read the runtime anew and wake the workers of what differs from what they know."""
        await self._relist()
        for uid, worker in list(self._workers.items()):
            found = self._observed.get(uid, ObservedPod(uid, "", ""))
            if (found.containers, found.sandboxes) != (worker.seen.containers, worker.seen.sandboxes):
                worker.retry()
        if self._informer.has_synced:
            self._adopt_orphans()

    async def _events(self) -> None:
        """Runtime events to workers. A `relist` event says the stream was interrupted."""
        async for event in self.context.runtime.events():
            if not event.uid:
                if self.relisted.is_set():
                    await self._everything()
            elif event.uid in self._workers:
                self._workers[event.uid].look()

    def _told(self, kind: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        """A pod of this node was added, changed or removed in the API."""
        pod = new or old
        assert pod is not None
        worker = self._workers.get(pod["metadata"]["uid"])
        if kind == "DELETED":
            if worker is not None:
                worker.update(pod)
                worker.removed()
        elif worker is not None:
            worker.update(pod)
        else:
            self._begin(pod)

    def _begin(self, pod: dict[str, Any], *, gone: bool = False) -> None:
        meta = pod["metadata"]
        seen = self._observed.pop(meta["uid"], None)
        worker = Worker(self.context, pod, seen or ObservedPod(meta["uid"], meta.get("namespace", ""), meta["name"]),
                        gone=gone)
        if seen is not None:
            worker.look()  # something may have ended since it was read, and nobody was there to hear of it
        self._workers[meta["uid"]] = worker
        self._group.create_task(self._work(worker), name=f"pod {meta.get('namespace', '')}/{meta['name']}")

    async def _work(self, worker: Worker) -> None:
        meta = worker.pod["metadata"]
        try:
            await worker.run()
        except* Exception as errors:  # one pod's fault must not take the node down; the next news tries again
            log.exception("the worker of pod %s/%s failed", meta.get("namespace", ""), meta["name"],
                          exc_info=errors.exceptions[0])
        finally:
            self._workers.pop(worker.uid, None)
        current = self._informer.get(meta.get("namespace", ""), meta["name"])
        if current is not None and current["metadata"]["uid"] == worker.uid and not worker.gone:
            await self.context.clock.sleep(RETRY_SECONDS)
            await self._relist()
            if worker.uid not in self._workers:
                self._begin(current)

    def _adopt_orphans(self) -> None:
        """Pods the runtime has and the API does not: end them gracefully."""
        for uid, seen in list(self._observed.items()):
            if uid in self._workers or self._informer.by_uid(uid) is not None:
                continue
            log.info("pod %s/%s is no longer in the API: stopping it", seen.namespace, seen.name)
            names = dict.fromkeys(c.name for c in seen.containers)
            self._begin({"metadata": {"uid": uid, "namespace": seen.namespace, "name": seen.name},
                         "spec": {"containers": [{"name": name} for name in names]}}, gone=True)
        self._sweep()

    def _sweep(self) -> None:
        """Folders and cgroups of pods that neither the API nor the runtime knows, left by a crash."""
        folder = self.context.node.root / "pods"
        for path in folder.iterdir() if folder.is_dir() else ():
            uid = path.name
            if uid not in self._workers and self._informer.by_uid(uid) is None:
                try:
                    self.context.volumes.take_down(uid)
                    self.context.cgroups.remove(uid)
                except OSError as error:
                    log.warning("cannot remove what is left of pod %s: %s", uid, error)
