"""The drivers of ResourceClaims on this node: where each listens, and how it says its devices are.

Owns that list and, of drivers that tell, the health of every device. Promises that what a driver offered is taken back
a while after it has gone, or pods would be sent to it, and that a device nobody has told of in time is of unknown
health. Called by `registry`, by `claims` for sockets, and by `devices`.

Upstream: pkg/kubelet/cm/dra (plugin/dra_plugin_manager.go, healthinfo.go).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc.aio

from agent.kubelet.devices.health import Health
from agent.kubelet.registry import QUIET_SECONDS, RETRY_SECONDS, Spawn
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import named
from cri_proto.client import Plugin, describe
from cri_proto.messages import drahealth

log = logging.getLogger(__name__)
KIND, SERVICE, HEALTH = "DRAPlugin", "v1.DRAPlugin", "v1alpha1.DRAResourceHealth"
SLICES = named("resourceslices.resource.k8s.io")
WIPE_SECONDS = 30.0  # upstream's: a driver that is only replaced is back by then
WATCH_SECONDS = 5.0  # upstream's, between two streams of a driver's health


class ClaimDrivers:
    """`changed(driver)` is called when the health of one's devices is not what it was."""

    def __init__(self, node: str, client: Client, clock: Clock, changed: Callable[[str], None]) -> None:
        self._node, self._client, self._clock, self._changed = node, client, clock, changed
        self._sockets: dict[str, str] = {}
        self._left: dict[str, float] = {}  # driver that has gone -> when what it offers goes too
        self._health: dict[str, Health] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}  # that keep to the health of a driver's devices

    def socket(self, driver: str) -> str | None:
        """Where a driver listens; None when it is not here."""
        return self._sockets.get(driver)

    def health(self, driver: str, pool: str, device: str) -> tuple[str, str]:
        """Healthy, Unhealthy or Unknown, and what the driver says to it."""
        return self._health[driver].of(pool, device) if driver in self._health else ("Unknown", "")

    # --- what `registry` asks for

    async def take(self, info: Any, endpoint: str, spawn: Spawn) -> str:
        """List a driver; why not, "" when it is."""
        if SERVICE not in info.supported_versions:
            return f"none of the services {list(info.supported_versions)} is {SERVICE}"
        self._sockets[info.name] = endpoint
        self._left.pop(info.name, None)
        self._forget(info.name)
        if HEALTH in info.supported_versions:
            health = self._health[info.name] = Health()
            news = asyncio.Event()
            self._tasks[info.name] = [spawn(self._listen(info.name, endpoint, health, news), f"health {info.name}"),
                                      spawn(self._fade(info.name, health, news), f"health of {info.name} fades")]
        return ""

    async def left(self, name: str, spawn: Spawn) -> None:
        """A driver has gone."""
        self._sockets.pop(name, None)
        self._left[name] = self._clock.monotonic() + WIPE_SECONDS
        self._forget(name)
        self._changed(name)

    def _forget(self, name: str) -> None:
        self._health.pop(name, None)
        for task in self._tasks.pop(name, ()):
            task.cancel()

    async def tend(self) -> float:
        """Take back what drivers that are gone offer on this node; seconds until there is more to do."""
        for driver in [d for d, due in self._left.items() if due <= self._clock.monotonic()]:
            del self._left[driver]
            try:
                await self._client.delete_collection(SLICES, fields=f"spec.driver={driver},spec.nodeName={self._node}")
            except ApiError as error:
                log.warning("cannot remove the ResourceSlices of driver %s: %s", driver, error.message)
                self._left[driver] = self._clock.monotonic() + RETRY_SECONDS
        now = self._clock.monotonic()
        return min([QUIET_SECONDS, *(max(0.0, due - now) for due in self._left.values())])

    # --- health

    async def _listen(self, driver: str, endpoint: str, health: Health, news: asyncio.Event) -> None:
        """Hear how the driver's devices are, until it has gone or turns out to tell nobody."""
        while True:
            try:
                async with Plugin(endpoint) as plugin:
                    async for answer in plugin.health.NodeWatchResources(drahealth.NodeWatchResourcesRequest(),
                                                                         wait_for_ready=True):
                        if health.hear(answer.devices, self._clock.monotonic()):
                            self._changed(driver)
                        news.set()
            except grpc.aio.AioRpcError as error:
                log.warning("the health of driver %s's devices: %s", driver, describe(error))
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    return
            if health.clear():
                self._changed(driver)
            await self._clock.sleep(WATCH_SECONDS)

    async def _fade(self, driver: str, health: Health, news: asyncio.Event) -> None:
        """Call the health unknown of what nobody tells of any more."""
        while True:
            due = health.due()
            if due is None:
                news.clear()
                await news.wait()
                continue
            await self._clock.sleep(due - self._clock.monotonic())
            if health.expire(self._clock.monotonic()):
                self._changed(driver)
