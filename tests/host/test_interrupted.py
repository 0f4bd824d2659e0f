"""An install and a reset that are killed, at several points of each on a real host: the next one goes on or undoes."""

from __future__ import annotations

import pytest

from tests.client.cluster import eventually
from tests.host.conftest import Lab, Stranger

pytestmark = pytest.mark.host
INSTALL_POINTS = (1, 12, 24)  # changes in the ledger: before the first folder, at the program, at the units
RESET_POINTS = (30, 15, 4)  # changes that are left


def changes(host: Stranger) -> int:
    """How many changes the ledger holds."""
    file = host.root / "var/lib/pelamis/ledger.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return len(lines) - 2 * sum('"undone"' in line for line in lines)


def begin(host: Stranger, *arguments: str) -> None:
    host.run("systemd-run", "--unit=attempt", "--collect", "--setenv=PELAMIS_VENV=/root/venv", "--setenv=HOME=/root",
             "/root/pelamis/pelamis", *arguments)


def running(host: Stranger) -> bool:
    return host.run("systemctl", "is-active", "attempt", check=False).stdout.strip() in ("active", "activating")


def kill(host: Stranger) -> None:
    host.run("systemctl", "kill", "--signal=KILL", "attempt", check=False)
    eventually(lambda: not running(host))


def test_killed_and_run_again(lab: Lab, stranger: Stranger) -> None:
    join = lab.server.pelamis("token", "create").stdout.split()[1:]
    for point in INSTALL_POINTS:
        begin(stranger, *join)
        eventually(lambda point=point: changes(stranger) >= point or not running(stranger))  # type: ignore[misc]
        kill(stranger)
        assert changes(stranger) >= point
        if point == INSTALL_POINTS[1]:
            assert "This host is as it was." in stranger.pelamis("reset").stdout, "given up"
    stranger.pelamis(*join)
    eventually(lambda: "host4" in lab.kubectl("get", "nodes"))
    data = stranger.root / "var/lib/pelamis/volumes/pvc-1/precious"
    data.parent.mkdir(parents=True)
    data.write_text("data")
    for point in RESET_POINTS:
        begin(stranger, "reset")
        eventually(lambda point=point: changes(stranger) <= point or not running(stranger))  # type: ignore[misc]
        kill(stranger)
    done = stranger.pelamis("reset")
    assert "nothing of ours" in done.stdout or (
        "This host is as it was." in done.stdout and "kept: /var/lib/pelamis/volumes/pvc-1 (4 bytes)" in done.stdout)
    assert data.read_text() == "data"
    stranger.run("rm", "-r", "/var/lib/pelamis")
    stranger.untouched()
    lab.forget(stranger)
