"""Persistent volumes as a pod mounts them: which kinds this node can, and how each becomes a path.

A kind is one function `(pod, claimed) -> host path`, run in a thread before every container start, idempotent. Kinds
that live on this node need no taking down: the runtime binds their own path into containers, so nothing of them ever
lies below a pod's folder, where an end would remove it. CSI volumes go to `csi`. Called by `manager`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from agent.kubelet.env import ConfigError
from agent.kubelet.volumes import ownership, plugins
from agent.kubelet.volumes.claims import Claimed

Kind = Callable[[dict[str, Any], Claimed], str]


def _host_path(pod: dict[str, Any], claimed: Claimed) -> str:
    return plugins.checked_path(claimed.volume["spec"]["hostPath"])


def _local(pod: dict[str, Any], claimed: Claimed) -> str:
    """A folder of this node, given to the pod's group; or a disk, as the device it is."""
    path = claimed.volume["spec"]["local"]["path"]
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ConfigError(f'path "{path}" does not exist') from None
    if claimed.block != stat.S_ISBLK(mode):
        kind = "a block device" if claimed.block else "a directory"
        raise ConfigError(f"local volume path {path} is not {kind}, as its volumeMode wants it")
    if not claimed.block:
        ownership.apply(pod, path, claimed.read_only)
    return str(path)


KINDS: dict[str, Kind] = {"hostPath": _host_path, "local": _local}


def kind_of(volume: dict[str, Any]) -> str:
    """`csi` or a name of KINDS. Raises ConfigError for what this node cannot mount."""
    spec = volume["spec"]
    found = next((kind for kind in ("csi", *KINDS) if spec.get(kind) is not None), "")
    if not found:
        raise ConfigError(f"no volume plugin matched: this node mounts persistent volumes of type csi, "
                          f"{' and '.join(KINDS)}, not {volume['metadata']['name']}")
    return found


def set_up(pod: dict[str, Any], claimed: Claimed) -> str:
    """The host path of a volume of this node. Blocking. Raises ConfigError, OSError."""
    return KINDS[kind_of(claimed.volume)](pod, claimed)
