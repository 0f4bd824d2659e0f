"""Device plugins: what each offers is followed, lent to containers as pods are admitted, and handed in at their start.

Owns the connections to plugins and the file of the `book`. Promises that a plugin that goes makes its devices unhealthy
and after a while forgotten, that a container started again has the devices it had before, and that the node's status
and the pods concerned are told of every change. Called by `registrar`, `kubelet`, `steps` and `worker`.

Upstream: pkg/kubelet/cm/devicemanager.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import orjson

from agent.kubelet.devices.book import HEALTHY, Book, Device, Grant, Grants, Refused
from agent.kubelet.env import ConfigError
from agent.kubelet.model import ContainerSpec, Mount
from agent.kubelet.restarts import is_sidecar
from controlplane.machinery import files
from controlplane.machinery.clock import Clock
from cri_proto.client import Plugin, describe
from cri_proto.messages import deviceplugin as api

log = logging.getLogger(__name__)
CALL_SECONDS = 30.0  # a plugin may have to wake a device; upstream's limit of PreStartContainer
FORGET_SECONDS = 300.0  # upstream's grace period for a plugin that is being replaced
NO_CDI = "CDI devices are not supported by this node's container runtime: they take containerd 1.7 or newer"


@dataclass(frozen=True, slots=True)
class _Endpoint:
    plugin: Plugin
    options: Any
    task: asyncio.Task[None] | None


class DeviceManager:
    """`file` is that of the book. `changed(uids)` is called when what the node has is not what it was, with the pods
    concerned; `cdi` says whether the runtime knows CDI devices."""

    def __init__(self, file: Path, clock: Clock, changed: Callable[[set[str]], None], *, cdi: bool) -> None:
        self._file, self._clock, self._changed, self._cdi = file, clock, changed, cdi
        self._endpoints: dict[str, _Endpoint] = {}
        self._gone: dict[str, float] = {}  # resources whose plugin has ended, and when
        self._lending = asyncio.Lock()  # devices are chosen for one pod at a time
        self.book = self._load()

    def _load(self) -> Book:
        try:
            return Book.decode(orjson.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return Book()
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read, devices in use may be lent again: %s", self._file, error)
            return Book()

    def _save(self) -> None:
        files.write(self._file, orjson.dumps(self.book.encode()))

    # --- plugins

    async def follow(self, resource: str, endpoint: Path | str, options: Any) -> None:
        """Keep to what the plugin at the socket `endpoint` tells, until it goes or another takes its place."""
        self._gone.pop(resource, None)
        self._cut(resource)
        async with Plugin(endpoint) as plugin:
            mine = self._endpoints[resource] = _Endpoint(plugin, options, asyncio.current_task())
            try:
                async for answer in plugin.devices.ListAndWatch(api.Empty(), wait_for_ready=True):
                    self._list(resource, {d.ID: Device(d.health == HEALTHY, tuple(n.ID for n in d.topology.nodes))
                                          for d in answer.devices})
                log.warning("the device plugin of %s has ended", resource)
            except grpc.aio.AioRpcError as error:
                log.warning("the device plugin of %s: %s", resource, describe(error))
            finally:
                if self._endpoints.get(resource) is mine:
                    del self._endpoints[resource]
        await self._absent(resource)

    async def drop(self, resource: str) -> None:
        """The plugin says nothing any more for us: as if it had gone."""
        if resource in self._endpoints:
            self._cut(resource)
            await self._absent(resource)

    def _cut(self, resource: str) -> None:
        before = self._endpoints.pop(resource, None)
        if before is not None and before.task is not None:
            before.task.cancel()

    async def _absent(self, resource: str) -> None:
        """Nobody tells of these devices: they are unhealthy, and after a while forgotten."""
        self._list(resource, {id: replace(device, healthy=False)
                              for id, device in self.book.devices.get(resource, {}).items()})
        since = self._gone[resource] = self._clock.monotonic()
        await self._clock.sleep(FORGET_SECONDS)
        if self._gone.get(resource) == since:  # and nobody has come and gone meanwhile
            self._list(resource, {})

    def _list(self, resource: str, devices: dict[str, Device]) -> None:
        before = self.book.devices.get(resource)
        if before == devices:
            return
        self.book.devices[resource] = devices
        if before is None or before.keys() != devices.keys():
            self._save()
        self._changed(self.book.holders(resource))

    # --- lending

    async def admit(self, pod: dict[str, Any], alive: Callable[[str], bool]) -> tuple[str, str] | None:
        """Lend the pod's containers their devices; else the reason and message of its failure. What pods have that are
        not `alive` is free."""
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
        if not any(map(self.book.asked, containers)):
            return None
        async with self._lending:
            self.book.release(alive)
            if uid in self.book.given:
                return None  # an earlier agent got as far
            try:
                self.book.given[uid] = await self._lend(containers, len(containers) - len(spec["containers"]))
            except Refused as error:
                return "UnexpectedAdmissionError", f"Allocate failed due to {error}, which is unexpected"
            finally:
                self._save()
        return None

    async def _lend(self, containers: list[dict[str, Any]], init: int) -> dict[str, Grants]:
        """The grants of each container, of which the first `init` are init containers: what those that end have is used
        again by those after them."""
        given: dict[str, Grants] = {}
        own: dict[str, set[str]] = {}
        taken: dict[str, set[str]] = {}
        for index, container in enumerate(containers):
            for resource, count in self.book.asked(container).items():
                again, held = own.setdefault(resource, set()), taken.setdefault(resource, set())
                ids = await self._choose(resource, count, again, held)
                given.setdefault(container["name"], {})[resource] = await self._grant(resource, ids)
                held.update(ids)
                if index < init and not is_sidecar(container):
                    again.update(ids)
                else:
                    again.difference_update(ids)
        return given

    async def _choose(self, resource: str, count: int, own: set[str], taken: set[str]) -> tuple[str, ...]:
        again, fresh = self.book.choose(resource, count, own, taken)
        endpoint = self._endpoints.get(resource)
        if endpoint is None or not endpoint.options.get_preferred_allocation_available or not fresh:
            return again + fresh
        answer = await self._call(endpoint, "GetPreferredAllocation", api.PreferredAllocationRequest(
            container_requests=[api.ContainerPreferredAllocationRequest(
                available_deviceIDs=[*again, *sorted(self.book.free(resource, taken))], must_include_deviceIDs=again,
                allocation_size=count)]))
        liked = [id for each in answer.container_responses for id in each.deviceIDs]
        again, fresh = self.book.choose(resource, count, own, taken, liked)
        return again + fresh

    async def _grant(self, resource: str, ids: tuple[str, ...]) -> Grant:
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            raise Refused(f"the device plugin of {resource} is gone")
        answer = await self._call(endpoint, "Allocate", api.AllocateRequest(
            container_requests=[api.ContainerAllocateRequest(devices_ids=ids)]))
        if len(answer.container_responses) != 1:
            raise Refused(f"the device plugin of {resource} gave {len(answer.container_responses)} answers for one "
                          "container")
        made = answer.container_responses[0]
        if made.cdi_devices and not self._cdi:
            raise Refused(NO_CDI)
        return Grant(ids, made.SerializeToString(), endpoint.options.pre_start_required)

    @staticmethod
    async def _call(endpoint: _Endpoint, method: str, request: Any) -> Any:
        """Raises Refused."""
        try:
            return await getattr(endpoint.plugin.devices, method)(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise Refused(describe(error)) from error

    # --- in containers

    async def fitted(self, made: ContainerSpec, uid: str) -> ContainerSpec:
        """The container with what its plugins hand in; plugins that want to prepare devices before each start are
        called. Raises ConfigError."""
        for resource, grant in self.book.of(uid, made.name).items():
            if grant.prepare:
                await self._prepare(resource, grant.ids)
            answer = api.ContainerAllocateResponse.FromString(grant.answer)
            mounted = {mount.container_path for mount in made.mounts}
            made = replace(
                made, env=tuple({**answer.envs, **dict(made.env)}.items()),
                mounts=made.mounts + tuple(Mount(m.host_path, m.container_path, m.read_only) for m in answer.mounts
                                           if m.container_path not in mounted),
                devices=made.devices + tuple((d.host_path, d.container_path, d.permissions) for d in answer.devices),
                annotations=made.annotations + tuple(answer.annotations.items()),
                cdi=made.cdi + tuple(d.name for d in answer.cdi_devices))
        return made

    async def _prepare(self, resource: str, ids: tuple[str, ...]) -> None:
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            raise ConfigError(f"the device plugin of {resource} is gone, and it prepares devices before each start")
        try:
            await self._call(endpoint, "PreStartContainer", api.PreStartContainerRequest(devices_ids=ids))
        except Refused as error:
            raise ConfigError(f"device plugin PreStartContainer rpc failed with err: {error}") from error
