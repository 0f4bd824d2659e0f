"""Three hosts with systemd from the install to the reset: what users do, in their order, on one cluster."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.image import demo
from controlplane.hosts.drain import MARK
from controlplane.store import backup
from controlplane.store.backup import DAY
from tests.client.cluster import eventually
from tests.host.conftest import Lab
from tests.host.machine import Machine
from tests.host.test_doctor import lacks

pytestmark = pytest.mark.host
# Exposure by systemd-analyze, in tenths: what needs not be open to make pods must stay this tight.
EXPOSURE = {"apiserver": 15, "controllers": 15, "snapshot": 16, "prepare": 60, "agent": 68}
INHERITED = "NoNewPrivs|CapBnd|Seccomp"  # what a process hands to those it starts: containerd, to every container
ROOTLESS = ("apiserver", "controllers")
ALL = {"Type": "notify", "Restart": "always", "StartLimitIntervalUSec": "0"}  # what systemd shows of every service
OWN = {**ALL, "WatchdogUSec": "1min", "CPUWeight": "200"}
HELD = {"containerd": {**ALL, "KillMode": "process", "OOMScoreAdjust": "-999", "TasksMax": "infinity"},
        "agent": {**OWN, "KillMode": "process", "OOMScoreAdjust": "-999", "TasksMax": "infinity"},
        **{n: {**OWN, "KillMode": "control-group", "OOMScoreAdjust": "-998", "TasksMax": "512"} for n in ROOTLESS}}
RESOLVER = """
import select, socket, sys
listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listening.bind(("192.168.79.11", 53))
print("up", flush=True)
while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
    asked, who = listening.recvfrom(512)
    end = asked.index(0, 12) + 5
    found = int(asked[end - 3] == 1)  # an A record, and no other
    record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\4\\0\\4\\xc0\\0\\2\\7" * found
    listening.sendto(asked[:2] + bytes([0x81, 0x80, 0, 1, 0, found, 0, 0, 0, 0]) + asked[12:end] + record, who)
"""
# A pod's way to say that it ended, and in which order.
ENDS = ("b=/bin/busybox; trap '$b sleep TAKES; $b hostname >> /told/order; exit 0' TERM; "
        "while :; do $b sleep 600 & wait $!; done")
KILLED = """
import os, signal
from controlplane.cli.__main__ import main
from controlplane.hosts.services import Services
Services.restart = lambda self, *units: os.kill(os.getpid(), signal.SIGKILL)
main(["upgrade"])
"""
LOGIND = "/etc/systemd/system/systemd-logind.service"
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


def held(machine: Machine, name: str) -> bool:
    """Whether systemd runs the service as it is to be, and the kernel counts its processes."""
    want = HELD[name]
    told = machine.run("systemctl", "show", f"pelamis-{name}", "-p", ",".join([*want, "ControlGroup"])).stdout
    said = dict(line.split("=", 1) for line in told.splitlines())
    group = said.pop("ControlGroup")
    assert said == want, name
    files = [f"/sys/fs/cgroup{hierarchy}{group}/pids.max" for hierarchy in ("", "/pids")]  # of version 2, and of 1
    assert machine.run("cat", *files, check=False).stdout.strip() == want["TasksMax"].replace("infinity", "max")
    return True


def test_what_systemd_holds_the_services_to(lab: Lab) -> None:
    for machine in lab.machines:
        running = [name for name, pid in processes(machine).items() if pid != "0"]
        assert len(running) == (4 if machine is lab.server else 2) and all(held(machine, name) for name in running)
        own = machine.run("cat", f"/proc/{processes(machine)['containerd']}/cmdline").stdout.split("\0")
        assert own[:3] == ["/usr/bin/containerd", "--config", "/etc/pelamis/containerd.toml"]
        assert machine.run("systemctl", "is-active", "containerd", check=False).stdout == "inactive\n"
        logs = machine.run("find", "/var/log/pelamis", "-type", "f", "-not", "-path", "*/pods/*").stdout
        assert not logs, "the journal has them: there is nothing to rotate"
        assert "d /run/pelamis 0755 root" in machine.run("systemd-tmpfiles", "--cat-config").stdout
    timers = lab.server.run("systemctl", "list-timers", "--no-pager").stdout
    assert all(name in timers for name in ("pelamis-prepare.timer", "pelamis-snapshot.timer"))


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


def test_names_where_the_hosts_resolver_is_a_stub(lab: Lab) -> None:
    """As on Ubuntu: pods and the cluster's DNS are given whom systemd-resolved asks, never its own address."""
    agent, behind = lab.agents[0], "/run/systemd/resolve/resolv.conf"
    agent.run("sh", "-ec", f"mkdir -p {behind.rpartition('/')[0]}; echo nameserver {lab.server.address} > {behind}; "
              "echo nameserver 127.0.0.53 > /etc/resolv.conf")
    pod = {"spec": {"nodeName": agent.name, "dnsPolicy": "Default", "terminationGracePeriodSeconds": 1}}
    try:
        lab.kubectl("run", "plain", f"--image={demo.DEMO}", "--overrides", json.dumps(pod))
        lab.kubectl("wait", "--for=condition=Ready", "pod/plain", "--timeout=150s")
        given = lab.kubectl("exec", "plain", "--", "/bin/busybox", "cat", "/etc/resolv.conf")
        assert f"nameserver {lab.server.address}" in given and "127.0.0" not in given
        name = lab.kubectl("get", "pods", "-l", "app=each", "-o", "name", "--field-selector",
                           f"spec.nodeName={agent.name}").strip()
        with subprocess.Popen(lab.server.enter("/root/venv/bin/python", "-c", RESOLVER), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as resolver:
            assert resolver.stdout is not None and resolver.stdout.readline() == "up\n"
            asked = ("exec", name, "--", "/bin/busybox", "nslookup", "far.example")
            eventually(lambda: "192.0.2.7" in lab.kubectl(*asked))
            resolver.communicate("end\n")
    finally:
        lab.kubectl("delete", "pod", "plain", "--ignore-not-found")
        agent.run("rm", "-r", "/etc/resolv.conf", behind)


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
    """Its own, the one it serves with and the proxy's: by itself when they are old, and when a person says so."""
    agent = lab.agents[0]
    aged(lab, agent, 300, "etc/pelamis/pki")
    before, issued = pods(lab), requests(lab)

    def kept() -> dict[str, str]:
        return {name: (agent.root / f"etc/pelamis/pki/{name}.crt").read_text().strip()
                for name in ("node", "kubelet", "kube-proxy")}

    def renewed(old: dict[str, str], count: int) -> bool:
        new = kept()
        return all(new[name] != old[name] for name in old) and shown(agent, 10250) == new["kubelet"] and (
            requests(lab) == issued + count)
    old = kept()
    agent.run("systemctl", "restart", "pelamis-agent")
    pid = processes(agent)["agent"]
    eventually(lambda: renewed(old, 3))
    old = kept()
    agent.pelamis("certs", "renew")
    eventually(lambda: renewed(old, 6))
    eventually(lab.ready)
    name = lab.kubectl("get", "pods", "-l", "app=each", "-o", "name", "--field-selector",
                       f"spec.nodeName={agent.name}").strip()
    eventually(lambda: lab.kubectl("exec", name, "--", "/bin/busybox", "echo", "still") == "still\n")
    assert processes(agent)["agent"] == pid
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
    left = re.search(r"(?m)^apiserver\.crt .* (\d+) +\d{4}-\d\d-\d\d$", server.run("pelamis", "certs").stdout)
    assert left is not None and 363 <= int(left[1]) <= 365, "days"
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


def killed(machine: Machine, name: str) -> None:
    """An upgrade that ends when the new version's units are there, and nothing of it runs."""
    done = machine.run("env", f"PYTHONPATH=/root/{name}", "/root/venv/bin/python", "-c", KILLED, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def upgrade(lab: Lab, name: str, machine: Machine, *more: str) -> subprocess.CompletedProcess[str]:
    return machine.run(*upgrading(name, *more), check=False)


def test_an_upgrade_restarts_no_container(lab: Lab) -> None:
    before = pods(lab)
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
                   for name, pid in processes(machine).items() if name != "containerd" and pid != "0")
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
    assert pods(lab) == before
    assert lab.kubectl("get", "node", machine.name, "-o", "jsonpath={.spec.unschedulable}") in ("", "false")
    assert upgrade(lab, "drained", lab.agents[0]).returncode == 0
    lab.kubectl("delete", "deployment/skewed", "poddisruptionbudget/skewed")


def test_a_version_that_fails_is_given_up(lab: Lab) -> None:
    before, machine = pods(lab), lab.server
    done = upgrade(lab, another(lab, "bad", "0.2.10", broken=True), machine)
    assert done.returncode == 1 and "runs again" in done.stderr, done.stdout + done.stderr
    assert "0.2.9" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == before


def test_back_to_the_version_before(lab: Lab) -> None:
    """Not to one that was given up; the server's own is what agents are told from then on."""
    running = pods(lab)
    for machine in (lab.agents[0], lab.server):
        done = machine.run("pelamis", "upgrade", "--back")
        assert "0.2.0" in done.stdout and "0.2.0" in machine.run("readlink", "/usr/local/lib/pelamis/current").stdout
    told = lab.kubectl("-n", "kube-public", "get", "configmap", "cluster-info", "-o", "jsonpath={.data.pelamis}")
    assert json.loads(told)["version"].startswith("0.2.0")
    eventually(lambda: lab.ready() and answers(lab))
    assert pods(lab) == running


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


def test_snapshots_are_forgotten_by_the_policy(lab: Lab) -> None:
    """Of a snapshot for every hour of 50 days the timer's next run leaves the newest eight, and one of each of seven
    days and four weeks."""
    server = lab.server
    folder = server.root / "var/lib/pelamis/snapshots"
    server.run("pelamis", "snapshot", "save")
    newest, now = max(folder.glob("store-*")), datetime.now(UTC)
    for hours in range(1, 50 * 24):
        (folder / f"store-{now - timedelta(hours=hours):%Y%m%dT%H%M%S}Z-r1.db").hardlink_to(newest)
    server.run("systemctl", "start", "pelamis-snapshot")
    times = sorted((snapshot.time for snapshot in backup.listed(folder)), reverse=True)
    days, weeks = (list(dict.fromkeys(int(time // length) for time in times)) for length in (DAY, 7 * DAY))
    assert len(times) <= 8 + 7 + 4 and times[0] - times[7] < DAY, times
    assert days[:7] == list(range(days[0], days[0] - 7, -1)) and weeks == list(range(weeks[0], weeks[0] - 4, -1))
    assert "KiB now" in server.run("pelamis", "store", "compact").stdout and lab.ready()


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


def ending(name: str, node: str, takes: int, priority: str) -> dict[str, Any]:
    """A pod that takes so many seconds to end."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": node, "priorityClassName": priority,
        "volumes": [{"name": "told", "hostPath": {"path": "/root/told", "type": "DirectoryOrCreate"}}],
        "containers": [{"name": "main", "image": demo.DEMO, "imagePullPolicy": "IfNotPresent",
                        "command": ["/bin/busybox", "sh", "-c", ENDS.replace("TAKES", str(takes))],
                        "volumeMounts": [{"name": "told", "mountPath": "/told"}]}]}}


def test_pods_end_before_the_host_by_their_priority(lab: Lab) -> None:
    """logind is asked to wait for them; what has a higher priority ends after what has a lower one, slow as that is."""
    machine = lab.agents[1]
    conf = machine.root / "etc/pelamis/agent.conf"
    before = conf.read_text()
    machine.run("sh", "-ec", f"rm {LOGIND}; systemctl daemon-reload; systemctl start systemd-logind")
    try:
        conf.write_text(before.replace('FLAGS=""', 'FLAGS="--shutdown-grace-period-by-pod-priority=0=60s,1000=60s"'))
        machine.run("systemctl", "restart", "pelamis-agent")
        eventually(lambda: "shutdown" in machine.run("systemd-inhibit", "--list", "--no-pager", "--no-legend").stdout)
        lab.kubectl("create", "priorityclass", "later", "--value=1000")
        for name, takes, priority in (("sooner", 2, ""), ("later", 0, "later")):
            lab.kubectl("create", "-f", "-", input=json.dumps(ending(name, machine.name, takes, priority)))
        lab.kubectl("wait", "--for=condition=Ready", "pod/sooner", "pod/later", "--timeout=150s")
        machine.reboot()
        assert (machine.root / "root/told/order").read_text().split() == ["sooner", "later"]
        for name in ("sooner", "later"):
            status = json.loads(lab.kubectl("get", "pod", name, "-o", "json"))["status"]
            assert (status["phase"], status["reason"]) == ("Failed", "Terminated")
            assert status["message"] == "Pod was terminated in response to imminent node shutdown."
        eventually(lambda: lab.ready() and answers(lab), seconds=120)
    finally:
        conf.write_text(before)
        machine.run("sh", "-ec", f"systemctl stop systemd-logind; ln -sfn /dev/null {LOGIND}; systemctl daemon-reload; "
                    "systemctl restart pelamis-agent; rm -rf /root/told")
        lab.kubectl("delete", "pod/sooner", "pod/later", "priorityclass/later", "--ignore-not-found")


def since(machine: Machine, name: str, what: str) -> int:
    """When the service came to be so, on the host's own clock."""
    return int(machine.run("systemctl", "show", f"pelamis-{name}", "-p", f"{what}TimestampMonotonic", "--value").stdout)


def clean(lab: Lab, machine: Machine) -> bool:
    """Whether a host that was off has all it had and nothing more: no service before the one it needs, no sandbox or
    address of a pod that is gone, a runtime folder as it is to be, and nothing the doctor finds."""
    assert since(machine, "containerd", "ActiveEnter") <= since(machine, "agent", "ExecMainStart")
    if machine is lab.server:
        assert since(machine, "apiserver", "ActiveEnter") <= since(machine, "controllers", "ExecMainStart")
        assert "sound" in machine.run("pelamis", "store", "check").stdout
    assert machine.run("stat", "-c", "%a %U", "/run/pelamis").stdout == "755 root\n"
    return sound(machine) and lacks(machine, "sandboxes")


def test_a_reboot_and_a_power_cut(lab: Lab) -> None:
    """Of an agent and of the server; the test before has rebooted the other agent."""
    agent = lab.agents[0]
    agent.cut()
    agent.start()
    eventually(lambda: lab.ready() and answers(lab), seconds=120)
    lab.server.reboot()
    eventually(lambda: lab.ready() and answers(lab), seconds=120)
    lab.kubectl("create", "configmap", "written-last")
    lab.server.cut()
    lab.server.start()
    eventually(lambda: lab.ready() and answers(lab), seconds=120)
    lab.kubectl("delete", "configmap", "written-last")
    for machine in lab.machines:
        eventually(lambda machine=machine: clean(lab, machine), seconds=120)  # type: ignore[misc]
