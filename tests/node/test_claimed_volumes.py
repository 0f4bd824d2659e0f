"""Volumes behind claims, as pods find them: folders and disks of the node, and those of a storage driver."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.kubelet.registry import Registry
from agent.kubelet.volumes.csidrivers import KIND
from controlplane.machinery.resources import named
from cri_proto.messages import csi, registration
from cri_proto.served import Served
from tests.node.nodekubelet import STAY, Rig, eventually, holds, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
NAME = "lab.example"
MOUNT = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
OWNER = {"runAsUser": 1000, "fsGroup": 3000}
CLAIMS, VOLUMES = named("persistentvolumeclaims"), named("persistentvolumes")


async def bound(rig: Rig, name: str, mode: str = "Filesystem", node: str = "n1", **source: Any) -> None:
    """A volume of `source` that `node` can reach, and the claim it is bound to."""
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}
    await rig.api.create(VOLUMES, {"metadata": {"name": f"pv-{name}"}, "spec": {
        "claimRef": {"uid": f"c-{name}"}, "accessModes": ["ReadWriteOnce"], "volumeMode": mode,
        "capacity": {"storage": "1Gi"}, "nodeAffinity": affinity, **source}})
    await rig.api.create(CLAIMS, {"metadata": {"name": name, "uid": f"c-{name}"}, "spec": {"volumeName": f"pv-{name}"},
                                  "status": {"phase": "Bound"}}, "default")


def using(name: str, **more: Any) -> dict[str, Any]:
    return {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name, **more}}]}


def test_folders_and_disks_of_the_node_are_handed_out_and_kept(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        rig.place = replace(rig.place, labels={"kubernetes.io/hostname": "n1"})
        folder, disk, device = tmp_path / "folder", tmp_path / "disk", os.makedev(7, 250)
        folder.mkdir()
        (folder / "old").touch(mode=0o600)
        os.mknod(disk, 0o600 | stat.S_IFBLK, device)
        await bound(rig, "folder", local={"path": str(folder)})
        await bound(rig, "disk", "Block", local={"path": str(disk)})
        await bound(rig, "plain", hostPath={"path": str(folder), "type": "Directory"})
        await bound(rig, "far", node="n2", local={"path": str(folder)})
        async with rig.kubelet():
            await rig.create("first", sh(STAY, **MOUNT), securityContext=OWNER, **using("folder"))
            await rig.create("raw", sh(STAY, volumeDevices=[{"name": "v", "devicePath": "/dev/raw"}]), **using("disk"))
            await rig.create("lost", sh(STAY, **MOUNT), **using("far"))
            await rig.create("unbound", sh(STAY, **MOUNT), **using("nothing"))
            await rig.pod("first", ready)
            await rig.inside("first", "echo kept > /v/new; echo more >> /v/old")
            assert [path.stat().st_gid for path in (folder, folder / "old", folder / "new")] == [3000] * 3
            await rig.pod("raw", ready)
            assert await rig.inside("raw", "stat -c '%F %t:%T' /dev/raw") == "block special file 7:fa"
            await rig.remove("first", "raw")
            os.chown(folder / "old", 0, 0)
            mismatch = OWNER | {"fsGroupChangePolicy": "OnRootMismatch"}
            await rig.create("second", sh(STAY, **MOUNT), securityContext=mismatch, **using("folder"))
            await rig.create("reader", sh(STAY, **MOUNT), **using("plain", readOnly=True))
            await rig.pod("second", ready)
            assert await rig.inside("second", "cat /v/new; stat -c %g /v/old") == "kept\n0"  # the top was right already
            await rig.pod("reader", ready)
            assert await rig.inside("reader", "cat /v/new; echo x 2>/dev/null > /v/x || echo refused") \
                == "kept\nrefused"
            for text in ('NodeAffinity check failed for volume "pv-far"', 'persistentvolumeclaims "nothing" not found'):
                await eventually(lambda text=text: holds(any(text in message for message in unmounted(rig))))
            await rig.remove("second", "reader", "lost", "unbound")
            assert (folder / "new").read_text() == "kept\n" and disk.is_block_device()
    run(host, body)


def unmounted(rig: Rig) -> list[str]:
    return [o["message"] for (plural, _, _), o in rig.api.objects.items()
            if plural == "events" and o["reason"] == "FailedMount"]


class Driver:
    """A storage driver whose volumes are folders below `store`: staged and published by mounting them."""

    def __init__(self, store: Path, socket: Path) -> None:
        self.store, self.socket, self.calls = store, socket, list[str]()
        self.registered = asyncio.Event()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((
            Served(csi, "Node", "csi.v1.Node", lambda: self),
            Served(registration, "Registration", "pluginregistration.Registration", lambda: self)))
        server.add_insecure_port(f"unix://{self.socket}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)
            self.socket.unlink(missing_ok=True)

    async def _do(self, *command: str | Path) -> None:
        done = await asyncio.create_subprocess_exec(*command)
        assert await done.wait() == 0, command

    async def _bind(self, source: Path, target: str, read_only: bool = False) -> None:
        os.makedirs(target, exist_ok=True)
        await self._do("mount", "--bind", source, target)
        if read_only:
            await self._do("mount", "-o", "remount,bind,ro", target)

    async def GetInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return registration.PluginInfo(type=KIND, name=NAME, endpoint=str(self.socket), supported_versions=["1.0.0"])

    async def NotifyRegistrationStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        assert request.plugin_registered, request.error
        self.registered.set()
        return registration.RegistrationStatusResponse()

    async def NodeGetInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return csi.NodeGetInfoResponse(node_id="lab-n1")

    async def NodeGetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        return csi.NodeGetCapabilitiesResponse(capabilities=[{"rpc": {"type": 1}}])  # STAGE_UNSTAGE_VOLUME

    async def NodeStageVolume(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append(f"stage {request.volume_id} {request.volume_context['colour']}")
        (self.store / request.volume_id).mkdir(exist_ok=True)
        await self._bind(self.store / request.volume_id, request.staging_target_path)
        return csi.NodeStageVolumeResponse()

    async def NodePublishVolume(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append(f"publish {request.volume_context.get('csi.storage.k8s.io/pod.name', '')}")
        source = Path(request.staging_target_path) if request.staging_target_path else self.store
        await self._bind(source, request.target_path, request.readonly)
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("unpublish")
        await self._do("umount", request.target_path)
        os.rmdir(request.target_path)
        return csi.NodeUnpublishVolumeResponse()

    async def NodeUnstageVolume(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append(f"unstage {request.volume_id}")
        await self._do("umount", request.staging_target_path)
        return csi.NodeUnstageVolumeResponse()


@asynccontextmanager
async def drivers(rig: Rig) -> AsyncIterator[None]:
    """What the agent runs beside the kubelet to hear of storage drivers."""
    listening = asyncio.create_task(Registry(rig.host.paths.kubelet, {KIND: rig.drivers}).run())
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def test_a_storage_drivers_volumes_are_staged_shared_and_given_back(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        rig.place = replace(rig.place, labels={"kubernetes.io/hostname": "n1"})
        await rig.api.create(named("nodes"), {"metadata": {"name": "n1"}})
        await rig.api.create(named("csidrivers.storage.k8s.io"), {"metadata": {"name": NAME}, "spec": {
            "attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "File"}})
        await bound(rig, "data", csi={"driver": NAME, "volumeHandle": "h1", "volumeAttributes": {"colour": "red"}})
        (rig.host.paths.kubelet / "plugins_registry").mkdir(parents=True, exist_ok=True)
        driver = Driver(tmp_path, rig.host.paths.kubelet / "plugins_registry/lab.sock")
        async with driver.serve():
            async with rig.kubelet(), drivers(rig):
                await rig.create("first", sh(STAY, **MOUNT), securityContext=OWNER, **using("data"))
                await rig.create("second", sh(STAY, **MOUNT), **using("data", readOnly=True))
                await rig.create("inline", sh(STAY, **MOUNT), volumes=[{"name": "v", "csi": {"driver": NAME}}])
                for name in ("first", "second", "inline"):
                    await rig.pod(name, ready)
                assert rig.api.objects["csinodes", "", "n1"]["spec"]["drivers"][0]["nodeID"] == "lab-n1"
                assert await rig.inside("first", "echo kept > /v/file; stat -c %g /v/file") == "3000"
                assert await rig.inside("second", "cat /v/file; echo x 2>/dev/null > /v/x || echo refused") \
                    == "kept\nrefused"
                assert (tmp_path / "h1/file").read_text() == "kept\n"
                assert await rig.inside("inline", "ls /v") == "h1"
                assert driver.calls.count("stage h1 red") == 1
                assert {"publish first", "publish second", "publish inline"} <= set(driver.calls)
                await rig.remove("first", "inline")
                assert "unstage h1" not in driver.calls  # the other pod has it
            driver.registered.clear()
            async with rig.kubelet(), drivers(rig):  # another kubelet gives back what the one before has taken
                await driver.registered.wait()
                await rig.remove("second")
                assert driver.calls[-1] == "unstage h1" and driver.calls.count("unpublish") == 3
                assert str(host.paths.kubelet) not in host.call("cat", "/proc/mounts")
                await rig.create("third", sh(STAY, **MOUNT), **using("data"))
                await rig.pod("third", ready)
                assert await rig.inside("third", "cat /v/file") == "kept"
                await rig.remove("third")
    run(host, body)
