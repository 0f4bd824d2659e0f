"""Whether a low-level runtime works on this host: it is given one container of ours to run.

Owns that container: a bundle in a folder of its own with the pause program, in new namespaces, with limits and a
seccomp filter, as every pod's containers have them. Promises to leave nothing of it; what a killed trial left is
cleared by the next, or by `clear`. Being installed says too little: a runtime may lack what the kernel or the mounted
control groups want. Called by `containerd` before it makes a runtime the default.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from agent.image import pause

SECONDS = 10.0  # for each of its commands; they take a few hundredths
MEMORY = 16 << 20  # bytes; more than a runtime's own process needs before it becomes the container's
LIMITS = {"memory": {"limit": MEMORY}, "cpu": {"shares": 64, "quota": 50_000, "period": 100_000}, "pids": {"limit": 8}}


def bundle(name: str, systemd: bool) -> dict[str, Any]:
    """The container's config.json."""
    return {
        "ociVersion": "1.0.0", "hostname": name, "root": {"path": "rootfs"},
        "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 65535, "gid": 65535}, "noNewPrivileges": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
                  "cgroupsPath": f"system.slice:pelamis:{name}" if systemd else f"/{name}", "resources": LIMITS,
                  "seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
                              "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}]}}}


def name(run: Path) -> str:
    """Of the container and its control group: one for each installation, whose folder below /run is `run`."""
    return f"pelamis-trial-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}"


def clear(run: Path, *program: str, systemd: bool) -> None:
    """End and forget the container of a trial. Does nothing when there is none."""
    scratch = run / "trial"
    if scratch.is_dir():
        _said(*_command(scratch, program, systemd), "delete", "--force", name(run))
        shutil.rmtree(scratch, ignore_errors=True)


def fault(run: Path, *program: str, systemd: bool, features: bool = False) -> str:
    """Why `program`, with words before it or none, cannot run containers here, "" when it can. `run` is where it may
    keep the container meanwhile; `systemd` says whose the control groups are, `features` that it has to tell what it
    can do."""
    clear(run, *program, systemd=systemd)
    scratch, root = run / "trial", run / "trial/rootfs"
    try:
        for folder in ("proc", "dev"):
            (root / folder).mkdir(parents=True)
        (root / "pause").write_bytes(pause.program())
        (root / "pause").chmod(0o755)
        (scratch / "config.json").write_text(json.dumps(bundle(name(run), systemd)))
        command = _command(scratch, program, systemd)
        return (_said(*command, "create", "--bundle", str(scratch), name(run)) or _said(*command, "start", name(run))
                or (_said(*command, "features") if features else ""))
    finally:
        clear(run, *program, systemd=systemd)


def _command(scratch: Path, program: tuple[str, ...], systemd: bool) -> list[str]:
    return [*program, "--root", f"{scratch}/state", *(["--systemd-cgroup"] if systemd else [])]


def _said(*command: str) -> str:
    """What a failing command said last, "" when it succeeded."""
    with tempfile.TemporaryFile() as errors:  # a pipe would stay open in the container
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""
