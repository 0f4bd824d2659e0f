"""The volumes that need no payload: emptyDir and hostPath, and who serves which kind of volume.

A plugin is one function `(pod, volume, folder, mounts) -> host path`, idempotent, run before every container start;
`folder` is the volume's own place under the pod's folder. Taking down needs no plugin: `manager` unmounts and removes
whatever lies under the pod's folder, so a restart in between loses nothing. A kind nobody serves raises ConfigError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.kubelet.compute.resources import pod_resources
from agent.kubelet.env import ConfigError
from agent.kubelet.volumes.mounts import Mounts
from agent.kubelet.volumes.payload import fs_group
from controlplane.machinery import quantity

Plugin = Callable[[dict[str, Any], dict[str, Any], Path, Mounts], str]
HUGE = "HugePages"  # an emptyDir's medium, alone or with a size: HugePages-2Mi
_IS = {"Directory": stat.S_ISDIR, "File": stat.S_ISREG, "Socket": stat.S_ISSOCK, "CharDevice": stat.S_ISCHR,
       "BlockDevice": stat.S_ISBLK}
_CALLED = {"Directory": "a directory", "File": "a file", "Socket": "a socket file",
           "CharDevice": "a character device", "BlockDevice": "a block device"}


def empty_dir(pod: dict[str, Any], volume: dict[str, Any], folder: Path, mounts: Mounts) -> str:
    """A folder that lives as long as the pod, on disk or in memory."""
    spec = volume["emptyDir"] or {}
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if spec.get("medium") == "Memory" and not mounts.mounted(folder):
        sizes = (quantity.parse(str(spec.get("sizeLimit") or "0")).value(), pod_resources(pod).memory_limit)
        size = min(filter(None, sizes), default=0)  # what the pod may not use, its files need not hold
        mounts.tmpfs(folder, size)
        new = True
    elif str(spec.get("medium") or "").startswith(HUGE):
        if not mounts.mounted(folder):
            mounts.hugepages(folder, page_size(pod, spec["medium"]))
            new = True
    elif spec.get("medium") not in (None, "", "Memory"):
        raise ConfigError(f"unknown storage medium {spec['medium']!r}")
    if new:
        folder.chmod(0o777)
        group = fs_group(pod)
        if group is not None:
            os.chown(folder, -1, group)
            folder.chmod(0o2777)
    return str(folder)


def page_size(pod: dict[str, Any], medium: str) -> int:
    """The bytes of one huge page that an emptyDir of `medium` is made of. Raises ConfigError."""
    asked = {name.partition("-")[2] for c in pod["spec"]["containers"]
             for kind in ("requests", "limits") for name in (c.get("resources") or {}).get(kind) or ()
             if name.startswith("hugepages-")}
    wanted = medium.removeprefix(HUGE).removeprefix("-")
    if wanted and wanted not in asked:
        raise ConfigError(f"medium {medium!r} not in container resource requests")
    if not wanted and len(asked) != 1:
        raise ConfigError(f"medium {medium!r} can only be used if container requests use only one huge page size")
    return quantity.parse(wanted or asked.pop()).value()


def host_path(pod: dict[str, Any], volume: dict[str, Any], folder: Path, mounts: Mounts) -> str:
    """A path of the node."""
    return checked_path(volume["hostPath"])


def checked_path(wanted: dict[str, Any]) -> str:
    """The path of a hostPath, checked or made as its `type` says. Raises ConfigError, OSError."""
    path, kind = wanted["path"], wanted.get("type") or ""
    if kind == "DirectoryOrCreate" and not os.path.exists(path):
        os.makedirs(path, 0o755)
    elif kind == "FileOrCreate" and not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    if not kind:
        return str(path)
    kind = kind.removesuffix("OrCreate")
    if kind not in _IS:
        raise ConfigError(f"unknown hostPath type {wanted['type']!r}")
    try:
        fits = _IS[kind](os.stat(path).st_mode)
    except FileNotFoundError:
        fits = False
    if not fits:
        raise ConfigError(f"hostPath type check failed: {path} is not {_CALLED[kind]}")
    return str(path)


PLUGINS: dict[str, Plugin] = {"emptyDir": empty_dir, "hostPath": host_path}
PAYLOADS = ("configMap", "secret", "downwardAPI", "projected")
CLAIMED = ("persistentVolumeClaim", "ephemeral")
FOLDERS = {"emptyDir": "kubernetes.io~empty-dir", "configMap": "kubernetes.io~configmap",
           "secret": "kubernetes.io~secret", "downwardAPI": "kubernetes.io~downward-api",
           "projected": "kubernetes.io~projected", "hostPath": "kubernetes.io~host-path",
           "image": "kubernetes.io~image", "csi": "kubernetes.io~csi", **dict.fromkeys(CLAIMED, "kubernetes.io~csi")}


def kind_of(volume: dict[str, Any]) -> str:
    """The key that says what the volume is. Raises ConfigError for a kind this node cannot mount."""
    for kind in FOLDERS:
        if volume.get(kind) is not None:
            return kind
    named = [k for k in volume if k != "name"] or ["emptyDir"]
    if named == ["emptyDir"]:
        return "emptyDir"
    raise ConfigError(f'volume "{volume["name"]}" of type {named[0]} is not supported by this node')


def read_only(volume: dict[str, Any]) -> bool:
    """Whether containers get the volume read-only whatever they ask for: content of the API and of images is not theirs
    to change."""
    kind = kind_of(volume)
    return kind in (*PAYLOADS, "image") or bool((volume.get(kind) or {}).get("readOnly"))
