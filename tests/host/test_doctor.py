"""Each thing that can be wrong with a host, made wrong on a real one: the doctor names it, and mends what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent.image import demo
from tests.client.cluster import eventually
from tests.host.conftest import Lab, Stranger
from tests.host.machine import Machine

pytestmark = pytest.mark.host


def findings(machine: Machine, *more: str) -> list[dict[str, Any]]:
    done = machine.pelamis("doctor", "--output", "json", *more, check=False)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout[done.stdout.index("{"):])
    assert told["healthy"] == (done.returncode == 0) == all(f["level"] != "problem" for f in told["findings"])
    return told["findings"]


def finds(machine: Machine, fact: str, fix: str = "") -> None:
    found = findings(machine)
    assert any(fact in f["fact"] and fix in f["fix"] and f["because"] for f in found), found


def lacks(machine: Machine, fact: str) -> bool:
    found = findings(machine)
    assert not any(fact in f["fact"] for f in found), found
    return True


@contextmanager
def changed(machine: Machine, do: str, undo: str) -> Iterator[None]:
    machine.run("sh", "-ec", do)
    try:
        yield
    finally:
        machine.run("sh", "-ec", undo)


HOST = [  # what is done to a host without a cluster, how it is undone, the fact, its fix
    ("umount -l /sys/fs/cgroup/memory", "mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory",
     "cgroup controllers memory are not enabled", "cgroup_enable=memory"),
    ("d=/lib/modules/$(uname -r); mkdir -p $d /root/none; echo kernel/fs/ext4/ext4.ko > $d/modules.builtin; "
     "mount --bind /root/none /sys/module; [ ! -e /proc/modules ] || mount --bind /dev/null /proc/modules",
     "umount /sys/module; [ ! -e /proc/modules ] || umount /proc/modules; rm -r /lib/modules/$(uname -r) /root/none",
     "the kernel module vxlan is not there", "modprobe vxlan"),
    ("printf 'F T S U P\\n/swapfile file 1 0 -2\\n' > /root/swaps; mount --bind /root/swaps /proc/swaps",
     "umount /proc/swaps", "swap is on: /swapfile", "swapoff"),
    ("mkdir /var/log/pelamis; mount -t tmpfs -o size=1m,nr_inodes=40 none /var/log/pelamis; "
     "head -c 1000000 /dev/zero > /var/log/pelamis/big", "umount /var/log/pelamis; rmdir /var/log/pelamis",
     "MiB of 1 MiB are free for /var/log/pelamis", "du -xh"),
    ("mkdir /var/log/pelamis; mount -t tmpfs -o size=1m,nr_inodes=40 none /var/log/pelamis; "
     "cd /var/log/pelamis; for i in $(seq 38); do touch f$i; done", "umount /var/log/pelamis; rmdir /var/log/pelamis",
     "of 40 inodes are free for /var/log/pelamis", "find /var/log/pelamis"),
    ("echo nameserver 127.0.0.53 > /etc/resolv.conf", "rm /etc/resolv.conf",
     "names 127.0.0.53", "/run/systemd/resolve"),
    ("systemd-run --unit=squatter /usr/bin/python3 -c \"import signal, socket; "
     "s = socket.create_server(('', 6443)); signal.pause()\"; "
     "until python3 -c \"import socket; socket.create_connection(('127.0.0.1', 6443))\"; do :; done",
     "systemctl stop squatter", "port 6443 is held by python3", "ss -ltnp"),
    ("iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT", "policy of ip filter FORWARD is drop",
     "iptables -P FORWARD ACCEPT"),
    ("systemd-run --unit=firewalld sleep infinity", "systemctl stop firewalld", "firewalld is active", "firewall-cmd"),
    ("iptables-legacy -t nat -N OLD; iptables-legacy -t nat -A OLD -j RETURN", "iptables-legacy -t nat -F OLD; "
     "iptables-legacy -t nat -X OLD", "rules stand both in nf_tables and in the legacy tables (nat)",
     "iptables-legacy"),
    ("mkdir -p /var/lib/rancher/k3s", "rm -r /var/lib/rancher", "another Kubernetes is on this host: k3s",
     "k3s-uninstall.sh"),
]


@pytest.mark.parametrize(("do", "undo", "fact", "fix"), HOST, ids=[row[2] for row in HOST])
def test_a_host_before_the_install(stranger: Stranger, do: str, undo: str, fact: str, fix: str) -> None:
    with changed(stranger, do, undo):
        finds(stranger, fact, fix)
    lacks(stranger, fact)


def settings(machine: Machine, **more: str) -> str:
    """Change what the node knows of itself; what it was."""
    file = machine.root / "etc/pelamis/node.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), **more}))
    return before


def test_an_address_the_host_does_not_have_is_mended(lab: Lab) -> None:
    agent = lab.agents[0]
    settings(agent, node_ip="192.168.79.77")
    finds(agent, "known by 192.168.79.77, which this host does not have", "pelamis-prepare")
    findings(agent, "--fix")
    assert agent.address in (agent.root / "etc/pelamis/node.json").read_text()
    eventually(lambda: lab.ready() and lacks(agent, "does not have"))


def test_the_card_that_vagrant_gives_every_machine(lab: Lab) -> None:
    agent = lab.agents[0]
    before = settings(agent, node_ip="10.0.2.15")
    try:
        with changed(agent, "ip link add nat0 type veth peer name nat1; ip address add 10.0.2.15/24 dev nat0",
                     "ip link del nat0"):
            finds(agent, "10.0.2.15, VirtualBox's NAT", f"--node-ip {agent.address}")
    finally:
        (agent.root / "etc/pelamis/node.json").write_text(before)


def test_a_smaller_mtu_on_the_way_and_a_firewall(lab: Lab) -> None:
    server, agent = lab.server, lab.agents[0]

    def wire(mtu: int) -> None:
        subprocess.run(["ip", "-n", lab.segment.netns, "link", "set", agent.name, "mtu", str(mtu)], check=True)
    wire(1400)
    try:
        finds(server, "small packets reach host2, those of full size do not", "tracepath")
    finally:
        wire(1500)
    rule = "INPUT -p tcp --dport 10250 ! -i lo -j DROP"
    with changed(agent, f"iptables -I {rule}", f"iptables -D {rule}"):
        finds(server, "port 10250 of host2", "--dport 10250 -j ACCEPT")
    eventually(lambda: lacks(server, "host2"))


LATER = """
import sys, time
from controlplane.machinery.clock import SYSTEM
type(SYSTEM).now = lambda self: time.time() + float(sys.argv[1]) * 86400
from controlplane.cli.__main__ import main
sys.exit(main(["doctor"]))
"""


def test_a_clock_that_is_a_day_off(lab: Lab) -> None:
    done = lab.agents[0].python(LATER, "1", check=False)
    assert "ahead of the server's" in done.stdout and "timedatectl set-ntp true" in done.stdout, done


ENDED = """
from pathlib import Path
from controlplane.machinery.clock import FakeClock, SYSTEM
from controlplane.machinery.paths import Paths
from controlplane.pki import cluster
Path("/etc/pelamis/pki/scheduler.crt").unlink()
cluster.ensure(Paths(Path("/")), "host1", "192.168.79.11", clock=FakeClock(SYSTEM.now() - 400 * 86400))
"""


def test_a_certificate_that_ended_is_mended(lab: Lab) -> None:
    server = lab.server
    server.python(ENDED)
    finds(server, "scheduler.crt ended 35 days ago", "pelamis certs renew")
    findings(server, "--fix")
    lacks(server, "scheduler.crt")
    eventually(lab.ready)


def test_a_damaged_store(lab: Lab) -> None:
    """The doctor and the API server name it and the way out, which works."""
    server, store = lab.server, "/var/lib/pelamis/store/pelamis.db"
    server.run("pelamis", "snapshot", "save")
    server.run("systemctl", "stop", "pelamis-apiserver")
    server.run("sh", "-ec", f"rm -f {store}-wal {store}-shm; "
               f"dd if=/dev/urandom of={store} bs=4096 seek=3 count=40 conv=notrunc 2>&1")
    finds(server, "the store is damaged", "pelamis snapshot restore")
    server.run("systemctl", "start", "--no-block", "pelamis-apiserver")
    eventually(lambda: "pelamis snapshot restore" in server.run(
        "journalctl", "--no-pager", "-b", "-n", "50", "-u", "pelamis-apiserver").stdout)
    assert "before-restore" in server.run("pelamis", "snapshot", "restore").stdout
    eventually(lab.ready)


def test_a_sandbox_without_a_pod_and_a_version_that_does_not_fit(lab: Lab) -> None:
    server, agent = lab.server, lab.agents[0]
    lab.kubectl("run", "left", f"--image={demo.DEMO}", "--overrides", '{"spec": {"nodeName": "host2"}}')
    lab.kubectl("wait", "--for=condition=Ready", "pod/left", "--timeout=150s")
    agent.run("systemctl", "stop", "pelamis-agent")
    lab.kubectl("delete", "pod", "left", "--force", "--grace-period=0")
    lab.kubectl("patch", "node", "host2", "--subresource=status", "-p",
                '{"status": {"nodeInfo": {"kubeletVersion": "v1.30.0"}}}')
    finds(server, "host2 runs v1.30.0", "pelamis upgrade")
    finds(agent, "1 sandboxes belong to no pod: default/left", "systemctl restart pelamis-agent")
    findings(agent, "--fix")
    eventually(lambda: lab.ready() and lacks(agent, "sandboxes") and lacks(server, "v1.30.0"))


def test_services_runtime_and_snapshots(lab: Lab) -> None:
    server, agent = lab.server, lab.agents[0]
    agent.run("systemctl", "stop", "pelamis-containerd")
    finds(agent, "the container runtime does not answer", "systemctl restart pelamis-containerd")
    agent.run("systemctl", "start", "pelamis-containerd")
    eventually(lambda: lacks(agent, "container runtime"))
    server.run("sh", "-c", "rm -rf /var/lib/pelamis/snapshots/*")  # the timer may have made one
    lacks(server, "snapshot")  # the cluster is young, and the timer at work
    told = server.python(LATER, "3", check=False).stdout
    assert "there is no snapshot of the store" in told and "pelamis snapshot save" in told, told
    server.run("pelamis", "snapshot", "save")
    assert "the newest snapshot is 3 days old" in server.python(LATER, "3", check=False).stdout
