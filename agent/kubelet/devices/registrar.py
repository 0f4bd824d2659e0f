"""Where device plugins of this node make themselves known: the socket `device-plugins/kubelet.sock`, or the folder of
all plugins.

Owns that socket. Promises that plugins notice a new agent (the sockets of an old one's time are removed, which they
watch for), and that nothing else of devices is loaded until the first plugin comes. Run by the agent; called by
`registry` too.

Upstream: pkg/kubelet/cm/devicemanager/plugin/v1beta1.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from typing import Any

import grpc.aio

from agent.kubelet.devices.devices import Devices
from agent.kubelet.registry import CALL_SECONDS, QUIET_SECONDS, Spawn
from controlplane.machinery import names
from cri_proto.client import Plugin, describe
from cri_proto.messages import deviceplugin
from cri_proto.served import Served, serve

log = logging.getLogger(__name__)
KIND, VERSION, SOCKET = "DevicePlugin", "v1beta1", "kubelet.sock"


def extended(resource: str) -> bool:
    """Whether a plugin may offer a resource of this name."""
    return "/" in resource and not names.qualified_name(resource) and not resource.partition("/")[0].endswith(
        "kubernetes.io")


class Registrar:
    """Gives `devices` its plugins."""

    def __init__(self, devices: Devices) -> None:
        self._devices, self._folder = devices, devices.folder
        self._group: asyncio.TaskGroup
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        for path in self._folder.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        service = Served(deviceplugin, "Registration", f"{VERSION}.Registration", lambda: self)
        async with asyncio.TaskGroup() as self._group:
            await serve(self._folder / SOCKET, service, self.listening.set)

    async def Register(self, request: Any, call: Any) -> Any:  # noqa: N802 - the service's own name
        """A plugin tells what it offers and where it listens."""
        name = request.resource_name
        if request.version != VERSION:
            problem = f'requested API version "{request.version}" is not supported by kubelet. Supported version is ' \
                      f'"{VERSION}"'
        elif not extended(name):
            problem = f'the ResourceName "{name}" is invalid'
        elif not request.endpoint or "/" in request.endpoint:
            problem = f'the endpoint "{request.endpoint}" is no name of a socket in {self._folder}'
        else:
            follow = self._devices.manager().follow(name, self._folder / request.endpoint, request.options)
            self._group.create_task(follow, name=f"devices {name}")
            return deviceplugin.Empty()
        log.warning("device plugin: %s", problem)
        await call.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        return None

    # --- what `registry` asks for

    async def take(self, info: Any, endpoint: str, spawn: Spawn) -> str:
        """Follow a plugin that was found in the folder; why not, "" when it is."""
        if VERSION not in info.supported_versions:
            return f"manager version, {VERSION}, is not among plugin supported versions {list(info.supported_versions)}"
        if not extended(info.name):
            return f"invalid name of device plugin: {info.name}"
        try:
            async with Plugin(endpoint) as plugin:
                options = await plugin.devices.GetDevicePluginOptions(deviceplugin.Empty(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"error when getting the plugin's options: {describe(error)}"
        spawn(self._devices.manager().follow(info.name, endpoint, options), f"devices {info.name}")
        return ""

    async def left(self, name: str, spawn: Spawn) -> None:
        """A plugin that was found in the folder has gone."""
        spawn(self._devices.manager().drop(name), f"devices {name}")

    async def tend(self) -> float:
        """Nothing is due but what the plugins' own streams tell."""
        return QUIET_SECONDS
