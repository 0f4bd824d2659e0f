"""The folders behind `local-path` volumes of this node: made when a claim comes here, removed when its volume goes.

Owns the folder of all of them, which survives the agent and the machine's restart. Promises that nothing outside it is
ever made or removed: a name is a single path component, links are not followed, and what is mounted below is left
alone. Called by the kubelet's server, which lets only the control plane ask.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from controlplane.machinery.errors import BadRequest, InternalError

_NAME = re.compile(r"pvc-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as the provisioner names its volumes
OPEN = 0o777  # the pods of a claim run as whom they like; the folder above keeps everybody else out
CLOSED = 0o700  # of the folder above: the runtime binds a volume into its pods, nobody walks there


class LocalVolumes:
    """Blocking: call from a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, name: str) -> str:
        """The path of the volume's folder, made if it is missing. Raises BadRequest, InternalError."""
        path = self._path(name)
        try:
            self._folder.mkdir(mode=CLOSED, parents=True, exist_ok=True)
            if not path.exists():
                path.mkdir()
                path.chmod(OPEN)
        except OSError as error:
            raise InternalError(f"cannot make {path}: {error.strerror}") from error
        return str(path)

    def remove(self, name: str) -> str:
        """The path of the folder that is no more. Raises BadRequest, InternalError when something keeps it."""
        path = self._path(name)
        if not path.exists() and not path.is_symlink():
            return str(path)
        try:
            if path.is_symlink():
                path.unlink()
            else:
                self._refuse_mounts(path)
                shutil.rmtree(path)
        except OSError as error:
            raise InternalError(f"cannot remove {path}: {error.strerror}") from error
        return str(path)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BadRequest(f"{name!r} is no local volume")
        return self._folder / name

    @staticmethod
    def _refuse_mounts(path: Path) -> None:
        """What somebody mounted in a volume is not the volume's data."""
        device = os.lstat(path).st_dev
        for parent, folders, _ in os.walk(path):
            for folder in folders:
                if os.lstat(os.path.join(parent, folder)).st_dev != device:
                    raise InternalError(f"cannot remove {path}: something is mounted on {parent}/{folder}")
