"""The kubelet with a real containerd and an API in memory: pods start, crash, are probed, adopted and removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.image import demo
from agent.kubelet.cgroups import Cgroups
from agent.kubelet.checks import Checks
from agent.kubelet.context import Context
from agent.kubelet.images import Images
from agent.kubelet.kubelet import Kubelet
from agent.kubelet.runtime import Runtime
from agent.kubelet.specs import Node
from agent.kubelet.volumes.manager import Volumes
from agent.kubelet.volumes.objects import Objects
from agent.kubelet.volumes.tokens import Tokens
from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.resources import named
from tests.node.fakeapi import FakeApi
from tests.node.rig import Host

pytestmark = pytest.mark.node
PODS = named("pods")


class NoMounts:
    """This process is not in the host's mount namespace: tmpfs is left to the tests of the whole agent."""

    def tmpfs(self, target: Path, size: int = 0) -> None: ...
    def bind(self, source: str, target: Path) -> None: ...
    def unmount_below(self, folder: Path) -> None: ...
    def mounted(self, target: Path) -> bool: return True


class Rig:
    """A kubelet that can be stopped and started again over the same API and runtime."""

    def __init__(self, host: Host, runtime: Runtime, images: Images) -> None:
        self.host, self.runtime, self.images, self.api = host, runtime, images, FakeApi()

    @asynccontextmanager
    async def kubelet(self):
        api: Any = self.api
        node = Node("n1", ("10.0.0.1",), self.host.paths.kubelet, self.host.paths.pod_logs, memory=1 << 30, cpu=2000)
        pods, services = Informer(api, PODS), Informer(api, named("services"))
        recorder = Recorder(api, "kubelet", "n1")
        kubelet: Kubelet
        objects = Objects(api, lambda uids: kubelet.changed(uids))
        context = Context(node, self.runtime, self.images, api, recorder, SYSTEM,
                          Volumes(node.root, objects, Tokens(api, SYSTEM), NoMounts()),  # type: ignore[arg-type]
                          Cgroups(f"pelamis-test-{self.host.id}/kubepods"), services, Checks(self.runtime))
        kubelet = Kubelet(context, pods)
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

    async def create(self, name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
        made = [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent", **c} for c in containers]
        return await self.api.create(PODS, {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": made, "nodeName": "n1", "terminationGracePeriodSeconds": 2, **spec},
            "status": {"phase": "Pending"}}, "default")

    async def pod(self, name: str, fits: Callable[[dict[str, Any] | None], bool]) -> Any:
        return await self.api.until(PODS, name, fits)

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


async def eventually(holds: Callable[[], Coroutine[Any, Any, bool]], limit: float = 30) -> None:
    """For what has no event to wait on: a file's content, the absence of a sandbox."""
    async with asyncio.timeout(limit):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _is(value: bool) -> bool:
    return value


async def _gone(runtime: Runtime, uid: str) -> bool:
    return not await runtime.observe(uid)


def test_a_pod_lives_with_its_configuration_and_leaves_nothing(host: Host) -> None:
    async def body(rig: Rig) -> None:
        await rig.api.create(named("configmaps"), {"metadata": {"name": "cm"}, "data": {"k": "v1"}}, "default")
        script = "echo $GREETING $POD_IP; cat /cm/k; cat /etc/hosts; trap 'exit 0' TERM; sleep 600 & wait"
        async with rig.kubelet():
            await rig.create(
                "web", sh(script, volumeMounts=[{"name": "cm", "mountPath": "/cm"}, {"name": "e", "mountPath": "/e"}],
                          env=[{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                               {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                          resources={"limits": {"memory": "32Mi"}}),
                volumes=[{"name": "cm", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}])
            pod = await rig.pod("web", ready)
            ip, uid = pod["status"]["podIP"], pod["metadata"]["uid"]
            (log,) = host.paths.pod_logs.glob(f"default_web_{uid}/c/0.log")
            seen = (await rig.runtime.observe(uid))[uid]
            assert log.is_file() and seen.containers[0].state == "running"
            code, out, _ = await rig.runtime.exec_sync(seen.containers[0].id, ["sh", "-c",
                                                       "echo $GREETING $POD_IP; cat /cm/k; cat /etc/hosts"], 10)
            assert code == 0 and f"v1 {ip}\nv1".encode() in out and f"{ip}\tweb".encode() in out
            await rig.api.update(named("configmaps"), {"metadata": {"name": "cm", "namespace": "default"},
                                                       "data": {"k": "v2"}})
            mounted = host.paths.kubelet / "pods" / uid / "volumes/kubernetes.io~configmap/cm/k"
            await eventually(lambda: _is(mounted.read_text() == "v2"))
            await rig.remove("web")
            assert not (host.paths.kubelet / "pods" / uid).exists()
            assert not await rig.runtime.observe(uid)
            assert {"Pulled", "Created", "Started", "Killing"} <= set(rig.api.events())
            assert not groups(host, uid)
    run(host, body)


def groups(host: Host, uid: str) -> list[Path]:
    """The pod's control groups."""
    return list(Path("/sys/fs/cgroup").glob(f"*/pelamis-test-{host.id}/kubepods/*/pod{uid}"))


def test_crashes_back_off_and_jobs_end(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("crash", sh("echo bad luck > /dev/termination-log; exit 3"))
            await rig.create("job", sh("exit 0"), restartPolicy="Never",
                             initContainers=[{"name": "i", "image": "busybox:1", "command": ["true"]}])
            pod = await rig.pod("crash", lambda p: "CrashLoopBackOff" in str(p))
            entry = pod["status"]["containerStatuses"][0]
            assert entry["restartCount"] == 1 and entry["lastState"]["terminated"]["message"] == "bad luck\n"
            assert entry["state"]["waiting"]["message"].startswith("back-off 10s restarting failed container=c pod=cr")
            job = await rig.pod("job", lambda p: p["status"]["phase"] == "Succeeded")
            assert job["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
            await rig.create("none", {"image": "localhost:1/none"})
            await rig.pod("none", lambda p: "ErrImagePull" in str(p))
            await rig.pod("none", lambda p: "ImagePullBackOff" in str(p))
            await rig.create("confused", sh("true", env=[
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "missing", "key": "k"}}}]))
            await rig.pod("confused", lambda p: 'secret "missing" not found' in str(p["status"]))
            await rig.remove("crash", "job", "none", "confused")
    run(host, body)


def test_probes_gate_readiness_and_restart_the_sick(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("probed", sh(
                "mkdir /w; echo ok > /w/index.html; httpd -p 80 -h /w; touch /alive; trap 'exit 0' TERM;"
                " while :; do sleep 600 & wait; done",
                readinessProbe={"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "failureThreshold": 1},
                livenessProbe={"exec": {"command": ["test", "-f", "/alive"]}, "periodSeconds": 1,
                               "failureThreshold": 1, "timeoutSeconds": 5, "initialDelaySeconds": 1}))
            pod = await rig.pod("probed", ready)
            id = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
            await rig.runtime.exec_sync(id, ["rm", "/w/index.html"], 10)
            await rig.pod("probed", lambda p: not ready(p))
            await rig.runtime.exec_sync(id, ["rm", "/alive"], 10)
            await rig.pod("probed", lambda p: p["status"]["containerStatuses"][0]["restartCount"] == 1 and ready(p))
            assert "Unhealthy" in rig.api.events()
            await rig.remove("probed")
    run(host, body)


def test_a_restarted_kubelet_adopts_what_runs_and_ends_what_should_not(host: Host) -> None:
    async def body(rig: Rig) -> None:
        forever = sh("trap 'exit 0' TERM; sleep 600 & wait")
        async with rig.kubelet():
            await rig.create("stays", forever)
            await rig.create("goes", forever)
            before = await rig.pod("stays", ready)
            goes = await rig.pod("goes", ready)
        await rig.api.delete(PODS, "goes", "default", grace=0)  # while nobody looked
        patches = len([c for c in rig.api.calls if c.startswith("PATCH pods")])
        async with rig.kubelet() as kubelet:
            await eventually(lambda: _gone(rig.runtime, goes["metadata"]["uid"]))
            assert [p["metadata"]["name"] for p in kubelet.pods()] == ["stays"]
            after = rig.api.objects["pods", "default", "stays"]
            assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
            assert len([c for c in rig.api.calls if c.startswith("PATCH pods")]) == patches
            uid = before["metadata"]["uid"]
            sandbox = (await rig.runtime.observe(uid))[uid].sandbox
            await rig.runtime.stop_sandbox(sandbox.id)  # the sandbox dies under the pod
            await rig.pod("stays", lambda p: ready(p) and p["status"]["containerStatuses"][0]["restartCount"] >= 1
                          and "SandboxChanged" in rig.api.events())
            await rig.remove("stays")
    run(host, body)


def test_twenty_pods_start_at_once_while_the_api_is_away_now_and_then(host: Host) -> None:
    async def body(rig: Rig) -> None:
        names = [f"many{i}" for i in range(20)]
        async with rig.kubelet():
            await asyncio.gather(*(rig.create(name, sh("sleep 600"), terminationGracePeriodSeconds=1)
                                   for name in names))
            rig.api.away = True
            await eventually(lambda: _all_run(rig, len(names)), 90)
            assert not any(ready(rig.api.objects["pods", "default", name]) for name in names[-3:])
            rig.api.away = False
            for name in names:
                await rig.pod(name, ready)
            await rig.remove(*names)
            assert not await rig.runtime.observe()
    run(host, body)


async def _all_run(rig: Rig, count: int) -> bool:
    pods = await rig.runtime.observe()
    return sum(c.state == "running" for p in pods.values() for c in p.containers) == count


def test_starting_adds_little_to_the_bare_calls(host: Host) -> None:
    async def body(rig: Rig) -> None:
        bare, whole = [], []
        async with rig.kubelet():
            for i in range(4):
                spec = host.sandbox(f"bare{i}")
                began = time.monotonic()
                sandbox = await rig.runtime.run_sandbox(spec)
                await rig.runtime.start_container(await rig.runtime.create_container(
                    sandbox, spec, host.shell("sleep 600", image=demo.BUSYBOX)))
                bare.append(time.monotonic() - began)
                await rig.runtime.stop_sandbox(sandbox)
                await rig.runtime.remove_sandbox(sandbox)
                began = time.monotonic()
                await rig.create(f"fast{i}", sh("sleep 600"), terminationGracePeriodSeconds=1)
                await rig.pod(f"fast{i}", ready)
                whole.append(time.monotonic() - began)
                await rig.remove(f"fast{i}")
        print(f"bare {min(bare) * 1000:.0f} ms, pod {min(whole) * 1000:.0f} ms")
        assert min(whole) < 2.5 * min(bare)  # the aim is 1.5; a shared machine is loud
    run(host, body)
