"""Talks to the supervisor: is it there, what runs, start it, stop it."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from controlplane.cli.patience import Patience, work
from controlplane.cli.supervisor import start_time
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

ANSWER_SECONDS = 30.0  # the supervisor answers from memory, but may be on a core that others hold
STOP_SECONDS = 120.0  # all components with their own grace
CHECKOUT = Path(__file__).resolve().parents[2]


def ask(paths: Paths, request: str, seconds: float = ANSWER_SECONDS) -> bytes | None:
    """The supervisor's answer, or None when none runs."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(str(paths.run / "supervisor.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        answer = b""
        try:
            connection.sendall(request.encode())
            while chunk := connection.recv(65536):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):  # it ended before it took our call
            return None
        return answer


def status(paths: Paths) -> list[dict[str, Any]] | None:
    """One dict per component (name, state, pid, restarts, seconds, reason, log), None when no supervisor runs."""
    answer = ask(paths, "status")
    return None if answer is None else json.loads(answer or b"[]")


def survivors(paths: Paths) -> list[str]:
    """Components that still run although their supervisor is gone."""
    found = []
    for file in sorted((paths.run / "pids").glob("*")):
        pid, _, began = file.read_text().partition(" ")
        if pid.isdigit() and start_time(int(pid)) == began:
            found.append(file.name)
    return found


def reload(paths: Paths) -> bool:
    """Have the components take renewed certificates; False when no supervisor runs."""
    return ask(paths, "reload") is not None


def stop(paths: Paths) -> bool:
    """Stop every component and the supervisor; False when none ran."""
    return ask(paths, "stop", STOP_SECONDS) is not None


def stop_component(paths: Paths, name: str, seconds: float = 30.0) -> None:
    """Stop one component and wait for its end. Raises Finding when it does not end."""
    row = next((r for r in status(paths) or [] if r["name"] == name), None)
    if not row or not row["pid"]:
        return
    try:
        pidfd = os.pidfd_open(row["pid"])
    except ProcessLookupError:
        return
    try:
        ask(paths, f"stop {name}")
        if not select.select([pidfd], [], [], seconds)[0]:
            raise Finding(f"{name} (pid {row['pid']}) does not stop", f"its log: {row['log']}", f"kill {row['pid']}")
    finally:
        os.close(pidfd)


def environment() -> dict[str, str]:
    """What a component of this checkout needs to import it."""
    return {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}


def start(paths: Paths, components: Path) -> None:
    """Start the supervisor in a session of its own. Raises Finding when it does not come up."""
    paths.log.mkdir(parents=True, exist_ok=True)
    with open(paths.log / "supervisor.log", "ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "controlplane.cli.supervisor", str(components), str(paths.run), str(paths.log)],
            env={**os.environ, **environment()}, cwd="/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    patience = Patience()
    while status(paths) is None:
        try:
            code = child.wait(0.05)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None or patience.ended(work([child.pid])):
            raise Finding("the supervisor did not start", f"its log: {paths.log / 'supervisor.log'}",
                          "read the log's last lines")
