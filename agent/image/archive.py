"""Images in one tar file: writes the OCI layout, reads that and `docker save`'s format.

Owns both formats. Reading never unpacks to disk and never holds a layer in memory: blobs are opened in the archive when
asked for. Nested indexes are followed and the manifest for this machine is chosen. Raises Finding for a file that is
neither. Called by `demo`, `importer` and `pelamis image`.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from agent.image import oci
from controlplane.machinery.errors import Finding

MAX_DOCUMENT = 4 << 20  # manifests, configurations and indexes are a few kilobytes
MAX_DEPTH = 3  # an index of indexes of manifests; deeper nesting is no honest image
CHUNK = 1 << 20

_NAME = "io.containerd.image.name"  # the annotations that carry an image's full name, and only its tag
_TAG = "org.opencontainers.image.ref.name"
_INDEXES = (oci.INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")


def write(path: Path, images: Iterable[oci.Image]) -> None:
    """An OCI layout with `images`, replacing `path` in one step."""
    manifests = []
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with tarfile.open(scratch, "w", format=tarfile.PAX_FORMAT) as tar:
        _put(tar, "oci-layout", oci.document({"imageLayoutVersion": "1.0.0"}))
        stored: set[str] = set()
        for image in images:
            for name in image.names:
                manifests.append({**image.manifest.descriptor(),
                                  "platform": {"architecture": oci.architecture(), "os": "linux"},
                                  "annotations": {_NAME: name, _TAG: name.rpartition(":")[2]}})
            for blob in image.blobs:
                if blob.digest not in stored:
                    stored.add(blob.digest)
                    info = tarfile.TarInfo(_place(blob.digest))
                    info.size = blob.size
                    with blob.open() as source:
                        tar.addfile(info, source)
        _put(tar, "index.json", oci.document({"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": manifests}))
    scratch.replace(path)


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _place(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


class Archive:
    """An open archive; blobs of its images can be opened until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115 - closed by __exit__
            self._members = {os.path.normpath(m.name): m for m in self._tar.getmembers()}
        except (OSError, tarfile.TarError) as error:
            raise Finding(f"{path} is no image archive", str(error).splitlines()[0].rstrip(":"),
                          "give a file written by `docker save`, `pelamis image build` or another OCI tool") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def images(self) -> list[oci.Image]:
        """What the archive holds for this machine. Raises Finding when that is nothing."""
        if "index.json" in self._members:
            entries = self._json("index.json").get("manifests") or []
            found = [image for entry in entries if (image := self._oci(entry, 0, self._names(entry)))]
        elif "manifest.json" in self._members:
            found = [self._docker(entry) for entry in self._json("manifest.json")]
        else:
            raise self._bad("it has neither index.json nor manifest.json")
        if not found:
            raise self._bad(f"it holds no named image for {oci.architecture()}")
        return found

    def _names(self, entry: dict[str, Any]) -> list[str]:
        annotations = entry.get("annotations") or {}
        full = annotations.get(_NAME) or annotations.get(_TAG) or ""
        if ("/" not in full and ":" not in full) and "manifest.json" in self._members:
            # `docker save` keeps the names in its own document beside the OCI index.
            return [name for e in self._json("manifest.json") for name in e.get("RepoTags") or []]
        return [full] if full else []

    def _oci(self, entry: dict[str, Any], depth: int, names: list[str]) -> oci.Image | None:
        wanted = entry.get("platform") or {}
        if wanted.get("architecture", oci.architecture()) != oci.architecture() or depth > MAX_DEPTH or not names:
            return None
        if _place(entry["digest"]) not in self._members:
            return None  # another machine's part of an index that was saved in part
        manifest = self._blob(entry)
        if entry["mediaType"] in _INDEXES:
            inner = self._json(_place(entry["digest"])).get("manifests") or []
            return next((image for e in inner if (image := self._oci(e, depth + 1, names))), None)
        parsed = self._json(_place(entry["digest"]))
        return oci.Image(tuple(names), manifest, self._blob(parsed["config"]),
                         tuple(self._blob(layer) for layer in parsed["layers"]))

    def _docker(self, entry: dict[str, Any]) -> oci.Image:
        config = oci.Blob.of(self._bytes(entry["Config"]), oci.CONFIG)
        layers = [self._hashed(os.path.normpath(name)) for name in entry["Layers"]]
        return oci.Image(tuple(entry.get("RepoTags") or ()), oci.manifest_of(config, layers), config, tuple(layers))

    def _hashed(self, name: str) -> oci.Blob:
        """A layer of docker's format, which names it by path: its digest has to be computed."""
        running = hashlib.sha256()
        with self._open(name) as source:
            start = source.read(2)
            running.update(start)
            while chunk := source.read(CHUNK):
                running.update(chunk)
        kind = oci.LAYER if start == b"\x1f\x8b" else oci.LAYER.removesuffix("+gzip")
        return oci.Blob(f"sha256:{running.hexdigest()}", self._members[name].size, kind, lambda: self._open(name))

    def _blob(self, descriptor: dict[str, Any]) -> oci.Blob:
        name = _place(descriptor["digest"])
        if name not in self._members:
            raise self._bad(f"blob {descriptor['digest']} is missing")
        return oci.Blob(descriptor["digest"], self._members[name].size, descriptor["mediaType"],
                        lambda: self._open(name))

    def _open(self, name: str) -> BinaryIO:
        member = self._members.get(name)
        source = self._tar.extractfile(member) if member is not None else None
        if source is None:
            raise self._bad(f"{name} is missing")
        return cast(BinaryIO, source)

    def _bytes(self, name: str) -> bytes:
        with self._open(os.path.normpath(name)) as source:
            return source.read(MAX_DOCUMENT)

    def _json(self, name: str) -> Any:
        try:
            return orjson.loads(self._bytes(name))
        except orjson.JSONDecodeError as error:
            raise self._bad(f"{name} is not JSON") from error

    def _bad(self, why: str) -> Finding:
        return Finding(f"{self._path} is no usable image archive", why, "save the image again and compare the sizes")
