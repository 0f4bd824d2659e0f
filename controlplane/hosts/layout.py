"""Where an installed Pelamis lives on a host with systemd: one object, rooted, so that tests have a tree of their own.

The program lies in a folder per version below `library`, which `current` points to; units name the version's folder
itself, so that a process never imports from another version than its own. Pure. Called by everything in this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controlplane.machinery.paths import Paths

USERS = {"apiserver": "pelamis-apiserver", "controllers": "pelamis-controllers"}  # who runs what needs no root
TARGET = "pelamis.target"


@dataclass(frozen=True, slots=True)
class Layout:
    """`version` is the name of the version's folder, such as `0.1.0+1f2e3d4c`."""

    paths: Paths
    version: str = ""

    @property
    def library(self) -> Path:
        return self.paths.root / "usr/local/lib/pelamis"

    @property
    def folder(self) -> Path:
        return self.library / self.version

    @property
    def current(self) -> Path:
        return self.library / "current"

    @property
    def command(self) -> Path:
        return self.paths.root / "usr/local/bin/pelamis"

    @property
    def python(self) -> Path:
        return self.folder / ".venv/bin/python"

    @property
    def units(self) -> Path:
        return self.paths.root / "etc/systemd/system"

    @property
    def tmpfiles(self) -> Path:
        return self.paths.root / "etc/tmpfiles.d/pelamis.conf"

    @property
    def environment(self) -> Path:
        """What `prepare` found out at this boot, for the units: NODE_IP."""
        return self.paths.run / "node.env"

    def credentials(self, component: str) -> Path:
        """Copies of what a process without root may read, in memory; `prepare` makes and renews them."""
        return self.paths.run / "credentials" / component

    @property
    def before(self) -> Path:
        """What the host was like before anything of ours was on it."""
        return self.paths.lib / "before.json"

    @property
    def settings(self) -> Path:
        return self.paths.etc / "node.json"

    @property
    def installed(self) -> str:
        """The version `current` points to, "" when nothing is installed."""
        return self.current.readlink().name if self.current.is_symlink() else ""


def unit(component: str) -> str:
    """The systemd unit of a component."""
    return f"pelamis-{component}.service"
