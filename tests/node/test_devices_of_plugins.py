"""Devices handed into containers by a device plugin: seen from inside, counted, and not lost by a restart."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.kubelet.devices.podresources import PodResources
from agent.kubelet.devices.registrar import Registrar
from agent.kubelet.kubelet import Kubelet
from cri_proto.messages import podresources
from tests.node.nodekubelet import Rig, eventually, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
RESOURCE = "example.com/lab"
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
PATIENCE = 60.0


@asynccontextmanager
async def services(rig: Rig, kubelet: Kubelet) -> AsyncIterator[None]:
    """What the agent runs beside the kubelet for devices; its node tells no other."""
    context = kubelet.context

    def changed(uids: set[str]) -> None:
        counts = context.devices.amounts()
        rig.place = replace(rig.place, devices=frozenset(counts), allocatable={
            "cpu": "2", "memory": "1Gi", "pods": "9", **{name: str(healthy) for name, (_, healthy) in counts.items()}})
        kubelet.wake(uids)

    context.devices.changed, registrar = changed, Registrar(context.devices)
    tasks = [asyncio.create_task(registrar.run()), asyncio.create_task(PodResources(context, kubelet.pods).run())]
    await registrar.listening.wait()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Plugin:
    """The plugin's process."""

    def __init__(self, folder: Path, devices: dict[str, Path]) -> None:
        self._words = [str(folder), RESOURCE, *(f"{id}={path}" for id, path in devices.items())]
        self.said: list[str] = []

    async def __aenter__(self) -> Plugin:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.node.deviceplugin", *self._words, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2])
        await self.until("registered")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def until(self, line: str) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while line not in self.said:
                said = await self._process.stdout.readline()
                assert said, f"the plugin has ended; it said {self.said}"
                self.said.append(said.decode().strip())

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())


async def asks(root: Path, method: str, request: Any, answer: Any) -> Any:
    async with grpc.aio.insecure_channel(f"unix://{root}/pod-resources/kubelet.sock") as channel:
        call = channel.unary_unary(f"/v1.PodResourcesLister/{method}", type(request).SerializeToString,
                                   answer.FromString)
        return await call(request, wait_for_ready=True, timeout=PATIENCE)


def healths(pod: dict[str, Any] | None) -> list[str]:
    found = ((pod or {}).get("status") or {}).get("containerStatuses") or [{}]
    return [r["health"] for s in found[0].get("allocatedResourcesStatus") or () for r in s["resources"]]


def wants(count: int) -> dict[str, Any]:
    return {"resources": {"limits": {RESOURCE: str(count)}, "requests": {RESOURCE: str(count)}}}


def test_a_device_is_handed_in_and_kept_over_a_restart(host: Host, tmp_path: Path) -> None:
    devices = {id: tmp_path / id for id in ("a", "b")}
    for path in devices.values():
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # the device of /dev/null
    folder = host.paths.kubelet / "device-plugins"

    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet, services(rig, kubelet), Plugin(folder, devices) as plugin:
            await eventually(lambda: counted(rig, "2"), PATIENCE)
            pod = await rig.create("one", sh(STAY, **wants(1)))
            told = await rig.pod("one", lambda p: ready(p) and healths(p) == ["Healthy"])
            await plugin.until("start b")
            assert plugin.said == ["registered", "preferred", "allocate b", "start b"]
            status = told["status"]["containerStatuses"][0]
            assert status["allocatedResources"] == {RESOURCE: "1"}
            assert status["allocatedResourcesStatus"] == [
                {"name": RESOURCE, "resources": [{"resourceID": "b", "health": "Healthy"}]}]
            assert await rig.inside("one", "echo x > /dev/lab-b && stat -c %F /dev/lab-b") == "character special file"
            assert await rig.inside("one", "echo $LAB_DEVICES; ls /lab/lab.sock; [ -e /dev/lab-a ] || echo no a") \
                == "b\n/lab/lab.sock\nno a"
            await rig.create("greedy", sh(STAY, **wants(2)))
            refused = await rig.pod("greedy", lambda p: ((p or {}).get("status") or {}).get("phase") == "Failed")
            assert refused["status"]["reason"] == "UnexpectedAdmissionError"
            assert "Requested: 2, Available: 1, which is unexpected" in refused["status"]["message"]
            plugin.tell("sick b")
            await rig.pod("one", lambda p: healths(p) == ["Unhealthy"])
            await eventually(lambda: counted(rig, "1"), PATIENCE)
        async with rig.kubelet() as kubelet, services(rig, kubelet):
            assert kubelet.context.devices.lent is not None  # of the book, before any plugin has come
            async with Plugin(folder, devices) as plugin:
                await rig.pod("one", lambda p: healths(p) == ["Healthy"])
                await rig.create("two", sh(STAY, **wants(1)))
                await rig.pod("two", ready)
                assert await rig.inside("two", "echo $LAB_DEVICES") == "a"
                listed = await asks(host.paths.kubelet, "List", podresources.ListPodResourcesRequest(),
                                    podresources.ListPodResourcesResponse)
                assert {p.name: list(p.containers[0].devices[0].device_ids) for p in listed.pod_resources
                        if p.name != "greedy"} == {"one": ["b"], "two": ["a"]}
                one = await asks(host.paths.kubelet, "Get", podresources.GetPodResourcesRequest(
                    pod_name="one", pod_namespace="default"), podresources.GetPodResourcesResponse)
                assert one.pod_resources.containers[0].devices[0].topology.nodes[0].ID == 0
                free = await asks(host.paths.kubelet, "GetAllocatableResources",
                                  podresources.AllocatableResourcesRequest(),
                                  podresources.AllocatableResourcesResponse)
                assert [d.device_ids[0] for d in free.devices] == ["a", "b"]
            await rig.pod("one", lambda p: healths(p) == ["Unhealthy"])  # the plugin is gone
            assert pod["metadata"]["uid"] in kubelet.context.devices.lent.book.given
            await rig.remove("one", "two", "greedy")
    run(host, body)


async def counted(rig: Rig, count: str) -> bool:
    return rig.place.allocatable.get(RESOURCE) == count
