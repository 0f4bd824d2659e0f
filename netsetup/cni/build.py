"""Rebuild the CNI plugin's machine code from shim.c: `python -m netsetup.cni.build`.

Needs gcc on an amd64 machine. The result, `shim.amd64`, is kept beside the source, so installing needs no compiler.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["-Os", "-static", "-nostdlib", "-nostartfiles", "-ffreestanding", "-fno-stack-protector", "-fno-pic",
         "-no-pie", "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-Wall", "-Wextra", "-Werror",
         "-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack,--strip-all"]


def build(target: Path) -> None:
    subprocess.run(["gcc", *FLAGS, "-o", str(target), str(HERE / "shim.c")], check=True)
    subprocess.run(["strip", "-s", "-R", ".comment", str(target)], check=True)
    target.chmod(0o644)  # data here; it becomes a program when it is installed


if __name__ == "__main__":
    build(HERE / "shim.amd64")
