"""fsGroup: the files of a volume given to the pod's group.

Owns the walk through a volume and the modes it sets. Promises never to leave the volume's file system and never to
follow a link, and with OnRootMismatch to leave a volume alone whose top already is as wanted. Blocking: for a thread.
Called by `persistent`, for volumes that outlive their pods.

Upstream: pkg/volume/volume_linux.go.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from agent.kubelet.volumes.payload import fs_group

WRITES, READS = 0o660, 0o440  # what the group may do with files, by whether the volume can be written
ENTERS = stat.S_ISGID | 0o110  # with folders besides


def apply(pod: dict[str, Any], path: str, read_only: bool = False) -> None:
    """Give everything below `path` to the pod's fsGroup, if it has one. Raises OSError."""
    group = fs_group(pod)
    if group is None:
        return
    policy = (pod["spec"].get("securityContext") or {}).get("fsGroupChangePolicy")
    mask = READS if read_only else WRITES
    if policy == "OnRootMismatch" and _fits(Path(path), group, mask | ENTERS):
        return
    device = os.lstat(path).st_dev
    for parent, folders, files in os.walk(path, topdown=False):
        if os.lstat(parent).st_dev != device:
            continue
        for name in (*files, *(f for f in folders if os.path.islink(os.path.join(parent, f)))):
            _give(os.path.join(parent, name), group, mask)
        _give(parent, group, mask | ENTERS)  # after what is in it, so that a walk cut short is seen at the top


def _fits(top: Path, group: int, mask: int) -> bool:
    found = top.lstat()
    return found.st_gid == group and found.st_mode & mask == mask


def _give(path: str, group: int, mask: int) -> None:
    try:
        found = os.lstat(path)
        os.chown(path, -1, group, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(path, stat.S_IMODE(found.st_mode) | mask)
    except FileNotFoundError:
        pass  # other pods may be at work in the volume
