"""Three hosts with systemd and a cluster across them, as the install leaves them: what users have and do every day."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from agent.image import demo
from controlplane.store import backup
from controlplane.store.backup import DAY
from tests.client.cluster import eventually
from tests.host.conftest import Lab
from tests.host.machine import Machine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("workload")]
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
                              for pid in (lab.server.processes()["containerd"], "1"))
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
        running = [name for name, pid in machine.processes().items() if pid != "0"]
        assert len(running) == (4 if machine is lab.server else 2) and all(held(machine, name) for name in running)
        own = machine.run("cat", f"/proc/{machine.processes()['containerd']}/cmdline").stdout.split("\0")
        assert own[:3] == ["/usr/bin/containerd", "--config", "/etc/pelamis/containerd.toml"]
        assert machine.run("systemctl", "is-active", "containerd", check=False).stdout == "inactive\n"
        logs = machine.run("find", "/var/log/pelamis", "-type", "f", "-not", "-path", "*/pods/*").stdout
        assert not logs, "the journal has them: there is nothing to rotate"
        assert "d /run/pelamis 0755 root" in machine.run("systemd-tmpfiles", "--cat-config").stdout
    timers = lab.server.run("systemctl", "list-timers", "--no-pager").stdout
    assert all(name in timers for name in ("pelamis-prepare.timer", "pelamis-snapshot.timer"))


def test_a_workload_across_the_hosts(lab: Lab) -> None:
    assert set(lab.pods()) == {"host1", "host2", "host3"}
    eventually(lab.answers)


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
        name = lab.pod_on(agent)
        with subprocess.Popen(lab.server.enter("/root/venv/bin/python", "-c", RESOLVER), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as resolver:
            assert resolver.stdout is not None and resolver.stdout.readline() == "up\n"
            asked = ("exec", name, "--", "/bin/busybox", "nslookup", "far.example")
            eventually(lambda: "192.0.2.7" in lab.kubectl(*asked))
            resolver.communicate("end\n")
    finally:
        lab.kubectl("delete", "pod", "plain", "--ignore-not-found")
        agent.run("rm", "-r", "/etc/resolv.conf", behind)


def test_the_doctor_finds_what_is_broken(lab: Lab) -> None:
    machine = lab.agents[0]
    eventually(machine.sound)
    machine.run("systemctl", "stop", "pelamis-containerd")
    found = json.loads(machine.run("pelamis", "doctor", "--output", "json", check=False).stdout)
    facts = [f["fact"] for f in found["findings"] if f["level"] == "problem"]
    assert "the container runtime does not answer" in facts and not found["healthy"]
    machine.run("systemctl", "start", "pelamis-containerd")
    eventually(machine.sound)
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
    before = lab.pods()
    assert "sound" in lab.server.run("pelamis", "snapshot", "verify").stdout
    lab.server.run("pelamis", "snapshot", "restore")
    eventually(lambda: "precious" in lab.kubectl("get", "configmaps"))
    assert "later" not in lab.kubectl("get", "configmaps")
    eventually(lambda: lab.ready() and lab.answers())
    assert lab.pods() == before
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
