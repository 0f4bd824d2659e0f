"""Upgrades of three hosts, and the way back: no container is restarted, and what fails is given up."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from agent.image import demo
from controlplane.hosts.drain import MARK
from tests.client.cluster import eventually
from tests.host.conftest import Lab
from tests.host.machine import Machine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("workload")]
KILLED = """
import os, signal
from controlplane.cli.__main__ import main
from controlplane.hosts.services import Services
Services.restart = lambda self, *units: os.kill(os.getpid(), signal.SIGKILL)
main(["upgrade"])
"""


def another(lab: Lab, name: str, number: str, broken: bool = False) -> str:
    """A checkout of another version on every host; its command."""
    for machine in lab.machines:
        machine.run("sh", "-ec", f"rm -rf /root/{name}; cp -a /root/pelamis /root/{name}")
        folder = machine.root / "root" / name
        project = folder / "pyproject.toml"
        project.write_text(re.sub(r'(?m)^version = .*', f'version = "{number}"', project.read_text()))
        if broken:
            (folder / "agent/__main__.py").write_text('"""Ends at once."""\nraise SystemExit(1)\n')
    return name


def upgrading(name: str, *more: str) -> tuple[str, ...]:
    return ("env", f"PYTHONPATH=/root/{name}", "/root/venv/bin/python", "-m", "controlplane.cli", "upgrade", *more)


def killed(machine: Machine, name: str) -> None:
    """An upgrade that ends when the new version's units are there, and nothing of it runs."""
    done = machine.run("env", f"PYTHONPATH=/root/{name}", "/root/venv/bin/python", "-c", KILLED, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def upgrade(lab: Lab, name: str, machine: Machine, *more: str) -> subprocess.CompletedProcess[str]:
    return machine.run(*upgrading(name, *more), check=False)


def test_an_upgrade_restarts_no_container(lab: Lab) -> None:
    before = lab.pods()
    folder = another(lab, "next", "0.2.0")
    early = upgrade(lab, folder, lab.agents[0])
    assert early.returncode == 1 and "upgrade the server first" in early.stderr, early
    for machine in lab.machines:
        if machine is lab.agents[1]:
            killed(machine, folder)
        done = upgrade(lab, folder, machine)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0.2.0" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
        assert all("/0.2.0" in machine.run("cat", f"/proc/{pid}/cmdline").stdout
                   for name, pid in machine.processes().items() if name != "containerd" and pid != "0")
        if machine is lab.server:
            skewed(lab)
    eventually(lambda: lab.ready() and lab.answers())
    assert lab.pods() == before
    other = lab.server.pelamis("install", "server", check=False)
    assert other.returncode == 1 and "./pelamis upgrade" in other.stderr, "an older checkout does not take over"
    assert "0.2.0 runs here already" in re.sub(r"\+\w+", "", upgrade(lab, folder, lab.server).stdout)


def skewed(lab: Lab) -> None:
    """Agents of one minor version before their server do all their work."""
    for agent in lab.agents:
        assert agent.run("readlink", "/usr/local/lib/pelamis/current").stdout.startswith("0.1.")
    eventually(lab.ready)
    lab.kubectl("create", "deployment", "skewed", f"--image={demo.DEMO}", "--replicas=4")
    lab.kubectl("rollout", "status", "deployment/skewed", "--timeout=150s")
    where = lab.kubectl("get", "pods", "-l", "app=skewed", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert set(where) == {"host1", "host2", "host3"}
    some = lab.kubectl("get", "pods", "-l", "app=skewed", "-o", "name", "--field-selector", "spec.nodeName=host3")
    assert lab.kubectl("exec", some.split()[0], "--", "/bin/busybox", "echo", "old") == "old\n"


def test_an_upgrade_that_drains_first(lab: Lab) -> None:
    """Pods that can move are elsewhere before it, a budget holds, the node takes pods afterwards; others run on."""
    machine, before = lab.agents[1], lab.pods()
    lab.kubectl("create", "poddisruptionbudget", "skewed", "--selector=app=skewed", "--max-unavailable=0")
    eventually(lambda: lab.kubectl("get", "pdb", "skewed", "-o", "jsonpath={.status.expectedPods}") == "4")
    done = upgrade(lab, another(lab, "drained", "0.2.9"), lab.server)
    assert done.returncode == 0, done.stdout + done.stderr
    stopped = upgrade(lab, "drained", machine, "--drain", "--drain-timeout", "1s")
    assert stopped.returncode == 1 and "did not leave host3 within 1 s" in stopped.stderr, stopped
    assert "budget skewed needs 4 healthy pods" in stopped.stderr and "--drain-timeout" in stopped.stderr, stopped
    lab.kubectl("annotate", "node", machine.name, f"{MARK}=true")  # both as a drain leaves them that was killed
    lab.kubectl("cordon", machine.name)
    command = machine.enter(*upgrading("drained", "--drain"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        told = next(line for line in waiting.stdout if "waiting for" in line)
        assert re.search(r"default/skewed-\S+: The disruption budget skewed needs 4 healthy pods", told), told
        lab.kubectl("patch", "poddisruptionbudget", "skewed", "-p", '{"spec": {"maxUnavailable": 1}}')
        rest = waiting.communicate()[0]
    assert waiting.returncode == 0 and "pods left" in rest and "0 pods left" not in rest, rest
    lab.kubectl("rollout", "status", "deployment/skewed", "--timeout=150s")
    where = lab.kubectl("get", "pods", "-l", "app=skewed", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert machine.name not in where and len(where) == 4
    assert lab.pods() == before
    assert lab.kubectl("get", "node", machine.name, "-o", "jsonpath={.spec.unschedulable}") in ("", "false")
    assert upgrade(lab, "drained", lab.agents[0]).returncode == 0
    lab.kubectl("delete", "deployment/skewed", "poddisruptionbudget/skewed")


def test_a_version_that_fails_is_given_up(lab: Lab) -> None:
    before, machine = lab.pods(), lab.server
    done = upgrade(lab, another(lab, "bad", "0.2.10", broken=True), machine)
    assert done.returncode == 1 and "runs again" in done.stderr, done.stdout + done.stderr
    assert "0.2.9" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
    eventually(lambda: lab.ready() and lab.answers())
    assert lab.pods() == before


def test_back_to_the_version_before(lab: Lab) -> None:
    """Not to one that was given up; the server's own is what agents are told from then on."""
    running = lab.pods()
    for machine in (lab.agents[0], lab.server):
        done = machine.run("pelamis", "upgrade", "--back")
        assert "0.2.0" in done.stdout and "0.2.0" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
    told = lab.kubectl("-n", "kube-public", "get", "configmap", "cluster-info", "-o", "jsonpath={.data.pelamis}")
    assert json.loads(told)["version"].startswith("0.2.0")
    eventually(lambda: lab.ready() and lab.answers())
    assert lab.pods() == running
