"""A part of a volume as a mount of its own: subPath and subPathExpr.

Owns the way from a volume's top to the part. Promises that no symbolic link, not even one that the pod changes at the
same moment, leads out of the volume: the way is opened step by step and what was opened is bound. Called by `manager`.

Upstream: k8s.io/utils/subpath.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from agent.kubelet import env
from agent.kubelet.env import ConfigError
from agent.kubelet.volumes.mounts import Mounts

_NAMED = re.compile(r"\$\$|\$\(([^()]*)\)")


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """A subPathExpr with its variables. Raises ConfigError for one that is missing or empty: the whole volume would be
    mounted in place of the part."""
    missing = sorted({m[1] for m in _NAMED.finditer(text) if m[1] is not None and not variables.get(m[1])})
    if missing:
        raise ConfigError(f"missing value for {', '.join(missing)}")
    return env.expand(text, variables)


def bind(mounts: Mounts, base: str, sub: str, target: Path) -> str:
    """Bind `base`/`sub` to `target`, made as a folder if it is missing. Raises ConfigError."""
    parts = [p for p in sub.split("/") if p not in ("", ".")]
    if ".." in parts or sub.startswith("/"):
        raise ConfigError(f"subPath {sub!r} must not leave its volume")
    here = os.open(os.path.realpath(base), os.O_PATH | os.O_DIRECTORY)
    mode = stat.S_IMODE(os.fstat(here).st_mode)  # what is made below is as open as the volume itself
    try:
        for part in _resolved(base, parts):
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
        return _mount(mounts, here, target)
    finally:
        os.close(here)


def _resolved(base: str, parts: list[str]) -> list[str]:
    """Follow links that stay inside the volume (payload volumes are made of them)."""
    top = os.path.realpath(base)
    real = os.path.realpath(os.path.join(top, *parts))
    if real != top and not real.startswith(top + "/"):
        raise ConfigError(f"subPath {'/'.join(parts)!r} leads out of its volume")
    return [p for p in os.path.relpath(real, top).split("/") if p != "."]


def _mount(mounts: Mounts, descriptor: int, target: Path) -> str:
    if mounts.mounted(target):
        mounts.unmount_below(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    if target.exists() and target.is_dir() != folder:  # the part was the other thing before
        if target.is_dir():
            target.rmdir()
        else:
            target.unlink()
    if folder:
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    mounts.bind(f"/proc/self/fd/{descriptor}", target)
    return str(target)
