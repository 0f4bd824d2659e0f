"""Programs of other Debian releases, run where this one is installed: containerd 1.7 and 2.x beside the host's own,
kubectl 1.32 and 1.36 beside the one on PATH.

Owns their download (apt with package lists of its own, so the host's stay as they are) and that they find the libraries
of their own release. Nothing is installed. What was fetched is kept for later runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.image import debian
from controlplane.machinery.errors import Finding

MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASES = {"1.7": "trixie", "2": "forky"}  # containerd's version -> who has it
KUBECTLS = {"1.32": "trixie", "1.36": "forky"}  # kubectl's version, or an older one than its -> who has it
WANTED = ("containerd", "runc", "crun")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
PROGRAMS = ("usr/bin", "usr/sbin")


def programs(version: str, kept: Path) -> Path:
    """A folder with containerd of `version` (a key of RELEASES), its shim, runc and crun; all is kept below `kept`.
    Raises Finding when they cannot be fetched."""
    home = kept / "releases" / RELEASES[version]
    if not (home / "bin").is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            with _apt(RELEASES[version], Path(scratch)):
                for package in debian.closure(WANTED):
                    debian.extract(package, Path(scratch, "root"), home / "packages")
            shutil.rmtree(home / "root", ignore_errors=True)
            Path(scratch, "root").rename(home / "root")
            _gather(home / "root", Path(scratch, "bin"), kept)
            Path(scratch, "bin").rename(home / "bin")
    return home / "bin"


def kubectl_place(version: str, kept: Path) -> Path:
    """Where `fetch_kubectl` keeps kubectl of `version` (a key of KUBECTLS)."""
    return kept / "releases" / KUBECTLS[version] / f"kubectl.{version}"


def fetch_kubectl(version: str, kept: Path) -> None:
    """See that kubectl of `version` is in its place. Raises AssertionError when it cannot be fetched."""
    place = kubectl_place(version, kept)
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch, _apt(KUBECTLS[version], Path(scratch)):
            debian.extract("kubectl", Path(scratch, "root"), Path(scratch, "packages"))
            Path(scratch, "root/usr/bin/kubectl").rename(place)
    except (Finding, OSError, subprocess.SubprocessError) as error:
        raise AssertionError(f"kubectl {version} could not be fetched from Debian {KUBECTLS[version]} at {MIRROR}: "
                             f"{error}") from error


@contextmanager
def _apt(release: str, state: Path) -> Iterator[None]:
    """While it lasts, apt knows the packages of `release` and no others."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "state/status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {release} main\n")
    (state / "apt.conf").write_text(f"""\
Dir::State "{state}/state"; Dir::State::status "{state}/state/status"; Dir::Cache "{state}/cache";
Dir::Etc::sourcelist "{state}/sources.list"; Dir::Etc::sourceparts "-"; Dir::Etc::preferencesparts "-";
Acquire::Languages "none"; APT::Sandbox::User "root"; Acquire::Check-Valid-Until "false";
""")
    before = os.environ.get("APT_CONFIG")
    os.environ["APT_CONFIG"] = str(state / "apt.conf")
    try:
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True, timeout=debian.DOWNLOAD_SECONDS)
        yield
    finally:
        del os.environ["APT_CONFIG"]
        if before is not None:
            os.environ["APT_CONFIG"] = before


def _gather(root: Path, folder: Path, kept: Path) -> None:
    """The programs below `root` in `folder`, the dynamically linked ones told to use the loader and the libraries
    there. By a changed file and not by a script that calls the loader: runc runs itself again by /proc/self/exe."""
    debian.extract("patchelf", kept / "patchelf", kept / "packages")
    patchelf = kept / "patchelf/usr/bin/patchelf"
    folder.mkdir()
    for place in PROGRAMS:
        for found in sorted((root / place).glob("*")) if (root / place).is_dir() else ():
            if not found.name.startswith(("containerd", *WANTED)):
                continue
            made = Path(shutil.copy(found, folder / found.name))
            linked = subprocess.run([patchelf, "--print-interpreter", made], capture_output=True).returncode == 0
            if linked:
                subprocess.run([patchelf, "--set-interpreter", root / LOADER, "--force-rpath", "--set-rpath",
                                root / LIBRARIES, made],
                               check=True)
