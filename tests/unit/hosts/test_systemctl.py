"""Starting services: waited for while they get on, given up and named when they do not, told when systemd refuses."""

import functools

import pytest

from controlplane.cli.patience import Patience
from controlplane.hosts import services
from controlplane.hosts.services import Services
from controlplane.machinery.errors import Finding

HANGS = """#!/bin/sh
case $2 in
start) exec sleep 600 ;;
show) printf 'Id=pelamis-apiserver.service\\nActiveState=active\\nMainPID=1\\n\\n'
      printf 'Id=pelamis-agent.service\\nActiveState=activating\\nMainPID=%s\\n' "$PPID" ;;
*) echo 'Job for pelamis-agent.service failed because the control process exited with error code.' >&2; exit 1 ;;
esac
"""


@pytest.fixture(autouse=True)
def systemctl(tmp_path, monkeypatch):
    (tmp_path / "systemctl").write_text(HANGS)
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(services, "LOOK_SECONDS", 0.01)


def test_a_start_that_gets_nowhere_is_given_up(monkeypatch):
    monkeypatch.setattr(services, "Patience", functools.partial(Patience, quiet=0.1))
    with pytest.raises(Finding, match=r"pelamis-agent\.service does not start") as told:
        Services().start("pelamis.target")
    assert told.value.fix == "journalctl -b -n 50 -u pelamis-agent.service"


def test_what_systemd_refuses_is_told():
    with pytest.raises(Finding, match="control process exited") as told:
        Services().restart("pelamis-agent.service")
    assert "-u pelamis-agent.service" in told.value.fix
