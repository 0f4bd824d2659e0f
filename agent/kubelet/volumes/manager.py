"""The volumes of pods: everything a container mounts is made here, kept up to date, and taken down with the pod.

Owns the folder `pods/<uid>/volumes`. Promises that `set_up` is idempotent and concurrent per volume, that secrets and
tokens lie on tmpfs only, that a subPath cannot lead out of its volume, and that `take_down` unmounts before it removes.
Called by `worker`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.volumes import payload, persistent, plugins, subpaths, trustbundles
from agent.kubelet.volumes.claims import Claims
from agent.kubelet.volumes.csi import CsiVolumes
from agent.kubelet.volumes.imagevolumes import ImageVolumes
from agent.kubelet.volumes.mounts import Mounts
from agent.kubelet.volumes.objects import Objects
from agent.kubelet.volumes.patience import within
from agent.kubelet.volumes.tokens import Tokens
from agent.kubelet.volumes.volumestats import VolumeStats

if TYPE_CHECKING:
    from agent.kubelet.volumes.podcertificates import PodCertificates

REMOVE_TRIES = 3  # a process that is just ending may still write
OWNERSHIP_SECONDS = 900.0  # a volume of millions of files is given to its group in minutes
TAKE_DOWN_SECONDS = 120.0  # a full emptyDir takes a while; a mount whose server is gone takes for ever
DRIVER_TRIES = 5  # how often a storage driver is asked for a volume back before its mount is ended without it


class Volumes:
    """`claims` and `csi` serve persistent volumes, `images` those made of images; without them pods that want some are
    told so."""

    def __init__(self, root: Path, objects: Objects, tokens: Tokens, mounts: Mounts | None = None,
                 claims: Claims | None = None, csi: CsiVolumes | None = None,
                 images: ImageVolumes | None = None) -> None:
        self._root, self.objects, self._tokens = root, objects, tokens
        self._claims, self.csi, self.images = claims, csi, images
        self.stats = VolumeStats(claims, csi) if claims is not None and csi is not None else None
        self._refusals: dict[str, int] = {}  # pod uid -> how often a storage driver did not take a volume back
        self._mounts = mounts or Mounts()
        self._stamp = 0
        self.patience = TAKE_DOWN_SECONDS
        self.certify: Callable[[], PodCertificates] | None = None  # makes what asks for certificates, when first needed
        self._certificates: PodCertificates | None = None

    def _folder(self, uid: str) -> Path:
        return self._root / "pods" / uid

    def path(self, pod: dict[str, Any], volume: dict[str, Any]) -> Path:
        kind = plugins.kind_of(volume)
        return self._folder(pod["metadata"]["uid"]) / "volumes" / plugins.FOLDERS[kind] / volume["name"]

    async def set_up(self, pod: dict[str, Any], sources: Sources,
                     images: Mapping[str, str] | None = None) -> tuple[dict[str, str], float]:
        """(host path of every volume by name, when a token wants renewal or 0.0). `images` are the ids of the images of
        `unpulled` volumes by their names. Raises ConfigError, ApiError, OSError; the message names the volume."""
        volumes = pod["spec"].get("volumes") or []
        results = await asyncio.gather(*(self._one(pod, v, sources, images or {}) for v in volumes))
        renewals = [when for _, when in results if when]
        return {v["name"]: path for v, (path, _) in zip(volumes, results)}, min(renewals, default=0.0)

    def unpulled(self, pod: dict[str, Any]) -> list[dict[str, Any]]:
        """The pod's image volumes that are not mounted yet: their images are the caller's to pull."""
        return [v for v in pod["spec"].get("volumes") or () if v.get("image")
                and not self._mounts.mounted(self.path(pod, v))]

    async def _image(self, pod: dict[str, Any], volume: dict[str, Any], images: Mapping[str, str]) -> str:
        folder = self.path(pod, volume)
        if volume["name"] not in images:
            return str(folder)
        if self.images is None:
            raise ConfigError("image volumes need containerd")
        return await self.images.mount(pod["metadata"]["uid"], volume["name"], images[volume["name"]], folder)

    async def _one(self, pod: dict[str, Any], volume: dict[str, Any], sources: Sources,
                   images: Mapping[str, str]) -> tuple[str, float]:
        kind = plugins.kind_of(volume)
        folder = self.path(pod, volume)
        try:
            if kind == "image":
                return await self._image(pod, volume, images), 0.0
            if kind == "hostPath" and (volume["hostPath"].get("type") or ""):  # it is looked at, and may hang
                path = volume["hostPath"]["path"]
                return await within(path, plugins.checked_path, volume["hostPath"]), 0.0
            if kind in plugins.PLUGINS:
                return plugins.PLUGINS[kind](pod, volume, folder, self._mounts), 0.0
            if kind == "csi" or kind in plugins.CLAIMED:
                return await self._persistent(pod, volume, kind)
            return await self._payload(pod, volume, folder, sources)
        except (ConfigError, OSError) as error:
            raise ConfigError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error

    async def _persistent(self, pod: dict[str, Any], volume: dict[str, Any], kind: str) -> tuple[str, float]:
        if self._claims is None or self.csi is None:
            raise ConfigError("persistent volumes are not served by this node")
        if kind == "csi":
            return await self.csi.publish(pod, None, volume, self._driven(pod, volume["name"]))
        claimed = await self._claims.resolve(pod, volume)
        if persistent.kind_of(claimed.volume) != "csi":
            return await within(claimed.volume["metadata"]["name"], persistent.set_up, pod, claimed,
                                seconds=OWNERSHIP_SECONDS), 0.0
        folder = self._driven(pod, claimed.volume["metadata"]["name"])
        if self.csi.due(folder):  # it may have grown
            claimed = await self._claims.resolve(pod, volume, fresh=True)
        return await self.csi.publish(pod, claimed, volume, folder)

    def _driven(self, pod: dict[str, Any], name: str) -> Path:
        """Where a storage driver publishes the volume that upstream's paths call `name`."""
        return self._folder(pod["metadata"]["uid"]) / "volumes" / plugins.FOLDERS["csi"] / name

    async def _payload(self, pod: dict[str, Any], volume: dict[str, Any], folder: Path,
                       sources: Sources) -> tuple[str, float]:
        meta = pod["metadata"]
        wanted = [(kind, name) for kind, name, _ in payload.references(volume)]
        found = await asyncio.gather(*(self.objects.get(kind, meta.get("namespace", ""), name, meta["uid"])
                                       for kind, name in wanted))
        projections, certificates = payload.tokens(volume), payload.certificates(volume)
        issued = await asyncio.gather(*(self._tokens.get(pod, p) for p in projections))
        own = {p["path"]: token for p, (token, _) in zip(projections, issued)}
        renewals = [when for _, when in issued]
        for source in certificates:
            content, when = await self._certified(pod, volume, source)
            own |= content
            renewals.append(when)
        for source in payload.bundles(volume):
            own[source["path"]] = await trustbundles.anchors(self.objects, source, meta["uid"])
        files = payload.files(pod, volume, replace(sources, objects=dict(zip(wanted, found))), own)
        user = payload.token_user(pod)
        owners = dict.fromkeys(own, user) if user is not None else {}
        self._fill(folder, files, payload.fs_group(pod), owners,
                   secret=bool(own) or any(kind == "secrets" for kind, _ in wanted))
        return str(folder), min(renewals, default=0.0)

    async def _certified(self, pod: dict[str, Any], volume: dict[str, Any],
                         source: dict[str, Any]) -> tuple[dict[str, str], float]:
        if self._certificates is None:
            if self.certify is None:
                raise ConfigError("certificates for pods are not served by this node")
            self._certificates = self.certify()
        return await self._certificates.get(pod, volume["name"], source)

    def _fill(self, folder: Path, files: payload.Files, group: int | None, owners: dict[str, int], *,
              secret: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if secret and not self._mounts.mounted(folder):
            self._mounts.tmpfs(folder)
        payload.enter(folder, group)
        self._stamp += 1
        payload.write(folder, files, f"{os.getpid()}_{self._stamp}", group, owners)

    # --- what a container mounts

    def mounts_for(self, pod: dict[str, Any], container: dict[str, Any], paths: dict[str, str],
                   variables: dict[str, str]) -> dict[str, str]:
        """The host path of each mountPath and devicePath of `container`. Raises ConfigError."""
        found = {d["devicePath"]: paths[d["name"]] for d in container.get("volumeDevices") or () if d["name"] in paths}
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            if mount["name"] not in paths:
                raise ConfigError(f'volume "{mount["name"]}" of mount {mount["mountPath"]} is not defined')
            base = paths[mount["name"]]
            sub = mount.get("subPath") or subpaths.expanded(mount.get("subPathExpr") or "", variables)
            if sub:
                place = self._folder(pod["metadata"]["uid"]) / "volume-subpaths" / mount["name"] / container["name"]
                base = subpaths.bind(self._mounts, base, sub, place / str(index))
            found[mount["mountPath"]] = base
        return found

    # --- the end

    async def tear_down(self, uid: str, *, whole: bool = True) -> None:
        """Give back, unmount and remove the pod's volumes, and with `whole` everything else of it; may be repeated.
        Raises ConfigError while a storage driver keeps a volume, OSError when something stays busy."""
        if self.csi is not None and self._refusals.get(uid, 0) < DRIVER_TRIES:
            try:
                await self.csi.unpublish(uid)
            except ConfigError:
                self._refusals[uid] = self._refusals.get(uid, 0) + 1
                raise
        had_images = (self._folder(uid) / "volumes" / plugins.FOLDERS["image"]).is_dir()
        await within(str(self._folder(uid)), self.take_down, uid, whole, seconds=self.patience)
        if self.images is not None and had_images:
            await self.images.release(uid)
        self._refusals.pop(uid, None)

    def take_down(self, uid: str, whole: bool = True) -> None:
        """Unmount and remove what lies here of the pod; blocking, for a thread. OSError when something stays busy."""
        own = self._folder(uid)
        for folder in (own,) if whole else (own / "volume-subpaths", own / "volumes"):
            for attempt in range(REMOVE_TRIES):
                self._mounts.unmount_below(folder)
                if not folder.exists():
                    break
                shutil.rmtree(folder, ignore_errors=attempt < REMOVE_TRIES - 1)

    def release(self, uid: str) -> None:
        self.objects.release(uid)
        self._tokens.release(uid)
        if self._certificates is not None:
            self._certificates.release(uid)
        if self._claims is not None:
            self._claims.release(uid)
