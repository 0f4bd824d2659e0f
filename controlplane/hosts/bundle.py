"""Everything an install needs, in one file, for hosts without a network: program, Python libraries, packages, images.

Owns the form: a tar of the program's tree with a folder `bundle` in it (`wheels`, `debs`, `images`, `MANIFEST.json`
with a digest of each file). Promises that what is installed is what was packed (digests are checked), and that nothing
is asked of a network: packages come by apt from the folder, libraries by the wheels, and images carry no registry's
digest, so the kubelet never removes them to make room. Called by the command `bundle` and by `install --bundle`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from controlplane.hosts import product
from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

Step = Callable[[str], AbstractContextManager[None]]
FOLDER, MANIFEST = "bundle", "MANIFEST.json"
DEBS, INDEX = "debs", "Packages"  # the index makes the folder a source for apt
# What a node needs of Debian, and what the bootstrap script needs before there is a Python of ours.
EXTRA_PACKAGES = ("python3", "python3-venv", "ca-certificates", "iproute2", "nftables")
PIP_SECONDS = 600


def create(name: str, output: Path, images: Sequence[Path], step: Step, packages: bool = True) -> None:
    """Pack this program below the folder `name`; `images` are archives to take along besides our own. Needs a network.
    Raises Finding."""
    with tempfile.TemporaryDirectory(prefix="pelamis-bundle-") as scratch:
        folder = Path(scratch) / FOLDER
        with step("fetching Python libraries"):
            _wheels(folder / "wheels")
        if packages:
            with step("fetching Debian packages"):
                _debs(folder / DEBS)
        with step("adding images"):
            _images(folder / "images", images)
        (folder / MANIFEST).write_text(json.dumps(manifest(folder), indent=1))
        with step(f"writing {output}"):
            _pack(output, name, folder)


def manifest(folder: Path) -> dict[str, str]:
    """Path below `folder` → SHA-256 of the file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path) -> None:
    """Raises Finding unless the folder holds exactly what was packed."""
    try:
        wanted = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise Finding(f"{folder} holds no bundle", str(error), "tar -xf pelamis-….tar; cd pelamis-…; "
                      "./pelamis install server --bundle bundle") from None
    found = manifest(folder)
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise Finding(f"the bundle is damaged: {wrong[0]} is not what was packed", f"{len(wrong)} files differ",
                      "copy the bundle again, and compare sha256sum of both files")


def install_packages(folder: Path, lacking: Sequence[str], ledger: Ledger) -> None:
    """What this host lacks, from the bundle alone: apt takes what is needed, and nothing older than what is there."""
    from controlplane.cli import packages
    if not (folder / DEBS / INDEX).exists():
        raise Finding(f"the bundle has no package {lacking[0]}", "it was made without packages",
                      "make it without --without-packages, or install " + " ".join(lacking))
    with packages.only_from(folder / DEBS) as options:
        packages.install(list(lacking), ledger, options)


async def import_images(folder: Path, socket: Path) -> list[str]:
    """Hand the bundle's images to the runtime; their names."""
    from agent.image import importer
    from cri_proto.client import Connection
    found: list[str] = []
    async with Connection(socket) as connection:
        for path in sorted((folder / "images").glob("*.tar")):
            found += await importer.import_archive(connection, path)
    return found


def _wheels(folder: Path) -> None:
    folder.mkdir(parents=True)
    requirements = folder.parent / "requirements.txt"
    done = subprocess.run([sys.executable, product.SOURCE / "controlplane/cli/libraries.py",
                           product.SOURCE / "pyproject.toml"], capture_output=True, text=True, check=True)
    requirements.write_text(done.stdout)
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                           "--only-binary=:all:", "-d", folder, "-r", requirements], capture_output=True, text=True,
                          timeout=PIP_SECONDS)
    if done.returncode:
        raise Finding("the Python libraries cannot be fetched", done.stderr.strip()[-300:],
                      "check that this machine reaches PyPI (or set PIP_INDEX_URL to a mirror)")


def _debs(folder: Path) -> None:
    from agent.image import debian
    from controlplane.cli import packages
    folder.mkdir(parents=True)
    entries = []
    wanted = debian.closure([*packages.offered(sorted({*packages.NEEDED.values(), *packages.WELCOME.values()})),
                             *EXTRA_PACKAGES])
    for path in debian.fetch_all(wanted, folder):
        entries.append(f"{debian.control(path)}Filename: ./{path.name}\nSize: {path.stat().st_size}\n"
                       f"SHA256: {_digest(path)}\n")
    (folder / INDEX).write_text("\n".join(entries))


def _images(folder: Path, more: Sequence[Path]) -> None:
    import shutil

    from agent.image import demo, pause
    from controlplane.machinery.paths import Paths
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        for archive in (demo.built(pause.NAME, Paths(Path(scratch))), *more):
            if not archive.exists():
                raise Finding(f"{archive} does not exist", "", "give the path of an image archive (docker save)")
            shutil.copyfile(archive, folder / archive.name)


def _pack(output: Path, name: str, folder: Path) -> None:
    staged = output.with_name(f".{output.name}.new")
    with tarfile.open(staged, "w") as tar:  # wheels, packages and layers are compressed already
        for file in product.files():
            tar.add(product.SOURCE / file, f"{name}/{file}")
        tar.add(folder, f"{name}/{FOLDER}")
    os.replace(staged, output)
