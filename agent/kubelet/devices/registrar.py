"""Where device plugins of this node make themselves known: the socket `device-plugins/kubelet.sock`.

Owns that socket. Promises that plugins notice a new agent (the sockets of an old one's time are removed, which they
watch for), and that nothing else of devices is loaded until the first plugin comes or an earlier agent's book is found.
Run by the agent.

Upstream: pkg/kubelet/cm/devicemanager/plugin/v1beta1/server.go.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from agent.kubelet.context import Context
from controlplane.machinery import names
from cri_proto.messages import deviceplugin
from cri_proto.served import Served, serve

if TYPE_CHECKING:
    from agent.kubelet.devices.manager import DeviceManager

log = logging.getLogger(__name__)
VERSION = "v1beta1"
FOLDER, SOCKET, BOOK = "device-plugins", "kubelet.sock", "devices.json"


class Registrar:
    """Gives `context` its devices. `changed(uids)` is called when what the node has is not what it was, with the pods
    concerned; `cdi` says whether the runtime knows CDI devices."""

    def __init__(self, context: Context, changed: Callable[[set[str]], None], *, cdi: bool) -> None:
        self._context, self._changed, self._cdi = context, changed, cdi
        self._folder = context.node.root / FOLDER
        self._group: asyncio.TaskGroup
        self.listening = asyncio.Event()
        if (self._folder / BOOK).exists():  # before any pod is looked at: what was lent stays lent
            self._begin()

    def _begin(self) -> DeviceManager:
        from agent.kubelet.devices.manager import DeviceManager
        if self._context.devices is None:
            self._context.devices = DeviceManager(self._folder, self._context.clock, self._changed, cdi=self._cdi)
        return self._context.devices

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
        elif "/" not in name or names.qualified_name(name) or name.partition("/")[0].endswith("kubernetes.io"):
            problem = f'the ResourceName "{name}" is invalid'
        elif not request.endpoint or "/" in request.endpoint:
            problem = f'the endpoint "{request.endpoint}" is no name of a socket in {self._folder}'
        else:
            follow = self._begin().follow(name, request.endpoint, request.options)
            self._group.create_task(follow, name=f"devices {name}")
            return deviceplugin.Empty()
        log.warning("device plugin: %s", problem)
        await call.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        return None
