"""systemd as we use it: a few of systemctl's verbs, and system users.

Owns no state. Promises that a failure is a Finding with what systemd said. A test hands in something else with the same
methods. Called by `install`, `reset`, `upgrade` and `prepare`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from controlplane.cli.patience import Patience, work
from controlplane.machinery.errors import Finding

COMMAND_SECONDS = 180  # stopping waits for every process, each of which has its own grace
LOOK_SECONDS = 1.0  # between two looks at what starts


@dataclass(frozen=True, slots=True)
class State:
    """What systemd says of a unit: `active` is such as "active" or "failed"; `since` is on the monotonic clock."""

    unit: str
    active: str
    detail: str
    pid: int
    restarts: int
    result: str
    since: float = 0.0


class Services:
    """The service manager of this host."""

    def control(self, *arguments: str, check: bool = True) -> str:
        """systemctl's standard output. Raises Finding when it fails and `check` is set."""
        try:
            done = subprocess.run(["systemctl", "--no-ask-password", *arguments], capture_output=True, text=True,
                                  timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise Finding(f"systemctl {' '.join(arguments)} took longer than {COMMAND_SECONDS} s", "",
                          "systemctl list-jobs shows what waits") from None
        if check and done.returncode:
            raise Finding(f"systemctl {' '.join(arguments)} failed", (done.stderr or done.stdout).strip()[-500:],
                          f"journalctl -b -n 50 -u {arguments[-1]}")
        return done.stdout

    def reload(self) -> None:
        self.control("daemon-reload")

    def start(self, *units: str) -> None:
        self._bring_up("start", *units)

    def restart(self, *units: str) -> None:
        self._bring_up("restart", *units)

    def _bring_up(self, *command: str) -> None:
        """Start units, and wait for as long as they get on. Raises Finding naming those that do not."""
        patience = Patience()
        with subprocess.Popen(["systemctl", "--no-ask-password", *command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) as asked:
            while True:
                try:
                    said, _ = asked.communicate(timeout=LOOK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    starting = self._starting()
                if patience.ended((starting, work(starting.values()))):
                    asked.kill()
                    raise Finding(f"{', '.join(starting) or command[-1]} does not start", "nothing gets on any more",
                                  f"journalctl -b -n 50 -u {next(iter(starting), command[-1])}")
        if asked.returncode:
            raise Finding(f"systemctl {' '.join(command)} failed", said.strip()[-500:],
                          f"journalctl -b -n 50 -u {command[-1]}")

    def _starting(self) -> dict[str, int]:
        """Our units that are about to run: unit → main process, those without one left out."""
        text = self.control("show", "pelamis*", "-p", "Id,ActiveState,MainPID", check=False)
        shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
        return {unit["Id"]: int(unit["MainPID"]) for unit in shown
                if unit.get("ActiveState") == "activating" and int(unit.get("MainPID") or 0)}

    def stop(self, *units: str) -> None:
        """Stop units; those systemd does not know are stopped already."""
        known = [unit for unit in units if self.state(unit).active not in ("inactive", "")]
        if known:
            self.control("stop", *known)

    def state(self, unit: str) -> State:
        text = self.control("show", unit, "-p", "ActiveState,SubState,MainPID,NRestarts,Result,"
                            "StateChangeTimestampMonotonic", check=False)
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return State(unit, values.get("ActiveState", ""), values.get("SubState", ""), int(values.get("MainPID") or 0),
                     int(values.get("NRestarts") or 0), values.get("Result", ""),
                     int(values.get("StateChangeTimestampMonotonic") or 0) / 1e6)

    def has_user(self, name: str) -> bool:
        import pwd
        try:
            pwd.getpwnam(name)
        except KeyError:
            return False
        return True

    def add_user(self, name: str) -> None:
        """A system user with a group of its own, without a home, whom nobody can log in as."""
        done = subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
                               "--shell", "/usr/sbin/nologin", "--comment", "Pelamis", name],
                              capture_output=True, text=True, timeout=COMMAND_SECONDS)
        if done.returncode:
            raise Finding(f"the user {name} cannot be made", done.stderr.strip(), f"useradd --system {name}")

    def lend(self, copy: Path, data: bytes, user: str) -> None:
        """A file that a user may read and not change, in a folder that nobody else enters; replaced whole."""
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.chown(copy.parent, "root", user)
        copy.parent.chmod(0o750)
        fresh = copy.with_name("." + copy.name)
        fresh.touch(0o600)
        shutil.chown(fresh, "root", user)
        fresh.write_bytes(data)
        fresh.chmod(0o640)
        os.replace(fresh, copy)

    def own(self, folder: Path, user: str) -> None:
        """Give a folder with all in it to a user."""
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, user, user)


def required() -> None:
    """Raises Finding unless systemd manages this host."""
    if not Path("/run/systemd/system").is_dir():
        raise Finding("this host is not managed by systemd", "`install` makes systemd units",
                      "use ./pelamis up, which brings a small supervisor of its own")
