"""The supervisor with real processes: order, restart, adoption after its own death, stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controlplane.cli import components, control
from controlplane.cli.components import Component
from controlplane.machinery.paths import Paths

READY = ("import os,socket,signal,time;s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM);"
         "s.sendto(b'READY=1',os.environ['NOTIFY_SOCKET']);signal.pause()")


def eventually(check, seconds=10.0):
    """The first true answer of `check`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.01)  # a poll of another process with a deadline
    return found


@pytest.fixture
def paths(tmp_path):
    paths = Paths(tmp_path)
    yield paths
    control.stop(paths)


def launch(paths: Paths, *wanted: Component) -> None:
    file = tmp = paths.etc / "components.json"
    components.write(tmp, list(wanted))
    control.start(paths, file)


def row(paths: Paths, name: str) -> dict:
    return next(r for r in control.status(paths) or [] if r["name"] == name)


def test_components_survive_the_file(tmp_path):
    wanted = [Component("a", ("x", "y"), {"K": "V"}, after=("b",))]
    components.write(tmp_path / "c.json", wanted)
    assert components.read(tmp_path / "c.json") == wanted
    assert json.loads((tmp_path / "c.json").read_text())


def test_starts_in_order_and_restarts_what_dies(paths):
    launch(paths, Component("first", (sys.executable, "-c", READY)),
           Component("second", (sys.executable, "-c", READY), after=("first",)))
    eventually(lambda: row(paths, "second")["state"] == "running")
    before = row(paths, "second")["pid"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: row(paths, "second")["pid"] not in (0, before) and row(paths, "second")["state"] == "running")
    assert row(paths, "second")["restarts"] == 1
    assert row(paths, "first")["restarts"] == 0


def test_says_why_a_component_keeps_dying(paths):
    launch(paths, Component("broken", (sys.executable, "-c", "import sys; sys.exit('no such luck')")))
    eventually(lambda: row(paths, "broken")["restarts"] >= 2)
    assert "exited with code 1: no such luck" in row(paths, "broken")["reason"]


def test_a_killed_supervisor_is_replaced_without_a_restart(paths):
    launch(paths, Component("steady", (sys.executable, "-c", READY)))
    eventually(lambda: row(paths, "steady")["state"] == "running")
    pid = row(paths, "steady")["pid"]
    supervisor = int((paths.run / "supervisor.lock").read_text())
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: control.status(paths) is None)
    control.start(paths, paths.etc / "components.json")
    assert row(paths, "steady")["pid"] == pid
    assert control.stop(paths)
    eventually(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_a_second_supervisor_refuses(paths):
    launch(paths, Component("one", (sys.executable, "-c", READY)))
    again = subprocess.run([sys.executable, "-m", "controlplane.cli.supervisor", str(paths.etc / "components.json"),
                            str(paths.run), str(paths.log)], env={**os.environ, **control.environment()},
                           capture_output=True, text=True, timeout=20)
    assert again.returncode == 1
    assert "already running" in again.stderr


def test_stop_ends_everything(paths):
    launch(paths, Component("a", (sys.executable, "-c", READY)))
    eventually(lambda: row(paths, "a")["state"] == "running")
    pid = row(paths, "a")["pid"]
    assert control.stop(paths)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    assert control.status(paths) is None


TAKES = ("import os,signal,socket,sys;"
         "signal.signal(signal.SIGHUP, lambda *_: open(sys.argv[1], 'a').write('taken '));"
         "s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM);s.sendto(b'READY=1',os.environ['NOTIFY_SOCKET'])\n"
         "while True: signal.pause()")
OFTEN = """
import sys
from pathlib import Path
from controlplane.cli import supervisor
from controlplane.cli.supervisor import Supervisor, read
supervisor.RENEWAL_CHECK = 0.05
supervisor.RENEWAL = (sys.executable, "-c", "import sys; from pathlib import Path;"
                      "from controlplane.cli import control;"
                      "from controlplane.machinery.paths import Paths; control.reload(Paths(Path(sys.argv[1])))",
                      sys.argv[4])
Supervisor(read(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])).run()
"""


def test_it_looks_at_certificates_and_what_is_renewed_is_taken_while_running(paths):
    told, left = paths.root / "told", paths.root / "left"
    file = paths.etc / "components.json"
    components.write(file, [Component("server", (sys.executable, "-c", TAKES, str(told)), reloads=True),
                            Component("runtime", (sys.executable, "-c", TAKES, str(left)))])
    child = subprocess.Popen([sys.executable, "-c", OFTEN, str(file), str(paths.run), str(paths.log), str(paths.root)],
                             env={**os.environ, **control.environment()})
    try:
        eventually(lambda: control.status(paths) and row(paths, "runtime")["state"] == "running", 30)
        eventually(lambda: told.exists() and told.read_text().count("taken") >= 2, 30)
        assert not left.exists() and row(paths, "server")["restarts"] == 0 == row(paths, "runtime")["restarts"]
    finally:
        control.stop(paths)
        child.wait(30)
