"""A kubelet on a test host with an API in memory: what the tests of pods share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.kubelet.admit import Place
from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.context import Context
from agent.kubelet.cri.runtime import CallError, Runtime
from agent.kubelet.images.credentials import Credentials
from agent.kubelet.images.images import Images
from agent.kubelet.kubelet import Kubelet
from agent.kubelet.model import Features
from agent.kubelet.probing.checks import Checks
from agent.kubelet.specs import Node
from agent.kubelet.volumes.build import build
from agent.kubelet.volumes.objects import Objects
from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.machinery import strategy
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.resources import named
from tests.node.fakeapi import FakeApi
from tests.node.rig import Host

PODS = named("pods")
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"  # a program that ends when it is asked to


class Rig:
    """A kubelet that can be stopped and started again over the same API and runtime."""

    def __init__(self, host: Host, runtime: Runtime, images: Images) -> None:
        self.host, self.runtime, self.images, self.api = host, runtime, images, FakeApi()
        self.place = Place("n1")
        self.node: dict[str, Any] = {}  # what specs know of this node beyond the usual
        self.manifests: Path | None = None
        self.credentials: Credentials | None = None

    async def _features(self) -> Features:
        """As the agent does, ask until the runtime answers: it may have been killed a moment ago."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return await self.runtime.features()
                except CallError:  # not there, or there and not initialized yet
                    await asyncio.sleep(0.05)

    @asynccontextmanager
    async def kubelet(self):
        api: Any = self.api
        features = await self._features()
        node = Node("n1", ("10.0.0.1",), self.host.paths.kubelet, self.host.paths.pod_logs, memory=1 << 30, cpu=2000,
                    user_namespaces=features.user_namespaces, cdi=features.cdi,
                    strict_groups=features.strict_groups, recursive="" in features.recursive, **self.node)
        pods, services = Informer(api, PODS), Informer(api, named("services"))
        recorder = Recorder(api, "kubelet", "n1")
        kubelet: Kubelet
        objects = Objects(api, lambda uids: kubelet.changed(uids))
        volumes, self.drivers = build(node.root, "n1", api, SYSTEM, objects, lambda: self.place,
                                      lambda: {"kind": "Node", "name": "n1"}, self.images.connection)
        context = Context(node, self.runtime, self.images, api, recorder, SYSTEM, volumes,
                          Cgroups(f"pelamis-test-{self.host.id}/kubepods"), services, Checks(self.runtime))
        context.place = lambda: replace(self.place, strict_groups=node.strict_groups)
        context.credentials = self.credentials
        kubelet = Kubelet(context, pods, self.manifests)
        group = [asyncio.create_task(t) for t in (pods.run(), services.run(), recorder.run(), objects.run())]
        await asyncio.gather(pods.synced(), services.synced())
        run = asyncio.create_task(kubelet.run())
        try:
            yield kubelet
        finally:
            for task in (run, *group):
                task.cancel()
            await asyncio.gather(run, *group, return_exceptions=True)
            await context.checks.close()
            if run.done() and not run.cancelled() and run.exception():
                raise run.exception()

    async def create(self, name: str, *containers: dict[str, Any], labels: dict[str, str] | None = None,
                     annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
        made = [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", **c} for c in containers]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": name, "namespace": "default", "labels": labels or {}, "annotations": annotations or {}},
               "spec": {"containers": made, "nodeName": "n1", "terminationGracePeriodSeconds": 2, **spec},
               "status": {"phase": "Pending"}}
        strategy.of(PODS).default(pod)
        return await self.api.create(PODS, pod, "default")

    async def pod(self, name: str, fits: Callable[[dict[str, Any] | None], bool]) -> Any:
        return await self.api.until(PODS, name, fits)

    async def inside(self, pod: str, script: str, container: str = "c") -> str:
        """What a shell in the running container says."""
        uid = self.api.objects["pods", "default", pod]["metadata"]["uid"]
        found = (await self.runtime.observe(uid))[uid].container(container)
        code, out, err = await self.runtime.exec_sync(found.id, ["sh", "-c", script], 10)
        assert code == 0, (script, out, err)
        return str(out.decode().strip())

    def log(self, pod: str, container: str = "c", attempt: int = 0) -> str:
        """The lines a container has written."""
        uid = self.api.objects["pods", "default", pod]["metadata"]["uid"]
        path = self.host.paths.pod_logs / f"default_{pod}_{uid}" / container / f"{attempt}.log"
        return "".join(line.split(" ", 3)[3] + "\n" for line in path.read_text().splitlines())

    async def remove(self, *names: str) -> None:
        for name in names:
            await self.api.delete(PODS, name, "default")
        for name in names:
            await self.pod(name, lambda p: p is None)


def run(host: Host, body: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def inside(runtime: Runtime, images: Images) -> None:
        await body(Rig(host, runtime, images))
    host.run(inside)


def sh(script: str, **more: Any) -> dict[str, Any]:
    return {"command": ["sh", "-c", script], **more}


def ready(pod: dict[str, Any] | None) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in ((pod or {}).get("status") or {}).get(
        "conditions") or ())


def state(pod: dict[str, Any] | None, name: str = "c", kind: str = "containerStatuses") -> dict[str, Any]:
    """What the status says of one container, {} before it does."""
    return next((s for s in ((pod or {}).get("status") or {}).get(kind) or () if s["name"] == name), {})


async def eventually(holds: Callable[[], Coroutine[Any, Any, bool]], limit: float = 30) -> None:
    """For what has no event to wait on: a file's content, the absence of a sandbox."""
    async with asyncio.timeout(limit):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def holds(value: bool) -> bool:
    return value


async def gone(runtime: Runtime, uid: str) -> bool:
    return not await runtime.observe(uid)
