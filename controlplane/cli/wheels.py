"""Unpacks a bundle's wheels into the environment of the Python that runs this: what pip would do, much faster.

`wheels.py FOLDER`: every wheel of the folder. Owns the form of a wheel as far as libraries need it: a zip whose content
goes to site-packages, with `NAME.data/purelib` and `platlib` beside it; scripts are left out. Promises that nothing is
unpacked when one wheel is for another Python or machine. Standard library alone: the bootstrap script runs it before
any library is there.
"""

import platform
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

DATA = (".data/purelib/", ".data/platlib/")


def misfit(name: str, version: tuple[int, int], machine: str) -> str:
    """Why the wheel called `name` is not for this Python and machine, "" when it is. Pure."""
    python, abi, where = name.removesuffix(".whl").split("-")[-3:]
    own = f"cp{version[0]}{version[1]}"
    if python.startswith("cp") and abi != "abi3" and own not in python.split("."):
        return f"{name} is for another Python than {version[0]}.{version[1]}"
    if where != "any" and not where.endswith(machine):
        return f"{name} is for another machine than {machine}"
    return ""


def target(member: str) -> str:
    """Where below site-packages a member of a wheel goes, "" for nowhere. Pure."""
    for data in DATA:
        if data in member:
            return member.partition(data)[2]
    return "" if ".data/" in member.partition("/")[0] + "/" else member


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """The wheels' libraries, in `folder`."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            for member in packed.infolist():
                if member.is_dir() or not (name := target(member.filename)):
                    continue
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.read(member))


def main() -> None:
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
    for wheel in wheels:
        if why := misfit(wheel.name, sys.version_info[:2], platform.machine()):
            sys.exit(f"{why}; make the bundle on a host of the same release: ./pelamis bundle create")
    unpack(wheels, Path(sysconfig.get_path("purelib")))


if __name__ == "__main__":
    main()
