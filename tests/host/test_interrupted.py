"""Installs and resets that are killed (SIGKILL) right after a line of the ledger: the next one goes on, or undoes.

`sweep` kills each attempt after its `stride`-th new line until one gets through: with 1 that is after every change.
`given_up` kills an install at one line, and resets. The nightly tier does both at every line, on a server.
"""

from __future__ import annotations

import json
import signal

import pytest

from controlplane.hosts import census
from tests.client.cluster import eventually
from tests.host.conftest import Lab, Stranger
from tests.host.machine import Machine

pytestmark = pytest.mark.host
STRIDE = 6
STARTED = 0  # in the place of a line: the services were started, and nobody was told
KILLED = """
import os, signal, sys
from controlplane.cli.__main__ import main
from controlplane.hosts.services import Services
from netsetup import ledger
append, start, left = ledger._append, Services.start, int(sys.argv[1])

def appended(fd, entry):
    global left
    append(fd, entry)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def started(self, *units):
    start(self, *units)
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

ledger._append, Services.start = appended, started
sys.exit(main(sys.argv[2:]))
"""
CENSUS = "import json; from controlplane.hosts import census; print(json.dumps(census.take()))"


def killed(machine: Machine, line: int, *arguments: str) -> bool:
    """Whether the command was killed when it had written that many lines; else it did all its work."""
    done = machine.python(KILLED, str(line), *arguments, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


def sweep(machine: Machine, stride: int, *arguments: str) -> int:
    """How often the command was killed before it got through."""
    times = 0
    while killed(machine, stride, *arguments):
        times += 1
    return times


def seen(machine: Machine) -> census.Census:
    return json.loads(machine.python(CENSUS).stdout)


def given_up(machine: Machine, before: census.Census, line: int, *install: str) -> bool:
    """Kill an install and reset the host; whether there was anything to kill."""
    cut = killed(machine, line, *install)
    machine.pelamis("reset")
    assert census.differences(before, seen(machine)) == {}, line
    return cut


def kept_data(machine: Machine, stride: int) -> int:
    """Kill resets of a host with a persistent volume and a file of the user's until one gets through; how often."""
    kept = [machine.root / name for name in ("var/lib/pelamis/volumes/pvc-1/precious", "etc/pelamis/certs.d/lab")]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("data")
    times = sweep(machine, stride, "reset")
    for folder in ("etc/pelamis", "var/lib/pelamis"):
        assert [f.read_text() for f in (machine.root / folder).rglob("*") if f.is_file()] == ["data"]
    machine.run("rm", "-r", "/etc/pelamis", "/var/lib/pelamis")
    return times


def test_killed_and_run_again(lab: Lab, stranger: Stranger) -> None:
    stranger.cleared()
    before = seen(stranger)
    join = lab.server.pelamis("token", "create").stdout.split()[1:]
    for line in (1, 4):  # when there is nothing but the ledger, and before the program's link
        assert given_up(stranger, before, line, *join)
    assert sweep(stranger, STRIDE, *join) > 2
    eventually(lambda: lab.ready(*(m.name for m in lab.machines), stranger.name))
    assert killed(stranger, STARTED, *join), "it runs already, and is started again"
    stranger.pelamis(*join)
    assert kept_data(stranger, STRIDE) > 2
    assert census.differences(before, seen(stranger)) == {}
    stranger.untouched()
    lab.forget(stranger)
