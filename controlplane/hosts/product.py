"""The program on the host: a folder per version with its own Python environment, and the link to the one in use.

Owns `/usr/local/lib/pelamis`. Promises that a version's folder is whole or absent (it is made beside and renamed), that
it holds exactly the libraries this process runs with and nothing of the tests, and that its name tells its content:
the project's version and a digest. Needs no network. Called by `install` and `upgrade`.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from controlplane.hosts.layout import Layout
from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

SOURCE = Path(__file__).resolve().parents[2]
PARTS = ("controlplane", "agent", "cri_proto", "netsetup", "docs", "pelamis", "pyproject.toml", "README.md", "LICENSE",
         "CHANGELOG.md")
SKIPPED = "__pycache__"
DIGEST_LENGTH = 8  # hexadecimal digits: tells builds of one version apart
VENV_SECONDS = 120  # a slow disk


def files(source: Path = SOURCE) -> Iterator[Path]:
    """The program's files below `source`, relative, in a fixed order."""
    for part in PARTS:
        top = source / part
        found = [top] if top.is_file() else sorted(top.rglob("*")) if top.is_dir() else []
        yield from (p.relative_to(source) for p in found if p.is_file() and SKIPPED not in p.parts)


def version(source: Path = SOURCE) -> str:
    """`0.1.0+1f2e3d4c` of the program in `source`. Raises Finding when it is no such program."""
    try:
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise Finding(f"{source} holds no Pelamis", str(error), "give the folder with pyproject.toml") from error
    digest = hashlib.sha256()
    for file in files(source):
        digest.update(f"{file}\0".encode() + (source / file).read_bytes())
    return f"{project['version']}+{digest.hexdigest()[:DIGEST_LENGTH]}"


def install(layout: Layout, ledger: Ledger, source: Path = SOURCE) -> None:
    """The folder of `layout.version`, made when it is not there. Interrupted, it is made anew."""
    ledger.make_directory(layout.library)
    if layout.folder.exists():
        return
    staged = layout.library / f".{layout.version}.new"
    shutil.rmtree(staged, ignore_errors=True)
    for file in files(source):
        target = staged / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / file, target)
    _environment(staged / ".venv")
    stamp = hashlib.sha256((source / "pyproject.toml").read_bytes()).hexdigest()
    (staged / ".venv/.installed-base").write_text(f"{stamp}  {layout.folder}/pyproject.toml")
    # The services write no byte code, so all of it is made here; what came along with libraries is kept.
    compileall.compile_dir(staged, quiet=2, maxlevels=12, workers=0)
    staged.rename(layout.folder)


def use(layout: Layout, ledger: Ledger) -> None:
    """Let `current`, and with it the command on everybody's PATH, be this version."""
    link(layout.command, layout.current / "pelamis", ledger)
    _point(layout.current, Path(layout.version))


def link(path: Path, target: Path, ledger: Ledger) -> None:
    """The symbolic link `path` to `target`, recorded before it is made."""
    if path.is_symlink() and path.readlink() == target:
        return
    if path.exists() and not path.is_symlink():
        raise Finding(f"{path} is there and not ours", "it would be replaced", f"move it away: mv {path} {path}.old")
    ledger.make_directory(path.parent)
    ledger.record("symlink", path=path)
    _point(path, target)


def _point(path: Path, target: Path) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, path)


# --- the Python environment ------------------------------------------------------------------------------------------

def _environment(folder: Path) -> None:
    """A virtual environment of the system's Python with the libraries of this process's own."""
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, "-m", "venv", "--without-pip", "--symlinks", folder], capture_output=True, text=True,
                          timeout=VENV_SECONDS)
    if done.returncode:
        raise Finding("the Python environment cannot be made", done.stderr.strip()[-300:],
                      "apt-get install python3-venv")
    target = next(folder.glob("lib/python*/site-packages"))
    for name in _closure(_wanted()):
        _copy(metadata.distribution(name), target)


def _wanted() -> list[str]:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    return [_name(requirement) for requirement in project["dependencies"]]


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    assert match is not None
    return match[0]


def _closure(names: list[str]) -> list[str]:
    """These distributions and all they need; what a marker leaves out here is not installed, and so left out."""
    found: dict[str, None] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            needs = metadata.distribution(name).requires or ()
        except metadata.PackageNotFoundError:
            if name in names:
                raise Finding(f"the Python library {name} is not installed", "the host would lack it",
                              "./pelamis status installs the libraries, then run the command again") from None
            continue
        found[key] = None
        queue += [_name(need) for need in needs if "extra ==" not in need]
    return sorted(found)


def _copy(distribution: metadata.Distribution, target: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts:
            continue  # scripts for a person's PATH
        found = Path(str(distribution.locate_file(file)))
        if found.is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, target / file)
