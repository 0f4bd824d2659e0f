"""Images on this node: present when a container needs them, by the pod's pull policy.

Owns the normal form of image names, the pull policies with upstream's error reasons and messages, which pull secret
fits a registry, and the import of archives (air-gapped nodes have no registry). Promises that the same image is pulled
once however many pods ask at the same time, that few pulls run at once, and that a pod gets no image that another one's
credentials brought here (`pulls`). Never logs or keeps a credential, and
never backs off: the pod worker does. Called by the pod workers and by `pelamis image`.

Upstream: pkg/kubelet/images/image_manager.go; reference grammar: distribution/reference.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agent.image.reference import DEFAULT_REGISTRY, ImageError, normalise
from agent.kubelet.images.credentials import fits
from agent.kubelet.images.pulls import Pulls
from controlplane.machinery.clock import SYSTEM, Clock
from cri_proto.client import Connection, describe
from cri_proto.messages import cri

CALL_SECONDS = 60.0
PULL_SECONDS = 1800.0  # containerd itself gives up a pull that makes no progress for minutes; this bounds the slow ones
PARALLEL_PULLS = 3  # more only share the same link and disk

Auths = Mapping[str, Mapping[str, str]]  # the `auths` of one .dockerconfigjson: registry -> username, password, auth …


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this node: `id` is the digest of its configuration, `size` in bytes."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    user: str = ""  # the image's own user: a number or a name; "" = root or unset
    pinned: bool = False  # the runtime itself needs it


def _path(registry: str) -> str:
    """A key of `auths` as host and path: `https://index.docker.io/v1/` -> `docker.io`."""
    path = registry.partition("://")[2] if "://" in registry else registry
    path = path.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    return DEFAULT_REGISTRY if path in ("index.docker.io", "registry-1.docker.io") else path


def credentials(image: str, auths: Sequence[Auths]) -> list[Mapping[str, str]]:
    """The entries of the pull secrets that fit the normalised `image`, the longest registry path first."""
    fitting = []
    for secret in auths:
        for registry, entry in secret.items():
            path = _path(registry)
            if fits(path, image):
                fitting.append((len(path), entry))
    return [entry for _, entry in sorted(fitting, key=lambda f: -f[0])]


def auth_message(entry: Mapping[str, str]) -> Any:
    """One entry as CRI's AuthConfig, its packed `auth` field unpacked."""
    user, password = entry.get("username", ""), entry.get("password", "")
    if not user and entry.get("auth"):
        try:
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            pass
    return cri.AuthConfig(username=user, password=password.rstrip("\0"),
                          identity_token=entry.get("identitytoken", ""),
                          registry_token=entry.get("registrytoken", ""))


class Images:
    """The node's images over one `Connection`, which the caller opens and closes."""

    def __init__(self, connection: Connection, clock: Clock = SYSTEM, parallel: int = PARALLEL_PULLS,
                 pulls: Pulls | None = None) -> None:
        self.connection, self._pulls = connection, pulls
        self._calls = connection.image
        self._clock = clock
        self._slots = asyncio.Semaphore(parallel)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def may_use(self, id: str, name: str, auths: Sequence[Auths] = ()) -> bool:
        """Whether a pod with these pull secrets may use the image that is here by its normalised name."""
        return self._pulls is None or self._pulls.allows(id, name, map(_packed, credentials(name, auths)))

    async def ensure(self, reference: str, policy: str, auths: Sequence[Auths] = (), own: Sequence[Auths] = ()) -> str:
        """Have the image that a pod calls `reference` and return the id the runtime knows it by.

        `policy` is Always, IfNotPresent or Never; `auths` are the pod's pull secrets, `own` what every pod of this node
        may use. Raises ImageError."""
        name = normalise(reference)
        if policy != "Always":
            found = await self.find(name)
            if found is not None and self.may_use(found.id, name, auths):
                return found.id
            if policy == "Never":
                raise ImageError("ErrImageNeverPull", f'Container image "{reference}" is ' + (
                    "not present with pull policy of Never" if found is None else
                    "present with pull policy of Never but does not have the proper credentials set"))
        return await self._pull_once(name, policy, auths, own)

    async def _pull_once(self, name: str, policy: str, auths: Sequence[Auths], own: Sequence[Auths]) -> str:
        """Pull under the image's lock; who waited finds the image there, unless the policy asks for a fresh look."""
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock, self._slots:
                if users and policy != "Always":
                    found = await self.find(name)
                    if found is not None and self.may_use(found.id, name, auths):
                        return found.id
                return await self._pull(name, auths, own)
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)

    async def _pull(self, name: str, auths: Sequence[Auths], own: Sequence[Auths]) -> str:
        problem, shared = "", credentials(name, own)
        for entry in [*credentials(name, [*auths, *own]), None]:
            auth = auth_message(entry) if entry is not None else None
            request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=auth)
            try:
                if self._pulls is None:
                    return await self._pulled(request)
                private = _packed(entry) if entry is not None and entry not in shared else None
                with self._pulls.pulling(name, private) as told:
                    id = await self._pulled(request)
                    made = await self.find(id)
                    told(made.id if made is not None else id)
                return id
            except grpc.aio.AioRpcError as error:
                problem = problem or describe(error)  # what the best fitting credentials met, not the last resort
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    break  # the runtime is away; other credentials cannot help
        raise ImageError("ErrImagePull", problem)

    async def _pulled(self, request: Any) -> str:
        return str((await self._calls.PullImage(request, timeout=PULL_SECONDS)).image_ref)

    async def find(self, reference: str) -> Image | None:
        """The image called `reference` (any name or an id), if this node has it. Raises ImageError ErrImageInspect."""
        try:
            answer = await self._calls.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=reference)),
                                                   timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ImageError("ImageInspectError",
                             f'Failed to inspect image "{reference}": {describe(error)}') from error
        return _image(answer.image) if answer.image.id else None

    async def import_archive(self, path: Path | str) -> list[str]:
        """Take over the images of an OCI or docker archive (a tar file); their normalised names."""
        from agent.image.importer import import_archive
        return await import_archive(self.connection, Path(path), self._clock)

    async def list(self) -> list[Image]:
        """Every image of this node."""
        try:
            answer = await self._calls.ListImages(cri.ListImagesRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ImageError("ImageInspectError", describe(error)) from error
        return [_image(image) for image in answer.images]

    async def remove(self, reference: str) -> None:
        """Forget the image with all its names; running containers keep their files. What is absent is no error."""
        if self._pulls is not None:
            self._pulls.removed(reference)
        try:
            await self._calls.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)),
                                          timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise ImageError("ErrImageRemove", describe(error)) from error

    async def filesystem(self) -> tuple[str, int]:
        """Where the images lie and how many bytes they take there."""
        answer = await self._calls.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=CALL_SECONDS)
        first = next(iter(answer.image_filesystems), None)
        return (first.fs_id.mountpoint, first.used_bytes.value) if first is not None else ("", 0)


def _packed(entry: Mapping[str, str]) -> bytes:
    """One entry, however it was written."""
    return bytes(auth_message(entry).SerializeToString(deterministic=True))


def _image(message: Any) -> Image:
    user = str(message.uid.value) if message.HasField("uid") else message.username
    return Image(message.id, tuple(message.repo_tags), tuple(message.repo_digests), message.size, user,
                 message.pinned)
