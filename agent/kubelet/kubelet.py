"""The kubelet's heart: pods of this node from the API, news from the runtime, one worker per pod.

Owns the set of workers. Promises that a worker is woken for every change of its pod and for nothing else; that after a
restart running containers are adopted untouched; that what runs here without an object in the API is stopped gracefully
and cleaned; and that nothing is called an orphan before the API has told of every pod. Called by `agent.__main__`;
`pods()` and `observed()` serve the kubelet's own API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from agent.image.pause import PROFILE
from agent.kubelet import admit, preemption
from agent.kubelet.context import Context
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.mirror import Mirrors
from agent.kubelet.model import ObservedPod
from agent.kubelet.pressure.sweep import sweep
from agent.kubelet.staticpods import MIRROR, Manifests, is_mirror
from agent.kubelet.worker import Worker
from controlplane.client.informer import Informer
from controlplane.machinery import files
from controlplane.machinery.errors import Finding

log = logging.getLogger(__name__)

RELIST_SECONDS = 300.0  # the safety net under the event stream
RETRY_SECONDS = 1.0  # between attempts to list while the runtime is away


class Kubelet:
    """`pods` is an informer of this node's pods; whoever owns it runs it. `manifests` is the folder of static pods,
    `owner()` the owner reference of this node for their mirrors."""

    def __init__(self, context: Context, pods: Informer, manifests: Path | None = None,
                 owner: Callable[[], dict[str, Any] | None] | None = None) -> None:
        self.context, self._informer = context, pods
        self._workers: dict[str, Worker] = {}
        self._observed: dict[str, ObservedPod] = {}
        self._group: asyncio.TaskGroup
        self._static: dict[tuple[str, str], dict[str, Any]] = {}  # pods from files, by namespace and name
        self.mirrors = Mirrors(context.client, context.clock, owner or (lambda: None))
        self.manifests = manifests and Manifests(manifests, context.node.name, context.clock, self._from_files,
                                                 self._complain)
        context.others = self._others
        self.relisted = asyncio.Event()  # the runtime has been read once
        self.interrupted: Callable[[], object] = lambda: None  # called when the runtime goes, and when it is back

    # --- for others

    def pods(self) -> list[dict[str, Any]]:
        """The API's objects of the pods of this node, with the newest status known."""
        return [worker.shown for worker in self._workers.values() if not worker.gone]

    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    def _others(self, uid: str) -> list[dict[str, Any]]:
        """The active pods but one, with the resources this node has granted them."""
        active = (worker for key, worker in self._workers.items() if key != uid and worker.active)
        return [worker.resizer.view(worker.pod) for worker in active]

    def alive(self, uid: str) -> bool:
        """Whether a pod runs here, or is about to."""
        if uid in self._workers:
            return self._workers[uid].active
        return self._informer.by_uid(uid) is not None or (uid in self._observed and not self._informer.has_synced)

    def pod(self, namespace: str, name: str) -> tuple[dict[str, Any], ObservedPod] | None:
        """A pod by name, with what the runtime has of it."""
        for worker in self._workers.values():
            meta = worker.pod["metadata"]
            if (meta.get("namespace", ""), meta["name"]) == (namespace, name) and not worker.gone:
                return worker.shown, worker.seen
        return None

    def seen(self) -> list[tuple[dict[str, Any], ObservedPod]]:
        """Every pod of this node with what the runtime has of it."""
        return [(worker.pod, worker.seen) for worker in self._workers.values() if not worker.gone]

    def running_logs(self) -> list[tuple[str, str]]:
        """Id and log file of every running container: what log rotation looks at."""
        return [(container.id, container.log_path) for worker in self._workers.values()
                for container in worker.seen.running if container.log_path]

    def changed(self, uids: set[str]) -> None:
        """An object these pods use has changed."""
        for uid in uids:
            if uid in self._workers:
                self._workers[uid].refresh()

    def wake(self, uids: set[str]) -> None:
        """There is something to tell of these pods."""
        for uid in uids & self._workers.keys():
            self._workers[uid].wake()

    def retry(self, *, crashes: bool = False) -> None:
        """Circumstances of the node changed: let every pod try again at once what failed; `crashes` too."""
        for worker in self._workers.values():
            worker.retry(crashes=crashes)

    # --- running

    async def run(self) -> None:
        """Until cancelled. Containers run on."""
        profile = orjson.dumps(PROFILE)
        if files.read(self.context.node.pause_profile) != profile:  # a full disk keeps nobody from starting again
            files.write(self.context.node.pause_profile, profile)
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._events(), name="runtime events")
            await self._relist()
            self.relisted.set()
            if self.manifests:
                self._from_files(self.manifests.read())
                group.create_task(self.manifests.run(), name="manifests")
            self._informer.subscribe(self._told)
            group.create_task(self._safety_net(), name="relist")
            await self._informer.synced()
            self._adopt_orphans()
            await self._sweep()
            await self.mirrors.run()

    # --- static pods

    def _complain(self, finding: Finding) -> None:
        log.warning("%s", finding)
        name = self.context.node.name
        self.context.recorder.event({"kind": "Node", "apiVersion": "v1", "name": name, "uid": name}, "Warning",
                                    "InvalidStaticPod", str(finding))

    def _from_files(self, pods: list[dict[str, Any]]) -> None:
        """These are the static pods now. One that replaces another of its name waits until that has ended."""
        self._static = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in pods}
        wanted = {p["metadata"]["uid"] for p in pods}
        for uid, worker in self._workers.items():
            if worker.static and uid not in wanted:
                worker.removed()
        for pod in pods:
            self._begin_static(pod)
        self.mirrors.want(pods)

    def _begin_static(self, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        if not any((w.pod["metadata"].get("namespace"), w.pod["metadata"]["name"]) == (meta["namespace"], meta["name"])
                   for w in self._workers.values()):
            self._begin(pod, static=True)

    def _mirrored(self, kind: str, image: dict[str, Any]) -> None:
        self.mirrors.told(kind, image)
        worker = self._workers.get(image["metadata"]["annotations"][MIRROR])
        if worker is not None and worker.static:
            worker.mirrored(None if kind == "DELETED" else image)

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
            if self._informer.has_synced:
                await self._sweep()

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
        """Runtime events to workers. What the stream says of itself is that of the runtime."""
        async for event in self.context.runtime.events():
            if not event.uid:
                self.interrupted()
                if event.kind == "relist" and self.relisted.is_set():
                    await self._everything()
            elif event.uid in self._workers:
                self._workers[event.uid].hear(event)

    def _told(self, kind: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        """A pod of this node was added, changed or removed in the API."""
        pod = new or old
        assert pod is not None
        if is_mirror(pod):
            self._mirrored(kind, pod)
            return
        worker = self._workers.get(pod["metadata"]["uid"])
        if kind == "DELETED":
            if worker is not None:
                worker.update(pod)
                worker.removed()
        elif worker is not None:
            worker.update(pod)
        else:
            self._begin(pod)

    def _begin(self, pod: dict[str, Any], *, gone: bool = False, static: bool = False) -> None:
        meta = pod["metadata"]
        seen = self._observed.pop(meta["uid"], None)
        refused, leaving = None, list[Worker]()
        if seen is None and not gone and not (pod.get("status") or {}).get("startTime"):
            refused, leaving = self._admitted(pod)
            if refused is None and self.context.cpus is not None:
                refused = self.context.cpus.admit(pod, self.alive)
            if refused is not None:
                self.context.tell(pod, "Warning", *refused)
        worker = Worker(self.context, pod, seen or ObservedPod(meta["uid"], meta.get("namespace", ""), meta["name"]),
                        gone=gone, doomed=refused, static=static)
        if seen is not None:
            worker.look()  # something may have ended since it was read, and nobody was there to hear of it
            worker.refresh()  # its objects may have changed, and its tokens want renewal
        self._workers[meta["uid"]] = worker
        fresh = seen is None and not gone and refused is None
        name = f"pod {meta.get('namespace', '')}/{meta['name']}"
        self._group.create_task(self._work(worker, fresh, leaving), name=name)

    def _admitted(self, pod: dict[str, Any]) -> tuple[tuple[str, str] | None, list[Worker]]:
        """Why the pod may not run here, or else who has to end first and was told so."""
        others, place = self._others(pod["metadata"]["uid"]), self.context.place()
        refused = admit.judge(pod, others, place)
        weaker = {victim["metadata"]["uid"] for victim in preemption.victims(pod, others, place)} if refused else set()
        if not weaker or admit.judge(pod, [o for o in others if o["metadata"]["uid"] not in weaker], place):
            return refused, []
        leaving = [self._workers[uid] for uid in weaker]
        for worker in leaving:
            self.context.tell(worker.pod, "Warning", preemption.REASON, preemption.MESSAGE)
            worker.doom(preemption.REASON, preemption.MESSAGE, None, preemption.MARK)
        return None, leaving

    async def _lend(self, worker: Worker) -> None:
        """The pod's devices, or its failure for want of them."""
        refused = await self.context.devices.admit(worker.pod, self.alive)
        if refused is not None:
            self.context.tell(worker.pod, "Warning", *refused)
            worker.doom(*refused)

    async def _work(self, worker: Worker, fresh: bool, leaving: list[Worker]) -> None:
        meta = worker.pod["metadata"]
        try:
            for one in leaving:
                await one.stopped()
            if fresh:
                await self._lend(worker)
            await worker.run()
        except* Exception as errors:  # one pod's fault must not take the node down; the next news tries again
            log.exception("the worker of pod %s/%s failed", meta.get("namespace", ""), meta["name"],
                          exc_info=errors.exceptions[0])
        finally:
            self._workers.pop(worker.uid, None)
        for other in self._workers.values():
            if other.resizer.deferred:
                other.wake()  # there may be room now
        waiting = self._static.get((meta.get("namespace", ""), meta["name"]))
        if waiting is not None:
            self._begin_static(waiting)
            return
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
            grace = next((c.grace for c in seen.containers if c.grace is not None), None)
            self._begin({"metadata": {"uid": uid, "namespace": seen.namespace, "name": seen.name},
                         "spec": {"containers": [{"name": name} for name in names],
                                  "terminationGracePeriodSeconds": grace}}, gone=True)

    async def _sweep(self) -> None:
        """Remove what is left of pods that neither the API nor the runtime knows."""
        await sweep(self.context, lambda uid: uid in self._workers or uid in self._observed
                    or self._informer.by_uid(uid) is not None)
