"""Three hosts with systemd from the install to the reset: what users do, in their order, on one cluster."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from agent.image import demo
from tests.client.cluster import eventually
from tests.host.conftest import Lab
from tests.host.machine import Machine

pytestmark = pytest.mark.host
# Exposure by systemd-analyze, in tenths: what needs not be open to make pods must stay this tight.
EXPOSURE = {"apiserver": 15, "controllers": 15, "snapshot": 16, "prepare": 60, "agent": 68}
INHERITED = "NoNewPrivs|CapBnd|Seccomp"  # what a process hands to those it starts: containerd, to every container
ROOTLESS = ("apiserver", "controllers")
WORKLOAD = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: "IMAGE", imagePullPolicy: IfNotPresent}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {selector: {app: each}, ports: [{port: 80, targetPort: 80}]}
""".replace("IMAGE", demo.DEMO)
LATE = """
import sys
from pathlib import Path
from controlplane.client import certificates
from controlplane.machinery.clock import FakeClock, SYSTEM
from controlplane.pki.authority import Authority
authority = Authority.load(Path("/etc/pelamis/pki"), FakeClock(SYSTEM.now() - float(sys.argv[3]) * 86400))
for wanted in certificates.of_node(sys.argv[1], sys.argv[2]):
    pair = authority.issue(wanted.common_name, wanted.organizations, [wanted.usages[1].split()[0]], wanted.sans)
    Path("/root/late", wanted.file + ".crt").write_bytes(pair.certificate)
    Path("/root/late", wanted.file + ".key").write_bytes(pair.key)
"""
TAKE = """
from pathlib import Path
from controlplane.cli import settings
from controlplane.client import certificates
from controlplane.machinery.paths import Paths
from controlplane.pki.authority import Pair
paths = Paths()
kept = settings.load(paths.etc / "node.json")
for wanted in certificates.of_node(kept.node_name, kept.node_ip):
    pair = Pair(*(Path("/root/late", f"{wanted.file}.{end}").read_bytes() for end in ("crt", "key")))
    certificates.store(paths, kept.server, (paths.pki / "ca.crt").read_bytes(), wanted, pair)
"""
OLD = """
from pathlib import Path
from controlplane.machinery.clock import FakeClock, SYSTEM
from controlplane.pki import leaves
from controlplane.pki.authority import Authority
folder = Path("/etc/pelamis/pki")
authority = Authority.load(folder, FakeClock(SYSTEM.now() - 300 * 86400))
leaf = leaves.wanted("host1", "192.168.79.11", "10.96.0.0/16", "cluster.local")[0]
pair = authority.issue(leaf.common_name, leaf.organizations, leaf.usages, leaf.sans)
(folder / "apiserver.crt").write_bytes(pair.certificate)
(folder / "apiserver.key").write_bytes(pair.key)
Path("/root/old.crt").write_bytes(pair.certificate)
"""

KEPT = """
import http.client, ssl, sys
connection = http.client.HTTPSConnection("127.0.0.1", 6443, context=ssl._create_unverified_context())
connection.connect()
socket = connection.sock
for turn in range(2):
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    answer.read()
    assert connection.sock is socket, "it was made anew"
    print(answer.status, flush=True)
    if not turn:
        sys.stdin.readline()
"""


def address(lab: Lab) -> str:
    return lab.kubectl("get", "service", "each", "-o", "jsonpath={.spec.clusterIP}")


def answers(lab: Lab, *machines: str) -> bool:
    """Whether the Service answers on each of these hosts, or on all."""
    where = address(lab)
    for machine in lab.machines:
        if not machines or machine.name in machines:
            done = machine.run("curl", "-sf", "--max-time", "5", f"http://{where}/", check=False)
            assert done.returncode == 0, f"{machine.name}: {done.stderr}"
    return True


def processes(machine: Machine) -> dict[str, str]:
    """Service → its process."""
    return {name: machine.run("systemctl", "show", f"pelamis-{name}", "-p", "MainPID", "--value").stdout.strip()
            for name in ("apiserver", "controllers", "agent", "containerd")}


def shown(machine: Machine, port: int) -> str:
    """The certificate that is served."""
    return machine.run("/root/venv/bin/python", "-c", "import ssl, sys; "
                       "print(ssl.get_server_certificate(('127.0.0.1', int(sys.argv[1]))))", str(port)).stdout.strip()


def pods(lab: Lab) -> dict[str, str]:
    """Node → the container it runs, and since when."""
    form = ("jsonpath={range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].containerID}/"
            "{.status.containerStatuses[0].state.running.startedAt}{'\\n'}{end}")
    return dict(line.split() for line in lab.kubectl("get", "pods", "-l", "app=each", "-o", form).splitlines())


def test_units(lab: Lab) -> None:
    for machine in lab.machines:
        checked = machine.run("sh", "-c", "systemd-analyze verify /etc/systemd/system/pelamis*")
        assert checked.stderr == "" == checked.stdout
        failed = machine.run("systemctl", "list-units", "--failed", "--no-legend").stdout
        assert "pelamis" not in failed
    for component, most in EXPOSURE.items():
        lab.server.run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={most}",
                       f"/etc/systemd/system/pelamis-{component}.service")
    of_containerd, of_init = (lab.server.run("grep", "-E", INHERITED, f"/proc/{pid}/status").stdout
                              for pid in (processes(lab.server)["containerd"], "1"))
    assert of_containerd == of_init, "containers are shut in by their own settings alone"
    for component in ROOTLESS:
        user = lab.server.run("systemctl", "show", f"pelamis-{component}", "-p", "MainPID", "--value").stdout.strip()
        assert f"pelamis-{component}" in lab.server.run("ps", "-o", "user:30=", "-p", user).stdout
    lines = lab.server.run("journalctl", "--no-pager", "-o", "json", "-u", "pelamis-apiserver", "-t",
                           "pelamis-apiserver").stdout.splitlines()
    said = [json.loads(line) for line in lines]
    assert any("serving on" in entry["MESSAGE"] and entry["PRIORITY"] == "6" for entry in said), said
    assert not any("\x1b" in entry["MESSAGE"] or entry["MESSAGE"].startswith("<") for entry in said)


def test_a_workload_across_the_hosts(lab: Lab) -> None:
    lab.kubectl("apply", "-f", "-", input=WORKLOAD)
    lab.kubectl("rollout", "status", "daemonset/each", "--timeout=150s")
    assert set(pods(lab)) == {"host1", "host2", "host3"}
    eventually(lambda: answers(lab))


def test_the_kubelets_serve_with_certificates_of_the_cluster(lab: Lab) -> None:
    name = next(n for n in lab.kubectl("get", "pods", "-l", "app=each", "-o", "name").split())
    assert lab.kubectl("exec", name, "--", "/bin/busybox", "echo", "hello") == "hello\n"
    csrs = lab.kubectl("get", "csr", "--no-headers").splitlines()
    for agent in lab.agents:
        own = [line for line in csrs if f"system:node:{agent.name} " in line and "Approved,Issued" in line]
        assert len(own) == 2, csrs


def requests(lab: Lab) -> int:
    return lab.kubectl("get", "csr", "--no-headers").count("Approved,Issued")


def aged(lab: Lab, machine: Machine, days: int, folder: str) -> None:
    """Put certificates of a node that were issued `days` ago into a folder of it."""
    for host in (lab.server, machine):
        (host.root / "root/late").mkdir(exist_ok=True)
    lab.server.python(LATE, machine.name, machine.address, str(days))
    for file in (lab.server.root / "root/late").iterdir():
        (machine.root / folder / file.name).write_bytes(file.read_bytes())


def test_certificates_are_renewed_while_the_agent_runs(lab: Lab) -> None:
    agent = lab.agents[0]
    aged(lab, agent, 300, "etc/pelamis/pki")
    old = (agent.root / "etc/pelamis/pki/kubelet.crt").read_bytes()
    before, issued = pods(lab), requests(lab)
    agent.run("systemctl", "restart", "pelamis-agent")
    pid = agent.run("systemctl", "show", "pelamis-agent", "-p", "MainPID", "--value").stdout

    def renewed() -> bool:
        return (agent.root / "etc/pelamis/pki/kubelet.crt").read_bytes() != old
    eventually(renewed)
    eventually(lambda: requests(lab) == issued + 3)
    eventually(lab.ready)
    name = lab.kubectl("get", "pods", "-l", "app=each", "-o", "name", "--field-selector",
                       f"spec.nodeName={agent.name}").strip()
    eventually(lambda: lab.kubectl("exec", name, "--", "/bin/busybox", "echo", "still") == "still\n")
    assert agent.run("systemctl", "show", "pelamis-agent", "-p", "MainPID", "--value").stdout == pid
    assert pods(lab) == before, "no container was restarted"


def test_a_node_that_was_off_for_longer_than_its_certificates_last(lab: Lab) -> None:
    """Nobody believes it any more; it is told the way, and joins again as the node it was."""
    machine, before = lab.agents[1], pods(lab)
    machine.run("systemctl", "stop", "pelamis-agent")
    aged(lab, machine, 400, "root/late")
    machine.python(TAKE)
    machine.run("systemctl", "start", "--no-block", "pelamis-agent")
    told = machine.run("pelamis", "doctor", check=False).stdout
    assert "pki/node.crt ended 35 days ago" in told and "on the server: pelamis token create" in told, told
    renewal = machine.run("pelamis", "certs", "renew", check=False)
    assert renewal.returncode == 1 and "pelamis token create" in renewal.stderr, renewal
    machine.pelamis(*lab.server.pelamis("token", "create").stdout.split()[1:])
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == before


def test_the_servers_certificates_are_renewed_beside_the_authority(lab: Lab) -> None:
    server, before, running = lab.server, pods(lab), processes(lab.server)
    server.python(OLD)
    (server.root / "root/kept.py").write_text(KEPT)
    with subprocess.Popen(server.enter("/root/venv/bin/python", "/root/kept.py"), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as open_all_the_time:
        assert open_all_the_time.stdout is not None and open_all_the_time.stdout.readline() == "200\n"
        server.run("systemctl", "start", "pelamis-prepare")  # as its timer does every day
        right = (server.root / "etc/pelamis/pki/apiserver.crt").read_text().strip()
        assert right != (server.root / "root/old.crt").read_text().strip()
        eventually(lambda: shown(server, 6443) == right)
        assert open_all_the_time.communicate("\n")[0] == "200\n", "a connection lives on"
    server.pelamis("certs", "renew")
    eventually(lambda: shown(server, 6443) not in (right, ""))
    eventually(lambda: shown(server, 10250) == (server.root / "etc/pelamis/pki/kubelet.crt").read_text().strip())
    assert processes(server) == running, "nothing was started anew"
    assert "apiserver.crt" in server.run("pelamis", "certs").stdout
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == before


def test_every_service_may_be_killed(lab: Lab) -> None:
    before = pods(lab)
    for machine in lab.machines:
        machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "pelamis-*.service")
    eventually(lambda: lab.ready() and answers(lab), seconds=120)
    assert pods(lab) == before


def test_a_process_that_hangs_is_started_anew(lab: Lab) -> None:
    """By its unit's watchdog, which a person has told to wait seconds instead of a minute."""
    server, folder = lab.server, "/etc/systemd/system/pelamis-controllers.service.d"
    anew = "systemctl daemon-reload; systemctl restart pelamis-controllers"
    server.run("sh", "-ec", f"mkdir {folder}; printf '[Service]\\nWatchdogSec=5\\n' > {folder}/override.conf; {anew}")
    try:
        hangs = processes(server)
        server.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", "pelamis-controllers")
        eventually(lambda: "watchdog" in server.run("journalctl", "--no-pager", "-b", "-u", "pelamis-controllers",
                                                    "-t", "systemd").stdout.lower())
        eventually(lambda: processes(server)["controllers"] not in ("0", hangs["controllers"]))
    finally:
        server.run("sh", "-ec", f"rm -r {folder}; {anew}")
    assert {**processes(server), "controllers": ""} == {**hangs, "controllers": ""}


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


def upgrade(lab: Lab, name: str, machine: Machine, *more: str) -> subprocess.CompletedProcess[str]:
    return machine.run(*upgrading(name, *more), check=False)


def test_an_upgrade_restarts_no_container(lab: Lab) -> None:
    before = pods(lab)
    folder = another(lab, "next", "0.2.0")
    early = upgrade(lab, folder, lab.agents[0])
    assert early.returncode == 1 and "upgrade the server first" in early.stderr, early
    for machine in lab.machines:
        done = upgrade(lab, folder, machine)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0.2.0" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
        if machine is lab.server:
            skewed(lab)
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == before
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
    machine, before = lab.agents[1], pods(lab)
    lab.kubectl("create", "poddisruptionbudget", "skewed", "--selector=app=skewed", "--max-unavailable=0")
    eventually(lambda: lab.kubectl("get", "pdb", "skewed", "-o", "jsonpath={.status.expectedPods}") == "4")
    done = upgrade(lab, another(lab, "drained", "0.2.9"), lab.server)
    assert done.returncode == 0, done.stdout + done.stderr
    stopped = upgrade(lab, "drained", machine, "--drain", "--drain-timeout", "1s")
    assert stopped.returncode == 1 and "did not leave host3 within 1 s" in stopped.stderr, stopped
    assert "budget skewed needs 4 healthy pods" in stopped.stderr and "--drain-timeout" in stopped.stderr, stopped
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
    assert pods(lab) == before
    assert lab.kubectl("get", "node", machine.name, "-o", "jsonpath={.spec.unschedulable}") in ("", "false")
    assert upgrade(lab, "drained", lab.agents[0]).returncode == 0
    lab.kubectl("delete", "deployment/skewed", "poddisruptionbudget/skewed")


def test_a_version_that_fails_is_given_up(lab: Lab) -> None:
    before, machine = pods(lab), lab.agents[0]
    done = upgrade(lab, another(lab, "bad", "0.2.10", broken=True), machine)
    assert done.returncode == 1 and "runs again" in done.stderr, done.stdout + done.stderr
    assert "0.2.9" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == before


def sound(machine: Machine) -> bool:
    done = machine.run("pelamis", "doctor", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def test_the_doctor_finds_what_is_broken(lab: Lab) -> None:
    machine = lab.agents[0]
    eventually(lambda: sound(machine))
    machine.run("systemctl", "stop", "pelamis-containerd")
    found = json.loads(machine.run("pelamis", "doctor", "--output", "json", check=False).stdout)
    facts = [f["fact"] for f in found["findings"] if f["level"] == "problem"]
    assert "the container runtime does not answer" in facts and not found["healthy"]
    machine.run("systemctl", "start", "pelamis-containerd")
    eventually(lambda: sound(machine))
    assert "running" in machine.run("pelamis", "status").stdout
    assert "node.crt" in machine.run("pelamis", "certs").stdout


def test_a_snapshot_brings_back_what_was_deleted(lab: Lab) -> None:
    lab.kubectl("create", "configmap", "precious", "--from-literal=a=b")
    saved = lab.server.run("pelamis", "snapshot", "save").stdout
    assert "saved revision" in saved
    before_it = lab.server.run("pelamis", "snapshot", "list").stdout
    lab.kubectl("create", "configmap", "between")  # one more revision: a snapshot is named by second and revision
    lab.server.run("systemctl", "start", "pelamis-snapshot")  # as its timer does, shut in
    assert lab.server.run("pelamis", "snapshot", "list").stdout != before_it
    lab.kubectl("delete", "configmap", "precious")
    lab.kubectl("create", "configmap", "later")
    before = pods(lab)
    assert "sound" in lab.server.run("pelamis", "snapshot", "verify").stdout
    lab.server.run("pelamis", "snapshot", "restore")
    eventually(lambda: "precious" in lab.kubectl("get", "configmaps"))
    assert "later" not in lab.kubectl("get", "configmaps")
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == before
    assert "sound" in lab.server.run("pelamis", "store", "check").stdout


def move(machine: Machine, old: str, new: str) -> None:
    """Give a machine another address, as a DHCP server does."""
    machine.run("sh", "-c", f"ip address add {new}/24 dev eth0; ip address del {old}/24 dev eth0; "
                f"ip address add {new}/24 dev eth0 2>/dev/null; ip route replace default via 192.168.79.1")


def test_a_server_with_another_address_and_host_names_that_change(lab: Lab) -> None:
    """One command on each host, and all is as before; a node's name is its own, whatever the host is called."""
    server, old, new, before = lab.server, lab.server.address, "192.168.79.31", pods(lab)
    for machine in (server, lab.agents[0]):
        machine.run("hostname", "renamed-" + machine.name)
    for was, now in ((old, new), (new, old)):
        move(server, was, now)
        server.run("systemctl", "start", "pelamis-prepare")
        eventually(lambda now=now: f"https://{now}:6443" in lab.kubectl("cluster-info"))  # type: ignore[misc]
        told = lab.agents[0].run("pelamis", "doctor", check=False).stdout
        assert f"curl -k https://{was}:6443/readyz; if its address changed: pelamis prepare --server" in told, told
        for agent in lab.agents:
            lost = agent.run("pelamis", "prepare", "--server", f"https://{agent.address}:6443", check=False)
            assert lost.returncode == 1 and "cannot be reached" in lost.stderr, lost.stderr
            eventually(lambda agent=agent, now=now: "follows its server" in agent.run(  # type: ignore[misc]
                "pelamis", "prepare", "--server", f"https://{now}:6443").stdout)
        eventually(lambda: lab.ready() and answers(lab))
        endpoints = lab.kubectl("get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}")
        assert endpoints == now and pods(lab) == before
        command = server.pelamis("token", "create").stdout
        assert f"--server https://{now}:6443" in command
    for machine in (server, lab.agents[0]):
        machine.run("hostname", machine.name)


def test_a_node_with_another_address(lab: Lab) -> None:
    agent, before = lab.agents[1], pods(lab)
    old, new = agent.address, "192.168.79.23"
    move(agent, old, new)
    agent.run("systemctl", "start", "pelamis-prepare")

    def moved() -> bool:
        said = lab.kubectl("get", "node", agent.name, "-o", "jsonpath={.status.addresses[*].address}")
        assert new in said and old not in said, said
        return True
    eventually(moved)
    eventually(lambda: lab.ready() and answers(lab))
    name = lab.kubectl("get", "pods", "-l", "app=each", "-o", "name", "--field-selector",
                       f"spec.nodeName={agent.name}").strip()
    eventually(lambda: lab.kubectl("exec", name, "--", "/bin/busybox", "echo", "moved") == "moved\n")
    assert pods(lab) == before
    move(agent, new, old)
    agent.run("systemctl", "start", "pelamis-prepare")
    eventually(lambda: lab.ready() and answers(lab))


def test_a_reboot_and_a_power_cut(lab: Lab) -> None:
    second, third = lab.agents
    second.reboot()
    third.cut()
    third.start()
    eventually(lambda: lab.ready() and answers(lab), seconds=120)
    lab.server.reboot()
    eventually(lambda: lab.ready() and answers(lab), seconds=120)
