"""Debian packages as image content: fetched with the host's own package tools, unpacked without installing.

Owns the use of apt-get, apt-cache and dpkg-deb: nothing is installed and no maintainer script runs, so a spec must add
what scripts would have made (users, links). Downloads are kept in a folder, so a second build needs no network. Raises
Finding when the host has no such tools or the archive no such package. Called by `demo` and `pelamis image build`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent.image.layer import Layer
from controlplane.machinery.errors import Finding

DOWNLOAD_SECONDS = 600  # for all packages of one call, from a slow mirror
COMMAND_SECONDS = 120

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?")
# Files a program does not need to run; they are a third of a small package's size.
_USELESS = ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/bug", "usr/share/locale")


def _run(command: list[str], folder: Path | None = None, seconds: int = COMMAND_SECONDS) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=True)
    except FileNotFoundError as error:
        raise Finding(f"{command[0]} is not installed", "images are built from Debian packages here",
                      "use a Debian or Ubuntu host, or build from files with --from-files") from error
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise Finding(f"`{' '.join(command)}` failed", words[0],
                      "check the package's name and run `apt-get update`") from error
    return done.stdout


def closure(packages: Sequence[str]) -> list[str]:
    """`packages` and everything they depend on, by the host's package lists, sorted."""
    output = _run(["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
                   "--no-breaks", "--no-replaces", "--no-enhances", *packages])
    return sorted({line for line in output.splitlines() if _PACKAGE.fullmatch(line)})


def fetch(package: str, folder: Path) -> Path:
    """The .deb of `package`, downloaded into `folder` unless one is there."""
    return fetch_all([package], folder)[0]


def fetch_all(packages: Sequence[str], folder: Path) -> list[Path]:
    """The .deb of each of `packages`; those that are not in `folder` are downloaded into it, by one call of apt."""
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise Finding(f"{package!r} is no package name")
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [package for package in packages if _kept(package, folder) is None]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        download = ["apt-get", "download", "-o", "APT::Sandbox::User=root", *lacking]
        try:
            if lacking:
                _run(download, Path(scratch), DOWNLOAD_SECONDS)
        except Finding:  # a machine that was just installed, or long unused, has no or old package lists
            _run(["apt-get", "update", "-q"], seconds=DOWNLOAD_SECONDS)
            _run(download, Path(scratch), DOWNLOAD_SECONDS)
        for fetched in Path(scratch).glob("*.deb"):
            shutil.move(fetched, folder / fetched.name)
    found = [_kept(package, folder) for package in packages]
    if None in found:
        raise Finding(f"apt-get did not download {packages[found.index(None)]}", fix="run `apt-get update`")
    return [path for path in found if path]


def _kept(package: str, folder: Path) -> Path | None:
    """The newest .deb of `package` in `folder`."""
    return max(folder.glob(f"{package.partition(':')[0]}_*.deb"), default=None)


def control(path: Path) -> str:
    """What the .deb says of itself: the paragraph of fields that a package index has of it."""
    return _run(["dpkg-deb", "-f", str(path)])


def extract(package: str, root: Path, folder: Path) -> None:
    """Put the files of `package` below `root`; the download is kept in `folder`."""
    _run(["dpkg-deb", "-x", str(fetch(package, folder)), str(root)])


def unpack(layer: Layer, packages: Sequence[str], folder: Path) -> None:
    """Put the files of `packages` into `layer`, documentation left out; downloads are kept in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        for index, package in enumerate(packages):
            root = Path(scratch, str(index))
            extract(package, root, folder)
            for useless in _USELESS:
                shutil.rmtree(root / useless, ignore_errors=True)
            layer.tree(root)
