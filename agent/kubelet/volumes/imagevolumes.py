"""Image volumes: the file system of an OCI image, mounted read-only into a pod.

Owns one view of the image's snapshot per volume, made by containerd's own services and mounted by us, since the CRI of
most releases knows no mounts of images. Promises that a view lives as long as its pod, whatever becomes of the image's
names, that an image that was imported and never unpacked is unpacked first, and that views of pods that are gone are
found by their label and removed. Called by `volumes.manager`.

Upstream: KEP 4639.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.kubelet.env import ConfigError
from agent.kubelet.volumes.mounts import Mounts
from controlplane.machinery.clock import SYSTEM, Clock, rfc3339
from cri_proto.client import Connection, describe, metadata
from cri_proto.messages import containerd, cri

CALL_SECONDS = 60.0
UNPACK_SECONDS = 600.0  # of one layer, on a slow disk
LEASE_SECONDS = 3600  # after a crash the collector may take what was unpacked half-way
POD_LABEL, KEEP_LABEL = "pelamis.dev/pod", "containerd.io/gc.root"
MANIFEST_LIMIT = 8 << 20  # bytes of a manifest or a configuration


def chains(layers: list[str]) -> list[str]:
    """The names snapshots have by their layers' digests: each of all layers up to its own."""
    made: list[str] = []
    for layer in layers:
        made.append(f"sha256:{hashlib.sha256(f'{made[-1]} {layer}'.encode()).hexdigest()}" if made else layer)
    return made


class ImageVolumes:
    def __init__(self, connection: Connection, mounts: Mounts, clock: Clock = SYSTEM) -> None:
        self._connection, self._mounts, self._clock = connection, mounts, clock
        self._snapshotter = ""

    async def _call(self, service: str, method: str, request: Any, limit: float = CALL_SECONDS,
                    lease: str = "") -> Any:
        call = getattr(self._connection.containerd(service), method)
        return await call(request, metadata=metadata(lease), timeout=limit)

    async def _learn(self) -> None:
        """The snapshotter's name, which is the end of the folder where the runtime keeps images."""
        if not self._snapshotter:
            answer = await self._connection.image.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=CALL_SECONDS)
            self._snapshotter = answer.image_filesystems[0].fs_id.mountpoint.rpartition(".")[2]

    async def mount(self, uid: str, name: str, image: str, folder: Path) -> str:
        """Mount the image with the id `image` at `folder` for the pod `uid`. Raises ConfigError or OSError."""
        try:
            await self._learn()
            mounts = await self._view(f"pelamis-{uid}-{name}", uid, image)
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"cannot mount image {image}: {describe(error)}") from error
        for entry in mounts:
            self._mounts.foreign(entry.type, entry.source, folder, list(entry.options))
        return str(folder)

    async def _view(self, key: str, uid: str, image: str) -> Any:
        answer = await self._connection.image.ImageStatus(
            cri.ImageStatusRequest(image=cri.ImageSpec(image=image), verbose=True), timeout=CALL_SECONDS)
        told = json.loads(answer.info.get("info") or "{}")
        layers = ((told.get("imageSpec") or {}).get("rootfs") or {}).get("diff_ids") or []
        if not layers:
            raise ConfigError(f"the container runtime does not tell the layers of image {image}")
        request = containerd.PrepareSnapshotRequest(
            snapshotter=self._snapshotter, key=key, parent=chains(layers)[-1],
            labels={POD_LABEL: uid, KEEP_LABEL: self._clock.timestamp()})
        try:
            return (await self._call("Snapshots", "View", request)).mounts
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.ALREADY_EXISTS:
                return (await self._call("Snapshots", "Mounts", containerd.SnapshotRequest(
                    snapshotter=self._snapshotter, key=key))).mounts
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
        # It was imported and never run. What is unpacked belongs to the lease until the view holds it.
        lease = (await self._call("Leases", "Create", containerd.CreateLeaseRequest(
            id=key, labels={"containerd.io/gc.expire": rfc3339(self._clock.now() + LEASE_SECONDS)}))).lease.id
        try:
            await self._unpack(answer.image, layers, lease)
            return (await self._call("Snapshots", "View", request)).mounts
        finally:
            await self._call("Leases", "Delete", containerd.DeleteLeaseRequest(id=lease))

    # --- images that were imported and never run

    async def _unpack(self, image: Any, layers: list[str], lease: str) -> None:
        """Make the snapshots of every layer of `image`."""
        blobs = await self._layers(image)
        parent = ""
        for chain, blob in zip(chains(layers), blobs, strict=True):
            key = f"pelamis-unpack-{self._clock.uid()}"
            try:
                prepared = await self._call("Snapshots", "Prepare", containerd.PrepareSnapshotRequest(
                    snapshotter=self._snapshotter, key=key, parent=parent), lease=lease)
                await self._call("Diff", "Apply", containerd.ApplyRequest(
                    diff=containerd.Descriptor(media_type=blob["mediaType"], digest=blob["digest"], size=blob["size"]),
                    mounts=prepared.mounts), UNPACK_SECONDS, lease)
                await self._call("Snapshots", "Commit", containerd.CommitSnapshotRequest(
                    snapshotter=self._snapshotter, name=chain, key=key), lease=lease)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.ALREADY_EXISTS:
                    raise
            parent = chain

    async def _layers(self, image: Any) -> list[dict[str, Any]]:
        """The descriptors of the image's layers, from the manifest whose configuration it is."""
        name = next(iter([*image.repo_tags, *image.repo_digests]), image.id)
        found = (await self._call("Images", "List", containerd.ListImagesRequest(filters=[f'name=="{name}"']))).images
        waiting = [i.target.digest for i in found]
        while waiting:
            manifest = json.loads(await self._read(waiting.pop()))
            if (manifest.get("config") or {}).get("digest") == image.id:
                return list(manifest["layers"])
            waiting += [entry["digest"] for entry in manifest.get("manifests") or ()]
        raise ConfigError(f"image {name} has no manifest on this node")

    async def _read(self, digest: str) -> bytes:
        call = self._connection.containerd("Content").Read(containerd.ReadContentRequest(digest=digest),
                                                           metadata=metadata(), timeout=CALL_SECONDS)
        data = b""
        async for piece in call:
            data += piece.data
            if len(data) > MANIFEST_LIMIT:
                raise ConfigError(f"{digest} is larger than a manifest may be")
        return data

    # --- the end

    async def release(self, uid: str) -> None:
        """Remove the views of one pod, after they were unmounted. Raises OSError."""
        await self._remove([f'labels."{POD_LABEL}"=={uid}'], lambda known: False)

    async def sweep(self, alive: Callable[[str], bool]) -> None:
        """Remove the views of pods that are not `alive`. Raises OSError."""
        await self._remove([f'labels."{POD_LABEL}"'], alive)

    async def _remove(self, filters: list[str], alive: Callable[[str], bool]) -> None:
        try:
            await self._learn()
            call = self._connection.containerd("Snapshots").List(containerd.ListSnapshotsRequest(
                snapshotter=self._snapshotter, filters=filters), metadata=metadata(), timeout=CALL_SECONDS)
            names = [i.name async for part in call for i in part.info if not alive(i.labels.get(POD_LABEL, ""))]
            for name in names:
                await self._call("Snapshots", "Remove", containerd.SnapshotRequest(snapshotter=self._snapshotter,
                                                                                  key=name))
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise OSError(f"cannot remove a view of an image: {describe(error)}") from error
