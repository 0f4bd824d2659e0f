"""An OCI image as blobs: configuration, manifest and layers, addressed by their digests.

Owns the two JSON documents and their media types. Pure: bytes in, bytes out, the same for the same input (no time, no
host name). Called by whoever builds an image; `archive` packs the result and `importer` hands it to containerd.

Specification: opencontainers/image-spec v1.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CREATED = "1970-01-01T00:00:00Z"  # an image's age says nothing when it is rebuilt from the same content
COMPRESSION = 4  # layers stay on this host: packing time counts for more than the last percents of size

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x",
             "riscv64": "riscv64"}


def architecture() -> str:
    """This machine's architecture in image terms: `amd64`."""
    return _MACHINES.get(platform.machine(), platform.machine())


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def document(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class Blob:
    """Content by digest; `open` gives it anew at every call, so that a large one need not be in memory."""

    digest: str
    size: int
    media_type: str
    open: Callable[[], BinaryIO] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Blob:
        return cls(digest(data), len(data), media_type, lambda: io.BytesIO(data))

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest with what it refers to. `names` are full references such as `docker.io/library/busybox:1`."""

    names: tuple[str, ...]
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every blob, the manifest last: whoever stores them in this order never has a dangling reference."""
        return (*self.layers, self.config, self.manifest)


def manifest_of(config: Blob, layers: Sequence[Blob]) -> Blob:
    return Blob.of(document({"schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
                             "layers": [layer.descriptor() for layer in layers]}), MANIFEST)


def build(names: Sequence[str], layers: Sequence[bytes], config: dict[str, Any], arch: str = "") -> Image:
    """An image of uncompressed tar `layers`, lowest first. `config` is the OCI config object: `Cmd`, `Entrypoint`,
    `Env`,
    `User`, `WorkingDir`, `ExposedPorts`, `StopSignal`."""
    packed = [Blob.of(gzip.compress(raw, COMPRESSION, mtime=0), LAYER) for raw in layers]
    described = Blob.of(document({
        "architecture": arch or architecture(), "os": "linux", "created": CREATED, "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(raw) for raw in layers]},
        "history": [{"created": CREATED, "created_by": "pelamis image build"} for _ in layers]}), CONFIG)
    return Image(tuple(names), manifest_of(described, packed), described, tuple(packed))
