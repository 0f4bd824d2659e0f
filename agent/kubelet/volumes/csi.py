"""Volumes of storage drivers: staged on the node, published into pods, and given back, by the CSI.

Owns the calls of one volume and their order, and the file `vol_data.json` beside each published volume: what giving it
back needs, so that an agent that was killed can. Promises that a call is repeated until its driver agrees, that a
volume is staged once and stays so while any pod of this node has it, and that secrets are fetched for the call and
kept nowhere. Called by `manager`; which drivers there are says `csidrivers`.

Upstream: pkg/volume/csi.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.kubelet.env import ConfigError
from agent.kubelet.volumes import ownership
from agent.kubelet.volumes.claims import CLAIMS, Claimed
from agent.kubelet.volumes.csirequests import (
    Source,
    attachment_name,
    capability,
    changes_ownership,
    context_of,
    grown,
    grows,
    source_of,
    usage_from,
)
from agent.kubelet.volumes.mounts import Mounts
from agent.kubelet.volumes.payload import fs_group
from agent.kubelet.volumes.tokens import Tokens
from controlplane.client.rest import Client
from controlplane.machinery import objects, quantity
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named
from cri_proto.client import Plugin, describe
from cri_proto.messages import csi

log = logging.getLogger(__name__)
STATS_SECONDS = 10.0  # nobody waits longer for figures
CALL_SECONDS = 120.0  # upstream's: formatting a large disk takes a while
AGAIN_SECONDS = 60.0  # how often a driver that asks for it is told of a pod again, and a claim asked for its size
STAGE, STATS, EXPAND, MOUNT_GROUP = 1, 2, 3, 6  # capabilities: NodeServiceCapability.RPC
DATA, TOKENS = "vol_data.json", "csi.storage.k8s.io/serviceAccount.tokens"
DRIVERS, ATTACHMENTS = named("csidrivers.storage.k8s.io"), named("volumeattachments.storage.k8s.io")
Object = dict[str, Any]


class CsiVolumes:
    """`socket(driver)` is where a registered driver listens, or None; `home` is the kubelet's folder as drivers know
    it, which may be a link to `root`."""

    def __init__(self, root: Path, node: str, client: Client, socket: Callable[[str], str | None],
                 tokens: Tokens, home: Path | None = None, mounts: Mounts | None = None, clock: Clock = SYSTEM) -> None:
        self._mounts, self._tokens, self._clock = mounts or Mounts(), tokens, clock
        self._root, self._node, self._client, self._socket = root, node, client, socket
        self._home = home or root
        self._turns: dict[str, asyncio.Lock] = {}  # by driver and handle: pods that share a volume take turns
        self._again: dict[Path, float] = {}  # when a published volume is looked at again

    def _plugin(self, driver: str) -> Plugin:
        path = self._socket(driver)
        if path is None:
            raise ConfigError(f"kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name {driver} not "
                              "found in the list of registered CSI drivers")
        return Plugin(path)

    def _told(self, path: Path) -> str:
        """A path of ours as the driver knows it."""
        return str(self._home / path.relative_to(self._root))

    def staging(self, driver: str, handle: str) -> Path:
        digest = hashlib.sha256(handle.encode()).hexdigest()
        return self._root / "plugins/kubernetes.io/csi" / driver / digest / "globalmount"

    def _turn(self, driver: str, handle: str) -> asyncio.Lock:
        return self._turns.setdefault(f"{driver}^{handle}", asyncio.Lock())

    # --- into a pod

    def due(self, folder: Path) -> bool:
        """Whether the volume at `folder` is to be published, or looked at again."""
        return self._again.get(folder, 0.0) <= self._clock.now()

    async def publish(self, pod: Object, claimed: Claimed | None, inline: Object | None,
                      folder: Path) -> tuple[str, float]:
        """Have the volume at `folder`/mount: its path, and when to ask again (0.0 = never). `claimed` or the pod's own
        `inline` source says which. Raises ConfigError, ApiError, OSError."""
        source, target = source_of(pod, claimed, inline), folder / "mount"
        there = self._mounts.mounted(target)
        if there and not self.due(folder):
            return str(target), self._again[folder]
        async with self._turn(source.driver, source.handle), self._plugin(source.driver) as plugin:
            try:
                again = await self._publish(pod, source, plugin, folder, there)
            except grpc.aio.AioRpcError as error:
                raise ConfigError(describe(error)) from error
        self._again[folder] = again or float("inf")
        return str(target), again

    async def _publish(self, pod: Object, source: Source, plugin: Plugin, folder: Path, there: bool) -> float:
        """Stage, publish and grow the volume, as far as that is to be done; when to look at it again."""
        target = folder / "mount"
        driver = await self._driver(source.driver)
        can = await self._capabilities(plugin)
        renewed = objects.get(driver, "spec.requiresRepublish") is True
        group = fs_group(pod) if MOUNT_GROUP in can else None
        ability = capability(source, group)
        staged = ""
        if STAGE in can and not source.ephemeral:
            staged = self._told(self.staging(source.driver, source.handle))
        if not there or renewed:
            context = await self._attached(source, driver)
            if staged and not any(self._mounts.mounted(held / "mount") for held in
                                  self._holders(source.driver, source.handle)):
                self.staging(source.driver, source.handle).mkdir(parents=True, exist_ok=True, mode=0o750)
                await plugin.node.NodeStageVolume(csi.NodeStageVolumeRequest(
                    volume_id=source.handle, publish_context=context, staging_target_path=staged,
                    volume_capability=ability, secrets=await self._secret(source.stage_secret),
                    volume_context=source.attributes), timeout=CALL_SECONDS)
            self._note(folder, source)
            told, secrets = context_of(pod, source, driver), await self._secret(source.publish_secret)
            if wanted := objects.get(driver, "spec.tokenRequests", []):
                hidden = objects.get(driver, "spec.serviceAccountTokenInSecrets") is True
                (secrets if hidden else told)[TOKENS] = await self._tokens.bundle(pod, wanted)
            await plugin.node.NodePublishVolume(csi.NodePublishVolumeRequest(
                volume_id=source.handle, publish_context=context, staging_target_path=staged,
                target_path=self._told(target), volume_capability=ability, readonly=source.read_only, secrets=secrets,
                volume_context=told), timeout=CALL_SECONDS)
            if not there and group is None and changes_ownership(source, driver):
                await asyncio.to_thread(ownership.apply, pod, str(target), source.read_only)
        if EXPAND in can and grows(source):
            await self._grow(source, plugin, target, staged, ability)
        watched = renewed or (EXPAND in can and source.claim is not None)
        return self._clock.now() + self._clock.jitter(AGAIN_SECONDS, 0.2) if watched else 0.0

    async def _grow(self, source: Source, plugin: Plugin, target: Path, staged: str, ability: Any) -> None:
        """Have the driver make the file system as large as the volume has become, and the claim say so."""
        assert source.claim is not None
        try:
            await plugin.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(
                volume_id=source.handle, volume_path=self._told(target), staging_target_path=staged,
                volume_capability=ability, capacity_range={"required_bytes": quantity.parse(source.capacity).value()},
                secrets=await self._secret(source.expand_secret)), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"MountVolume.NodeExpandVolume failed for volume {source.name}: "
                              f"{describe(error)}") from error
        claim = await self._client.get(CLAIMS, source.claim[1], source.claim[0])
        await self._client.patch(CLAIMS, source.claim[1], grown(claim, source), source.claim[0], "merge", "status")

    def _note(self, folder: Path, source: Source) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        (folder / DATA).write_text(json.dumps({
            "driverName": source.driver, "volumeHandle": source.handle, "specVolID": source.name,
            "nodeName": self._node, "volumeLifecycleMode": "Ephemeral" if source.ephemeral else "Persistent"}))

    async def _driver(self, name: str) -> Object:
        try:
            return await self._client.get(DRIVERS, name)
        except NotFound:
            return {}

    async def _capabilities(self, plugin: Plugin) -> set[int]:
        answer = await plugin.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest(), timeout=CALL_SECONDS)
        return {one.rpc.type for one in answer.capabilities}

    async def _attached(self, source: Source, driver: Object) -> dict[str, str]:
        """What the attacher tells the node of the volume. Raises ConfigError while it is not attached."""
        if source.ephemeral or (driver.get("spec") or {}).get("attachRequired", True) is False:
            return {}
        name = attachment_name(source, self._node)
        try:
            found = (await self._client.get(ATTACHMENTS, name)).get("status") or {}
        except ApiError:  # not made yet; a node may not even ask for what is not there
            found = {}
        if not found.get("attached"):
            problem = (found.get("attachError") or {}).get("message") or "it is not attached to this node yet"
            raise ConfigError(f"volume {source.handle}: {problem}")
        return dict(found.get("attachmentMetadata") or {})

    async def _secret(self, where: tuple[str, str] | None) -> dict[str, str]:
        if where is None:
            return {}
        secret = await self._client.get(named("secrets"), where[1], where[0])
        return {k: base64.b64decode(v or "").decode(errors="replace") for k, v in (secret.get("data") or {}).items()}

    # --- and back

    def published(self, uid: str = "*") -> list[tuple[Path, Object]]:
        """Every published volume of a pod, or of all pods: its folder and what is known of it."""
        found = []
        for path in self._root.glob(f"pods/{uid}/volumes/kubernetes.io~csi/*/{DATA}"):
            with contextlib.suppress(OSError, ValueError):
                found.append((path.parent, json.loads(path.read_text())))
        return found

    def _holders(self, driver: str, handle: str) -> list[Path]:
        """The folders at which the volume is published."""
        return [folder for folder, data in self.published()
                if (data["driverName"], data["volumeHandle"]) == (driver, handle)]

    def in_use(self) -> list[str]:
        """Names of the volumes mounted here, for the Node's status."""
        return sorted({f"kubernetes.io/csi/{data['driverName']}^{data['volumeHandle']}" for _, data in self.published()
                       if data.get("volumeLifecycleMode") != "Ephemeral"})

    async def usage(self, folder: Path, data: Object) -> Object | None:
        """What the driver says a published volume holds, as /stats/summary tells it; None when it cannot say."""
        try:
            async with self._plugin(data["driverName"]) as plugin:
                if STATS not in await self._capabilities(plugin):
                    return None
                staged = self.staging(data["driverName"], data["volumeHandle"])
                answer = await plugin.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(
                    volume_id=data["volumeHandle"], volume_path=self._told(folder / "mount"),
                    staging_target_path=self._told(staged) if staged.exists() else ""), timeout=STATS_SECONDS)
        except (grpc.aio.AioRpcError, ConfigError) as error:
            log.debug("volume %s: %s", data["volumeHandle"], error)
            return None
        return usage_from(answer)

    async def unpublish(self, uid: str) -> None:
        """Give back every volume of the pod. Raises ConfigError; may be repeated."""
        for folder, data in self.published(uid):
            driver, handle = data["driverName"], data["volumeHandle"]
            async with self._turn(driver, handle), self._plugin(driver) as plugin:
                try:
                    await plugin.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(
                        volume_id=handle, target_path=self._told(folder / "mount")), timeout=CALL_SECONDS)
                    (folder / DATA).unlink(missing_ok=True)
                    self._again.pop(folder, None)
                    await self._unstage(plugin, driver, handle)
                except grpc.aio.AioRpcError as error:
                    raise ConfigError(f'UnmountVolume.TearDown failed for volume "{data["specVolID"]}" : '
                                      f"{describe(error)}") from error

    async def _unstage(self, plugin: Plugin, driver: str, handle: str) -> None:
        staging = self.staging(driver, handle)
        if not staging.exists() or self._holders(driver, handle):
            return
        await plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(
            volume_id=handle, staging_target_path=self._told(staging)), timeout=CALL_SECONDS)
        with contextlib.suppress(OSError):
            staging.rmdir()
            staging.parent.rmdir()
