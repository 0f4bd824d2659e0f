"""Certificates of a cluster of three hosts: renewed beside running pods, late, and by a person who says so."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.client.cluster import eventually
from tests.host.conftest import Lab
from tests.host.machine import Machine

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("workload")]
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
    before, issued = lab.pods(), requests(lab)

    def kept() -> dict[str, str]:
        return {name: (agent.root / f"etc/pelamis/pki/{name}.crt").read_text().strip()
                for name in ("node", "kubelet", "kube-proxy")}

    def renewed(old: dict[str, str], count: int) -> bool:
        new = kept()
        return all(new[name] != old[name] for name in old) and agent.certificate(10250) == new["kubelet"] and (
            requests(lab) == issued + count)
    old = kept()
    agent.run("systemctl", "restart", "pelamis-agent")
    pid = agent.processes()["agent"]
    eventually(lambda: renewed(old, 3))
    old = kept()
    agent.pelamis("certs", "renew")
    eventually(lambda: renewed(old, 6))
    eventually(lab.ready)
    name = lab.pod_on(agent)
    eventually(lambda: lab.kubectl("exec", name, "--", "/bin/busybox", "echo", "still") == "still\n")
    assert agent.processes()["agent"] == pid
    assert lab.pods() == before, "no container was restarted"


def test_a_node_that_was_off_for_longer_than_its_certificates_last(lab: Lab) -> None:
    """Nobody believes it any more; it is told the way, and joins again as the node it was."""
    machine, before = lab.agents[1], lab.pods()
    machine.run("systemctl", "stop", "pelamis-agent")
    aged(lab, machine, 400, "root/late")
    machine.python(TAKE)
    machine.run("systemctl", "start", "--no-block", "pelamis-agent")
    told = machine.run("pelamis", "doctor", check=False).stdout
    assert "pki/node.crt ended 35 days ago" in told and "on the server: pelamis token create" in told, told
    renewal = machine.run("pelamis", "certs", "renew", check=False)
    assert renewal.returncode == 1 and "pelamis token create" in renewal.stderr, renewal
    machine.pelamis(*lab.server.pelamis("token", "create").stdout.split()[1:])
    eventually(lambda: lab.ready() and lab.answers())
    assert lab.pods() == before


def test_the_servers_certificates_are_renewed_beside_the_authority(lab: Lab) -> None:
    server, before, running = lab.server, lab.pods(), lab.server.processes()
    server.python(OLD)
    (server.root / "root/kept.py").write_text(KEPT)
    with subprocess.Popen(server.enter("/root/venv/bin/python", "/root/kept.py"), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as open_all_the_time:
        assert open_all_the_time.stdout is not None and open_all_the_time.stdout.readline() == "200\n"
        server.run("systemctl", "start", "pelamis-prepare")  # as its timer does every day
        right = (server.root / "etc/pelamis/pki/apiserver.crt").read_text().strip()
        assert right != (server.root / "root/old.crt").read_text().strip()
        eventually(lambda: server.certificate(6443) == right)
        assert open_all_the_time.communicate("\n")[0] == "200\n", "a connection lives on"
    server.pelamis("certs", "renew")
    eventually(lambda: server.certificate(6443) not in (right, ""))
    eventually(lambda: server.certificate(10250) == (server.root / "etc/pelamis/pki/kubelet.crt").read_text().strip())
    assert server.processes() == running, "nothing was started anew"
    left = re.search(r"(?m)^apiserver\.crt .* (\d+) +\d{4}-\d\d-\d\d$", server.run("pelamis", "certs").stdout)
    assert left is not None and 363 <= int(left[1]) <= 365, "days"
    eventually(lambda: lab.ready() and lab.answers())
    assert lab.pods() == before
