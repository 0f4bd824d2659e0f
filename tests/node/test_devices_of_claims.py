"""Devices of ResourceClaims in containers: registered, prepared, injected by CDI, given back. A runtime that knows no
CDI is told of, and nothing runs without its device."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.kubelet.devices.claims import CLAIMS, read
from agent.kubelet.devices.drivers import KIND as TYPE
from agent.kubelet.devices.podresources import PodResources
from agent.kubelet.registry import Registry
from cri_proto.messages import dra, drahealth, podresources, registration
from cri_proto.served import Served
from tests.node.nodekubelet import PODS, Rig, eventually, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
DRIVER, KIND = "lab.example.com", "example.com/lab"
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
PATIENCE = 60.0


class Driver:
    """A driver as their authors write them: one socket for its registration and its service."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.calls: list[tuple[str, str]] = []
        self.sick, self.news = set[str](), asyncio.Event()

    async def GetInfo(self, request: Any, call: Any) -> Any:  # noqa: N802
        return registration.PluginInfo(type="DRAPlugin", name=DRIVER, supported_versions=["v1.DRAPlugin",
                                                                                           "v1alpha1.DRAResourceHealth"])

    async def NotifyRegistrationStatus(self, request: Any, call: Any) -> Any:  # noqa: N802
        self.told.append(request.plugin_registered)
        return registration.RegistrationStatusResponse()

    async def NodePrepareResources(self, request: Any, call: Any) -> Any:  # noqa: N802
        self.calls += [("prepare", c.name) for c in request.claims]
        return dra.NodePrepareResourcesResponse(claims={c.uid: dra.NodePrepareResourceResponse(devices=[
            dra.Device(request_names=[id], pool_name="pool", device_name=id, cdi_device_ids=[f"{KIND}={id}"])
            for id in "ab"]) for c in request.claims})

    async def NodeUnprepareResources(self, request: Any, call: Any) -> Any:  # noqa: N802
        self.calls += [("unprepare", c.name) for c in request.claims]
        return dra.NodeUnprepareResourcesResponse(claims={c.uid: dra.NodeUnprepareResourceResponse()
                                                          for c in request.claims})

    async def NodeWatchResources(self, request: Any, call: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            self.news.clear()
            yield drahealth.NodeWatchResourcesResponse(devices=[drahealth.DeviceHealth(
                device=drahealth.DeviceIdentifier(pool_name="pool", device_name=id), health_check_timeout_seconds=600,
                health=drahealth.UNHEALTHY if id in self.sick else drahealth.HEALTHY,
                message="it is too hot" if id in self.sick else "") for id in "ab"])
            await self.news.wait()

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[None]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((
            Served(registration, "Registration", "pluginregistration.Registration", lambda: self),
            Served(dra, "DRAPlugin", "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin", lambda: self),
            Served(drahealth, "DRAResourceHealth", "v1alpha1.DRAResourceHealth", lambda: self)))
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
        server.add_insecure_port(f"unix://{folder}/lab-reg.sock")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)


@asynccontextmanager
async def described(host: Host, device: Path) -> AsyncIterator[None]:
    """The CDI devices a and b, where runtimes look for them."""
    def edits(id: str) -> dict[str, Any]:
        return {"env": [f"LAB_{id.upper()}=yes"], "deviceNodes": [
            {"path": f"/dev/lab-{id}", "hostPath": str(device), "type": "c", "major": 1, "minor": 3}]}
    spec = Path("/var/run/cdi") / f"pelamis-test-{host.id}.json"
    spec.parent.mkdir(exist_ok=True)
    spec.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": KIND, "devices": [
        {"name": id, "containerEdits": edits(id)} for id in "ab"]}))
    try:
        yield
    finally:
        spec.unlink()
        with suppress(OSError):  # somebody else's are there
            spec.parent.rmdir()


async def create(rig: Rig, name: str) -> None:
    """A pod with a claim that is allocated to it, and one for extended resources: one container names a request of the
    first, one the whole, one nothing, and one asks for a resource."""
    results = [{"request": id, "driver": DRIVER, "pool": "pool", "device": id} for id in "ab"]
    for claim in ("lab", "extended"):
        await rig.api.create(CLAIMS, {
            "metadata": {"name": f"{name}-{claim}", "uid": f"{claim}-{name}", "namespace": "default"},
            "status": {"reservedFor": [{"resource": "pods", "name": name, "uid": f"uid-{name}"}],
                       "allocation": {"devices": {"results": results}}}}, "default")

    def container(called: str, *claims: dict[str, str]) -> dict[str, Any]:
        return {"name": called, "image": "busybox:1", "imagePullPolicy": "IfNotPresent", **sh(STAY),
                "resources": {"claims": list(claims)}}
    await rig.api.create(PODS, {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {"nodeName": "n1", "terminationGracePeriodSeconds": 2,
                 "resourceClaims": [{"name": "lab", "resourceClaimTemplateName": "t"}], "containers": [
                     container("one", {"name": "lab", "request": "a"}), container("all", {"name": "lab"}),
                     container("none"), container("gpu")]},
        "status": {"phase": "Pending", "resourceClaimStatuses": [
            {"name": "lab", "resourceClaimName": f"{name}-lab"}], "extendedResourceClaimStatus": {
                "resourceClaimName": f"{name}-extended", "requestMappings": [
                    {"containerName": "gpu", "resourceName": "example.com/gpu", "requestName": "b"}]}}}, "default")


def test_devices_of_a_claim_are_prepared_and_given_back(host: Host, tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    root, driver = host.paths.kubelet, Driver()

    async def body(rig: Rig) -> None:
        able = (await rig.runtime.features()).cdi
        async with rig.kubelet() as kubelet, described(host, tmp_path / "null"):
            devices = kubelet.context.devices
            devices.changed = kubelet.wake
            tasks = [asyncio.create_task(t) for t in (Registry(root, {TYPE: devices.drivers}).run(),
                                                      PodResources(kubelet.context, kubelet.pods).run())]
            try:
                async with driver.serve(root / "plugins_registry"):
                    await eventually(lambda: done(driver.told == [True]), PATIENCE)
                    await create(rig, "lab")
                    if able:
                        await inside(rig, root)
                    else:
                        await rig.pod("lab", lambda p: "take containerd 1.7 or newer" in str((p or {}).get("status")))
                    assert driver.calls == [("prepare", "lab-lab"), ("prepare", "lab-extended")]
                    assert [c["name"] for c in read(root / "pods/uid-lab")] == ["lab-lab", "lab-extended"]
                    await rig.pod("lab", lambda p: told(p, "all") == [f"{KIND}=a Healthy", f"{KIND}=b Healthy"])
                    driver.sick.add("a")
                    driver.news.set()
                    sick = await rig.pod("lab", lambda p: told(p, "one") == [f"{KIND}=a Unhealthy it is too hot"])
                    assert told(sick, "all")[1:] == [f"{KIND}=b Healthy"] and told(sick, "none") == []
                    names = [status(sick, one)["allocatedResourcesStatus"][0]["name"] for one in ("one", "gpu")]
                    assert names == ["claim:lab/a", "example.com/gpu"] and told(sick, "gpu") == [f"{KIND}=b Healthy"]
                    await rig.remove("lab")
                    assert driver.calls[2:] == [("unprepare", "lab-lab"), ("unprepare", "lab-extended")]
                await eventually(lambda: done(devices.drivers.socket(DRIVER) is None), PATIENCE)
                await create(rig, "late")
                await rig.pod("late", lambda p: f"driver {DRIVER} is not registered" in str((p or {}).get("status")))
                await rig.remove("late")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    run(host, body)


async def inside(rig: Rig, root: Path) -> None:
    await rig.pod("lab", ready)
    for container, expected in (("one", "a:yes b:"), ("all", "a:yes b:yes"), ("none", "a: b:"), ("gpu", "a: b:yes")):
        assert await rig.inside("lab", 'echo "a:$LAB_A b:$LAB_B"', container) == expected
    assert await rig.inside("lab", "echo x > /dev/lab-a && stat -c %F /dev/lab-a", "one") == "character special file"
    async with grpc.aio.insecure_channel(f"unix://{root}/pod-resources/kubelet.sock") as channel:
        ask = channel.unary_unary("/v1.PodResourcesLister/List", podresources.ListPodResourcesRequest.SerializeToString,
                                  podresources.ListPodResourcesResponse.FromString)
        told = await ask(podresources.ListPodResourcesRequest(), wait_for_ready=True, timeout=PATIENCE)
    found = {c.name: [d.claim_resources[0].cdi_devices[0].name for d in c.dynamic_resources]
             for c in told.pod_resources[0].containers}
    assert found == {"one": [f"{KIND}=a"], "all": [f"{KIND}=a"], "none": [], "gpu": [f"{KIND}=a"]}


def status(pod: dict[str, Any], container: str) -> dict[str, Any]:
    return next((s for s in pod["status"].get("containerStatuses") or () if s["name"] == container), {})


def told(pod: dict[str, Any], container: str) -> list[str]:
    """How the container's devices are said to be."""
    found = [r for s in status(pod, container).get("allocatedResourcesStatus") or () for r in s["resources"]]
    return [" ".join(filter(None, (r["resourceID"], r["health"], r.get("message")))) for r in found]


async def done(value: bool) -> bool:
    return value
