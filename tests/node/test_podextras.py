"""What a pod may ask for beyond containers: image volumes, runtime classes, variables' names; led-astray probes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from controlplane.machinery.resources import named
from tests.node.nodekubelet import PODS, Rig, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"


def told(rig: Rig, reason: str) -> list[str]:
    events = (o for (plural, _, _), o in rig.api.objects.items() if plural == "events")
    return [o["message"] for o in events if o["reason"] == reason]


def waiting(pod: dict[str, Any] | None) -> dict[str, Any]:
    entries = ((pod or {}).get("status") or {}).get("containerStatuses") or [{}]
    return (entries[0].get("state") or {}).get("waiting") or {}


def test_an_image_is_mounted_as_a_volume_and_goes_with_its_pod(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            volumes = [{"name": "files", "image": {"reference": "busybox:1", "pullPolicy": "IfNotPresent"}}]
            mounts = [{"name": "files", "mountPath": "/image"},
                      {"name": "files", "mountPath": "/only", "subPath": "bin"}]
            pod = await rig.create("viewer", sh(STAY, volumeMounts=mounts), volumes=volumes)
            await rig.create("lost", sh(STAY), volumes=[{"name": "files", "image": {
                "reference": "absent:1", "pullPolicy": "Never"}}])
            seen = (await rig.pod("viewer", ready))["status"]["containerStatuses"][0]
            assert [m["volumeStatus"] for m in seen["volumeMounts"]] == [{"image": {"imageRef": seen["imageID"]}}] * 2
            assert await rig.inside("viewer", "test -x /image/bin/busybox && test -e /only/busybox && "
                                              "! touch /image/new 2>/dev/null && echo seen") == "seen"
            await rig.pod("lost", lambda p: waiting(p).get("reason") == "ErrImageNeverPull")
            await rig.remove("viewer", "lost")
            views = host.call("ctr", "--address", str(host.paths.containerd_socket), "-n", "k8s.io", "snapshots", "ls")
            assert pod["metadata"]["uid"] not in views
    run(host, body)


def test_a_runtime_class_chooses_the_handler(host: Host) -> None:
    async def body(rig: Rig) -> None:
        classes = named("runtimeclasses.node.k8s.io")
        for name in ("runc", "nowhere"):
            await rig.api.create(classes, {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
                                           "metadata": {"name": name}, "handler": name})
        async with rig.kubelet():
            await rig.create("plain", sh(STAY), runtimeClassName="runc")
            await rig.create("odd", sh(STAY), runtimeClassName="nowhere", securityContext={
                "sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}]})
            await rig.create("tuned", sh(STAY), securityContext={
                "sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}]})
            await rig.pod("plain", ready)
            await rig.pod("tuned", ready)
            assert await rig.inside("tuned", "cat /proc/sys/kernel/shm_rmid_forced") == "1"
            async with asyncio.timeout(20):
                while not any('no runtime for "nowhere" is configured' in text
                              for text in told(rig, "FailedCreatePodSandBox")):
                    async with rig.api.news:
                        await rig.api.news.wait()
            await rig.remove("plain", "odd", "tuned")
    run(host, body)


def test_no_pod_leads_a_probe_to_another_host(host: Host) -> None:
    async def body(rig: Rig) -> None:
        asked: list[str] = []

        async def answer(request: web.BaseRequest) -> web.Response:
            asked.append(request.path)
            places = {"/local": "/healthz", "/away": "http://192.0.2.7/secret"}
            if request.path in places:
                return web.Response(status=302, headers={"Location": places[request.path]}, text="Found")
            return web.Response(status=500 if request.path == "/hook" else 200)
        server = web.Server(answer)
        listener = await asyncio.get_running_loop().create_server(server, "0.0.0.0", 0)
        port = listener.sockets[0].getsockname()[1]
        async with rig.kubelet():
            def probing(path: str) -> dict[str, Any]:
                return {"readinessProbe": {"periodSeconds": 1, "httpGet": {"path": path, "port": port}}}
            hook = {"postStart": {"httpGet": {"path": "/hook", "port": port, "host": "10.0.0.1"}}}
            await rig.create("led", sh(STAY, **probing("/local"), lifecycle=hook),
                             sh(STAY, name="astray", **probing("/away")), hostNetwork=True)
            pod = await rig.pod("led", ready)
            assert not any(s["restartCount"] for s in pod["status"]["containerStatuses"])
            assert "/healthz" in asked and "/hook" in asked
            async with asyncio.timeout(20):
                while "Readiness probe warning: Probe terminated redirects, Response body: Found" not in told(
                        rig, "ProbeWarning"):
                    async with rig.api.news:
                        await rig.api.news.wait()
            await rig.remove("led")
        listener.close()
        await server.shutdown(1.0)
    run(host, body)


def test_variables_have_the_names_the_api_allows_and_a_corrected_pod_starts(host: Host) -> None:
    async def body(rig: Rig) -> None:
        await rig.api.create(named("secrets"), {"apiVersion": "v1", "kind": "Secret", "metadata": {
            "name": "s", "namespace": "default"}, "data": {"data_1": "dmFsdWUtMQ=="}}, "default")
        async with rig.kubelet():
            prefixes = ("p-", "1-", "$_", "#!a@")
            await rig.create("named", sh(STAY, envFrom=[{"prefix": p, "secretRef": {"name": "s"}} for p in prefixes]))
            where = {"fieldRef": {"fieldPath": "metadata.annotations['where']"}}
            made = await rig.create("mended", sh(
                STAY, env=[{"name": "WHERE", "valueFrom": where}],
                volumeMounts=[{"name": "v", "mountPath": "/v", "subPathExpr": "$(WHERE)/x"}]),
                volumes=[{"name": "v", "emptyDir": {}}])
            await rig.pod("mended", lambda p: waiting(p).get("reason") == "CreateContainerConfigError")
            await rig.pod("named", ready)
            has = (await rig.inside("named", r"tr '\0' '\n' < /proc/1/environ")).splitlines()
            assert {f"{p}data_1=value-1" for p in prefixes} <= set(has)
            await rig.api.patch(PODS, "mended", {"metadata": {"annotations": {"where": "there"}}}, "default")
            pod = await rig.pod("mended", ready)
            assert pod["metadata"]["uid"] == made["metadata"]["uid"]
            assert pod["status"]["containerStatuses"][0]["resources"] == {}
            await rig.remove("named", "mended")
    run(host, body)


def test_a_container_gets_variables_that_an_earlier_one_wrote(host: Host) -> None:
    def wants(key: str, **more: Any) -> dict[str, Any]:
        return {"name": f"V_{key}", "valueFrom": {"fileKeyRef": {
            "volumeName": "shared", "path": "of/init.env", "key": key, **more}}}

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            init = {"name": "init", "image": "busybox:1", "volumeMounts": [{"name": "shared", "mountPath": "/d"}],
                    "command": ["sh", "-c", "mkdir /d/of && printf \"A='one two'\\n\" > /d/of/init.env"]}
            shared = {"initContainers": [init], "volumes": [{"name": "shared", "emptyDir": {}}]}
            await rig.create("told", sh("sleep 600", env=[wants("A"), wants("X", optional=True)]), **shared)
            await rig.create("untold", sh("sleep 600", env=[wants("X")]), **shared)
            await rig.pod("told", ready)
            assert await rig.inside("told", "env | grep ^V_") == "V_A=one two"
            untold = await rig.pod("untold", lambda p: p["status"].get("containerStatuses", [{"state": {}}])[0][
                "state"].get("waiting", {}).get("reason") == "CreateContainerConfigError")
            assert untold["status"]["containerStatuses"][0]["state"]["waiting"]["message"] == (
                'environment variable key "X" not found in file "of/init.env"')
            await rig.remove("told", "untold")
    run(host, body)
