"""The volumes of pods: everything a container mounts is made here, kept up to date, and taken down with the pod.

Owns the folder `pods/<uid>/volumes`. Promises that `set_up` is idempotent and concurrent per volume, that secrets and
tokens lie on tmpfs only, that a subPath cannot lead out of its volume, and that `take_down` unmounts before it removes.
Called by `worker`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.kubelet import env
from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.volumes import payload, plugins
from agent.kubelet.volumes.imagevolumes import ImageVolumes
from agent.kubelet.volumes.mounts import Mounts
from agent.kubelet.volumes.objects import Objects
from agent.kubelet.volumes.tokens import Tokens

REMOVE_TRIES = 3  # a process that is just ending may still write


class Volumes:
    def __init__(self, root: Path, objects: Objects, tokens: Tokens, mounts: Mounts | None = None,
                 images: ImageVolumes | None = None) -> None:
        self._root, self.objects, self._tokens, self.images = root, objects, tokens, images
        self._mounts = mounts or Mounts()
        self._stamp = 0

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
            if kind in plugins.PLUGINS:
                return plugins.PLUGINS[kind](pod, volume, folder, self._mounts), 0.0
            return await self._payload(pod, volume, folder, sources)
        except (ConfigError, OSError) as error:
            raise ConfigError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error

    async def _payload(self, pod: dict[str, Any], volume: dict[str, Any], folder: Path,
                       sources: Sources) -> tuple[str, float]:
        meta = pod["metadata"]
        wanted = [(kind, name) for kind, name, _ in payload.references(volume)]
        found = await asyncio.gather(*(self.objects.get(kind, meta.get("namespace", ""), name, meta["uid"])
                                       for kind, name in wanted))
        projections = payload.tokens(volume)
        issued = await asyncio.gather(*(self._tokens.get(pod, p) for p in projections))
        sources = Sources(dict(zip(wanted, found)), sources.services, sources.pod_ips, sources.host_ips,
                          sources.node_cpu, sources.node_memory, sources.node_ephemeral)
        files = payload.files(pod, volume, sources, {p["path"]: t for p, (t, _) in zip(projections, issued)})
        self._fill(folder, files, plugins.group_of(pod),
                   secret=bool(projections) or any(kind == "secrets" for kind, _ in wanted))
        return str(folder), min((when for _, when in issued), default=0.0)

    def _fill(self, folder: Path, files: payload.Files, group: int | None, *, secret: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if secret and not self._mounts.mounted(folder):
            self._mounts.tmpfs(folder)
        folder.chmod(0o755)
        self._stamp += 1
        payload.write(folder, files, f"{os.getpid()}_{self._stamp}", group)

    # --- what a container mounts

    def mounts_for(self, pod: dict[str, Any], container: dict[str, Any], paths: dict[str, str],
                   variables: dict[str, str]) -> dict[str, str]:
        """The host path of each mountPath of `container`. Raises ConfigError."""
        found = {}
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            if mount["name"] not in paths:
                raise ConfigError(f'volume "{mount["name"]}" of mount {mount["mountPath"]} is not defined')
            base = paths[mount["name"]]
            sub = mount.get("subPath") or env.expand(mount.get("subPathExpr") or "", variables)
            if sub:
                place = self._folder(pod["metadata"]["uid"]) / "volume-subpaths" / mount["name"] / container["name"]
                base = self._sub_path(base, sub, place / str(index))
            found[mount["mountPath"]] = base
        return found

    def _sub_path(self, base: str, sub: str, target: Path) -> str:
        """Bind `base`/`sub` to `target`: opened step by step, so that no symlink the pod plants leads out."""
        parts = [p for p in sub.split("/") if p not in ("", ".")]
        if ".." in parts or sub.startswith("/"):
            raise ConfigError(f"subPath {sub!r} must not leave its volume")
        here = os.open(os.path.realpath(base), os.O_PATH | os.O_DIRECTORY)
        mode = stat.S_IMODE(os.fstat(here).st_mode)  # what is made below is as open as the volume itself
        try:
            for part in self._resolved(base, parts):
                try:
                    following = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
                except FileNotFoundError:
                    os.mkdir(part, 0o750, dir_fd=here)
                    following = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
                    os.chmod(f"/proc/self/fd/{following}", mode)
                os.close(here)
                here = following
                if stat.S_ISLNK(os.fstat(here).st_mode):
                    raise ConfigError(f"subPath {sub!r} leads through a symbolic link")
            return self._bind(here, target)
        finally:
            os.close(here)

    @staticmethod
    def _resolved(base: str, parts: list[str]) -> list[str]:
        """Follow links that stay inside the volume (payload volumes are made of them)."""
        top = os.path.realpath(base)
        real = os.path.realpath(os.path.join(top, *parts))
        if real != top and not real.startswith(top + "/"):
            raise ConfigError(f"subPath {'/'.join(parts)!r} leads out of its volume")
        return [p for p in os.path.relpath(real, top).split("/") if p != "."]

    def _bind(self, descriptor: int, target: Path) -> str:
        if self._mounts.mounted(target):
            self._mounts.unmount_below(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        self._mounts.bind(f"/proc/self/fd/{descriptor}", target)
        return str(target)

    # --- the end

    def take_down(self, uid: str) -> None:
        """Unmount and remove everything of the pod; blocking, for a thread. OSError when something stays busy."""
        folder = self._folder(uid)
        for attempt in range(REMOVE_TRIES):
            self._mounts.unmount_below(folder)
            shutil.rmtree(folder, ignore_errors=attempt < REMOVE_TRIES - 1)
            if not folder.exists():
                return

    def release(self, uid: str) -> None:
        self.objects.release(uid)
        self._tokens.release(uid)
