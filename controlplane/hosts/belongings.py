"""What lies in our folders and is the user's: data of persistent volumes, and files put into /etc/pelamis.

Owns the list of the files there that are ours; whatever else is found is not, nor is a file of flags somebody filled
in. Promises that nothing of it is removed when everything else is, and that each is named. Reads only; `ours` is pure.
Called by `reset` and `down --purge`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlplane.machinery.paths import Paths

_CERTIFICATES = ("ca", "admin", "apiserver", "apiserver-kubelet-client", "controller-manager", "scheduler",
                 "front-proxy-client", "kube-proxy", "kubelet", "node", "sa")
_FILES = re.compile(r"(node|components)\.json|containerd\.toml|scheduler\.yaml|cni/net\.d/10-pelamis\.conflist|"
                    r"(admin|controller-manager|scheduler|kube-proxy|node)\.kubeconfig|"
                    rf"pki/(front-proxy/)?({'|'.join(_CERTIFICATES)})\.(crt|key|pub)")
_FLAGS = re.compile(r"(apiserver|controllers|agent)\.conf(\.new)?")
_UNFINISHED = re.compile(r"(.*/)?\.[^/]*\.new")  # what a write that was cut off leaves


@dataclass(frozen=True, slots=True)
class Belonging:
    """Something of the user's below `path`, in words."""

    path: Path
    told: str


def found(paths: Paths) -> list[Belonging]:
    """All of it on this host."""
    return [*_volumes(paths.volumes), *(Belonging(file, "yours") for file in sorted(paths.etc.rglob("*"))
                                        if not file.is_dir() and not ours(str(file.relative_to(paths.etc)), file))]


def ours(name: str, file: Path) -> bool:
    """Whether a file called `name` below /etc/pelamis is one that we wrote, and nobody has put flags into."""
    if _FLAGS.fullmatch(name):
        lines = (line.strip() for line in file.read_text(errors="replace").splitlines())
        return all(line in ("", 'FLAGS=""') or line.startswith("#") for line in lines)
    return bool(_FILES.fullmatch(name) or _UNFINISHED.fullmatch(name))


def _volumes(folder: Path) -> Iterator[Belonging]:
    for volume in sorted(folder.iterdir()) if folder.is_dir() else ():
        size = sum(file.lstat().st_size for file in volume.rglob("*") if file.is_file())
        yield Belonging(volume, f"the data of a persistent volume, {size} bytes")
