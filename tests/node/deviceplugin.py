"""A device plugin as their authors write them, in a process of its own: `python -m tests.node.deviceplugin FOLDER
RESOURCE DEVICE…`, where a DEVICE is `id=path of a character device`.

It reads commands from its standard input: `sick ID` and `well ID`; each call it gets is a line of its output.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cri_proto.messages import deviceplugin as api
from cri_proto.served import Served

ENDPOINT = "lab.sock"


class Lab:
    def __init__(self, devices: dict[str, str]) -> None:
        self.devices, self.sick, self.news = devices, set[str](), asyncio.Event()

    async def GetDevicePluginOptions(self, request: Any, call: Any) -> Any:  # noqa: N802
        return OPTIONS

    async def ListAndWatch(self, request: Any, call: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            self.news.clear()
            yield api.ListAndWatchResponse(devices=[
                api.Device(ID=id, health="Unhealthy" if id in self.sick else "Healthy",
                           topology=api.TopologyInfo(nodes=[api.NUMANode(ID=0)])) for id in self.devices])
            await self.news.wait()

    async def GetPreferredAllocation(self, request: Any, call: Any) -> Any:  # noqa: N802
        print("preferred", flush=True)
        return api.PreferredAllocationResponse(container_responses=[api.ContainerPreferredAllocationResponse(
            deviceIDs=sorted(r.available_deviceIDs, reverse=True)[:r.allocation_size])
            for r in request.container_requests])

    async def Allocate(self, request: Any, call: Any) -> Any:  # noqa: N802
        made = []
        for each in request.container_requests:
            print("allocate", *each.devices_ids, flush=True)
            made.append(api.ContainerAllocateResponse(
                envs={"LAB_DEVICES": ",".join(each.devices_ids)}, annotations={"lab/devices": "yes"},
                mounts=[api.Mount(container_path="/lab", host_path=str(FOLDER), read_only=True)],
                devices=[api.DeviceSpec(container_path=f"/dev/lab-{id}", host_path=self.devices[id], permissions="rw")
                         for id in each.devices_ids]))
        return api.AllocateResponse(container_responses=made)

    async def PreStartContainer(self, request: Any, call: Any) -> Any:  # noqa: N802
        print("start", *request.devices_ids, flush=True)
        return api.PreStartContainerResponse()


FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "/")
OPTIONS = api.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)


async def main() -> None:
    lab = Lab(dict(word.split("=", 1) for word in sys.argv[3:]))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Served(api, "DevicePlugin", "v1beta1.DevicePlugin", lambda: lab),))
    server.add_insecure_port(f"unix://{FOLDER / ENDPOINT}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix://{FOLDER / 'kubelet.sock'}") as channel:
        register = channel.unary_unary("/v1beta1.Registration/Register",
                                       api.RegisterRequest.SerializeToString, api.Empty.FromString)
        await register(api.RegisterRequest(version="v1beta1", endpoint=ENDPOINT, resource_name=sys.argv[2],
                                           options=OPTIONS), wait_for_ready=True, timeout=60)
    print("registered", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        word, id = line.split()
        (lab.sick.add if word == "sick" else lab.sick.discard)(id)
        lab.news.set()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
