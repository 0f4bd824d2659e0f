"""The kubelet with a real containerd and an API in memory: pods start, crash, are probed, adopted and removed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from agent.image import demo
from controlplane.machinery.resources import named
from tests.node.nodekubelet import PODS, Rig, eventually, gone, holds, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node


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
            await eventually(lambda: holds(mounted.read_text() == "v2"))
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
            await rig.api.create(named("configmaps"), {"metadata": {"name": "m", "namespace": "default"},
                                                       "data": {"k": "old"}}, "default")
            await rig.create("stays", forever | {"volumeMounts": [{"name": "m", "mountPath": "/m"}]},
                             volumes=[{"name": "m", "configMap": {"name": "m"}}])
            await rig.create("goes", forever)
            before = await rig.pod("stays", ready)
            goes = await rig.pod("goes", ready)
        await rig.api.delete(PODS, "goes", "default", grace=0)  # while nobody looked
        patches = len([c for c in rig.api.calls if c.startswith("PATCH pods")])
        async with rig.kubelet() as kubelet:
            await eventually(lambda: gone(rig.runtime, goes["metadata"]["uid"]))
            assert [p["metadata"]["name"] for p in kubelet.pods()] == ["stays"]
            after = rig.api.objects["pods", "default", "stays"]
            assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
            assert len([c for c in rig.api.calls if c.startswith("PATCH pods")]) == patches
            await rig.api.patch(named("configmaps"), "m", {"data": {"k": "new"}}, "default")
            await eventually(lambda: mounted(rig, "new"))  # what it mounts is followed again
            uid = before["metadata"]["uid"]
            sandbox = (await rig.runtime.observe(uid))[uid].sandbox
            await rig.runtime.stop_sandbox(sandbox.id)  # the sandbox dies under the pod
            await rig.pod("stays", lambda p: ready(p) and p["status"]["containerStatuses"][0]["restartCount"] >= 1
                          and "SandboxChanged" in rig.api.events())
            await rig.remove("stays")
    run(host, body)


def test_a_pod_that_cannot_end_says_why_and_ends_when_it_can(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("held", sh("sleep 600"))
            await rig.pod("held", ready)
            await asyncio.to_thread(host.stop_containerd)
            try:
                await rig.api.delete(PODS, "held", "default")
                await eventually(lambda: holds("FailedKillPod" in rig.api.events()))
            finally:
                await asyncio.to_thread(host.start_containerd)
            await rig.pod("held", lambda p: p is None)
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


async def mounted(rig: Rig, text: str) -> bool:
    return await rig.inside("stays", "cat /m/k") == text


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
