"""Hands images to containerd over its own API: blobs into the content store, names onto manifests.

Owns the order that keeps the garbage collector away: a lease first, blobs with references from manifest to the rest,
then the names, then the lease goes. Promises that an image is visible to the kubelet when a call returns, and that
repeating an import is harmless. Needs no `ctr` and no registry. Called by `images.Images.import_archive`, `demo` and
the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.image import oci
from agent.image.archive import Archive
from agent.image.reference import normalise
from controlplane.machinery.clock import SYSTEM, Clock, rfc3339
from controlplane.machinery.errors import Finding
from cri_proto.client import Connection, describe, metadata
from cri_proto.messages import containerd, cri

CALL_SECONDS = 60.0
BLOB_SECONDS = 1800.0  # gigabytes onto a slow disk
LEASE_SECONDS = 3600  # after a crash the collector may take what was never named
CHUNK = 1 << 20
SEEN_SECONDS, SEEN_PAUSE = 10.0, 0.005  # the CRI plugin learns of a new image from an event, milliseconds later


async def import_archive(connection: Connection, path: Path, clock: Clock = SYSTEM) -> list[str]:
    """Import every image of the archive; the normalised names. Raises Finding."""
    with Archive(path) as archive:
        names = []
        for image in archive.images():
            names += await import_image(connection, image, clock)
        return names


async def import_image(connection: Connection, image: oci.Image, clock: Clock = SYSTEM) -> list[str]:
    """Store `image` and name it; the normalised names. Raises Finding when containerd refuses it."""
    names = [normalise(name) for name in image.names]
    if not names:
        raise Finding("the image has no name", "a pod could not refer to it", "save it with its tag: NAME:TAG")
    try:
        return await _import(connection, image, names, clock)
    except grpc.aio.AioRpcError as error:
        raise Finding(f"containerd did not take image {names[0]}", describe(error),
                      "see that it runs: ./pelamis status") from error


async def _import(connection: Connection, image: oci.Image, names: list[str], clock: Clock) -> list[str]:
    leases = connection.containerd("Leases")
    lease = (await leases.Create(containerd.CreateLeaseRequest(
        id=f"pelamis-import-{clock.uid()}", labels={"containerd.io/gc.expire": rfc3339(clock.now() + LEASE_SECONDS)}),
        metadata=metadata(), timeout=CALL_SECONDS)).lease.id
    try:
        for blob in image.blobs:
            labels = _references(image) if blob.digest == image.manifest.digest else {}
            await _store(connection, blob, labels, lease)
        for name in names:
            await _name(connection, name, image, lease)
        for name in names:
            await _visible(connection, name, image.config.digest, clock)
    finally:
        await leases.Delete(containerd.DeleteLeaseRequest(id=lease), metadata=metadata(), timeout=CALL_SECONDS)
    return names


def _references(image: oci.Image) -> dict[str, str]:
    """The labels from which the garbage collector knows what a manifest needs."""
    return {"containerd.io/gc.ref.content.config": image.config.digest,
            **{f"containerd.io/gc.ref.content.l.{i}": layer.digest for i, layer in enumerate(image.layers)}}


async def _store(connection: Connection, blob: oci.Blob, labels: dict[str, str], lease: str) -> None:
    """Write one blob; that it is there already is success, and an interrupted write is taken up where it stopped.

    Raises Finding."""
    common = {"ref": f"pelamis-{blob.digest}", "total": blob.size, "expected": blob.digest}
    call = connection.containerd("Content").Write(metadata=metadata(lease), timeout=BLOB_SECONDS)
    try:
        # Asked first: containerd would cut the stream off in the middle if it had the blob.
        offset = (await _exchange(call, containerd.WriteContentRequest(action=containerd.STAT, **common))).offset
        with blob.open() as source:
            source.seek(offset)
            while data := source.read(CHUNK):
                await _exchange(call, containerd.WriteContentRequest(action=containerd.WRITE, offset=offset, data=data,
                                                                     **common))
                offset += len(data)
        await _exchange(call, containerd.WriteContentRequest(action=containerd.COMMIT, offset=offset, labels=labels,
                                                             **common))
        await call.done_writing()
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.ALREADY_EXISTS:
            raise Finding(f"containerd did not take blob {blob.digest}", describe(error),
                          "the archive may be damaged: compare its size with the original") from error
    finally:
        call.cancel()


async def _exchange(call: Any, request: Any) -> Any:
    """One request and its answer. Raises AioRpcError with the stream's status when that ends instead."""
    try:
        await call.write(request)
    except asyncio.InvalidStateError:
        pass  # ended meanwhile: reading tells why
    answer = await call.read()
    if answer is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata(),
                                   await call.details())
    return answer


async def _name(connection: Connection, name: str, image: oci.Image, lease: str) -> None:
    """Point `name` at the manifest, whatever it pointed at before."""
    target = containerd.Descriptor(media_type=image.manifest.media_type, digest=image.manifest.digest,
                                   size=image.manifest.size)
    request = containerd.ImageRequest(image=containerd.Image(name=name, target=target))
    service = connection.containerd("Images")
    try:
        await service.Create(request, metadata=metadata(lease), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.ALREADY_EXISTS:
            raise
        await service.Update(request, metadata=metadata(lease), timeout=CALL_SECONDS)


async def _visible(connection: Connection, name: str, config: str, clock: Clock) -> None:
    """Wait until the CRI plugin knows `name` as this very image."""
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
    deadline = clock.monotonic() + SEEN_SECONDS
    while True:
        answer = await connection.image.ImageStatus(request, timeout=CALL_SECONDS)
        if answer.image.id == config:
            return
        if clock.monotonic() > deadline:
            raise Finding(f"image {name} was stored but the runtime does not offer it",
                          fix="see containerd's log; restarting containerd makes it read its images again")
        await clock.sleep(SEEN_PAUSE)


async def missing(connection: Connection, names: Iterable[str]) -> list[str]:
    """Those of `names` that this node does not have."""
    absent = []
    for name in names:
        answer = await connection.image.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)),
                                                    timeout=CALL_SECONDS)
        if not answer.image.id:
            absent.append(name)
    return absent
