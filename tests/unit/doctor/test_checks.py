"""Each judgement of the doctor, on facts: a fine host yields nothing, and every fault is named with its fix."""

import os
from dataclasses import replace

import pytest

from controlplane.doctor import checks, gather
from controlplane.doctor.checks import DAY, PROBLEM, WARNING
from controlplane.doctor.facts import Card, Certificate, Disk, Host, Node, Peer
from controlplane.machinery.paths import Paths

NOW = 1_700_000_000.0
FINE = Host(cgroups="v2", controllers=("cpu", "memory", "pids", "io"), clock_synchronised=True, now=NOW,
            disks=(Disk("/", 50 << 30, 100 << 30, 900, 1000),), resolvers=("9.9.9.9",),
            resolver_file="/etc/resolv.conf",
            cards=(Card("eth0", ("10.0.2.15",), 1500), Card("eth1", ("192.168.56.10",), 1500)),
            default_address="192.168.56.10", iptables="nf_tables")
NODE = Node(name="lab-1", address="192.168.56.10", services=(("agent", "running", ""),), skew=-1.0,
            certificates=(Certificate("node.crt", NOW - DAY, NOW + 300 * DAY),), store_size=1 << 20, snapshots=3,
            newest_snapshot=NOW - 3600, server_version="v1.36.0+pelamis", version="v1.36.0+pelamis",
            peers=(Peer("lab-2", "192.168.56.11", "True", "", "v1.35.2", True, True),))
OLD = (Certificate("ca.crt", NOW - 9 * DAY, NOW + 3000 * DAY),)


def test_a_fine_host_yields_nothing():
    assert checks.examine(FINE, NODE) == [] == checks.examine(FINE, Node())


def test_a_young_cluster_needs_no_snapshot_yet():
    assert checks.examine(FINE, replace(NODE, snapshots=0, newest_snapshot=0.0)) == []


@pytest.mark.parametrize(("changed", "level", "fact", "fix"), [
    ({"cgroups": ""}, PROBLEM, "no cgroup hierarchy", "mount -t cgroup2"),
    ({"controllers": ("cpu", "pids")}, PROBLEM, "controllers memory are not enabled", "cgroup_enable=memory"),
    ({"cgroups": "hybrid"}, WARNING, "hierarchy is hybrid", "unified_cgroup_hierarchy"),
    ({"modules_missing": ("overlay",)}, PROBLEM, "module overlay", "modprobe overlay"),
    ({"modules_missing": ("vxlan",), "distribution": "ubuntu"}, PROBLEM, "module vxlan", "linux-modules-extra-"),
    ({"userns_restricted": True}, WARNING, "AppArmor", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ({"others": ("microk8s (/var/snap/microk8s)",)}, PROBLEM, "microk8s", "snap remove --purge microk8s"),
    ({"others": ("docker",), "dropping": ("ip filter FORWARD",)}, WARNING, "Docker is on this host", "DOCKER-USER"),
    ({"swap": ("/swapfile",)}, WARNING, "swap is on: /swapfile", "swapoff"),
    ({"clock_synchronised": False}, WARNING, "not synchronised", "timedatectl"),
    ({"disks": (Disk("/var", 1 << 30, 100 << 30),)}, PROBLEM, "1024 MiB of 102400 MiB", "du -xh"),
    ({"disks": (Disk("/var", 9, 10, 1, 1000),)}, PROBLEM, "1 of 1000 inodes", "find /var"),
    ({"resolvers": ("127.0.0.53",)}, PROBLEM, "names 127.0.0.53", "systemd/resolve"),
    ({"resolvers": ()}, WARNING, "no resolver", "nameserver"),
    ({"cards": (Card("eth0", ("192.168.56.99",), 1500),)}, PROBLEM, "known by 192.168.56.10", "pelamis-prepare"),
    ({"firewalls": ("ufw",)}, WARNING, "ufw is active", "ufw allow"),
    ({"dropping": ("ip filter FORWARD",)}, WARNING, "policy of ip filter FORWARD is drop", "iptables -P FORWARD"),
    ({"legacy_tables": ("nat",)}, WARNING, "legacy tables (nat)", "iptables-legacy-save"),
    ({"others": ("k3s",)}, PROBLEM, "another Kubernetes is on this host: k3s", "k3s-uninstall.sh")])
def test_faults_of_a_host(changed, level, fact, fix):
    found = checks.examine(replace(FINE, **changed), NODE)
    assert any(d.level == level and fact in d.fact and fix in d.fix and d.because for d in found), found


@pytest.mark.parametrize(("changed", "level", "fact", "fix"), [
    ({"skew": DAY}, PROBLEM, "86400 s behind", "timedatectl"),
    ({"services": (("agent", "failed", "exit-code"),)}, PROBLEM, "agent is failed", "journalctl"),
    ({"runtime_error": "refused"}, PROBLEM, "runtime does not answer", "pelamis-containerd"),
    ({"api_error": "refused", "server": "https://a:6443"}, PROBLEM, "does not answer this node", "https://a:6443/readyz"),
    ({"certificates": (Certificate("x", 0, NOW - DAY),)}, PROBLEM, "x ended 1 days ago", "certs renew"),
    ({"certificates": (Certificate("pki/node.crt", 0, NOW - DAY),), "server": "https://a:6443"}, PROBLEM,
     "pki/node.crt ended 1 days ago", "on the server: pelamis token create"),
    ({"certificates": (Certificate("x", 0, NOW + 5 * DAY),)}, WARNING, "x ends in 5 days", "certs renew"),
    ({"certificates": (Certificate("x", NOW + 9, NOW + 5 * DAY),)}, PROBLEM, "not yet valid", "timedatectl"),
    ({"store_problems": ("page 3",)}, PROBLEM, "store is damaged", "snapshot restore"),
    ({"store_size": 100 << 20, "store_free": 90 << 20}, WARNING, "90 of 100 MiB", "store compact"),
    ({"snapshots": 0, "newest_snapshot": 0.0, "certificates": OLD}, WARNING, "no snapshot", "snapshot save"),
    ({"newest_snapshot": NOW - 3 * DAY, "certificates": OLD}, WARNING, "snapshot is 3 days old", "snapshot save"),
    ({"stale_sandboxes": ("default/a",)}, WARNING, "1 sandboxes belong to no pod: default/a", "restart pelamis-agent"),
    ({"peers": (Peer("lab-2", "10.0.0.2", "Unknown", "Kubelet stopped posting"),)}, PROBLEM, "lab-2 is not ready",
     "on lab-2"),
    ({"peers": (Peer("lab-2", "10.0.0.2", "True", "", "", True, False),)}, PROBLEM, "full size do not", "tracepath"),
    ({"peers": (Peer("lab-2", "10.0.0.2", "True", "", "", False),)}, WARNING, "does not answer a ping", "ip route get"),
    ({"peers": (Peer("lab-2", "10.0.0.2", "True", "", "", True, True, False),)}, PROBLEM, "port 10250 of lab-2",
     "--dport 10250"),
    ({"peers": (Peer("lab-2", "10.0.0.2", "True", "", "v1.34.0"),)}, PROBLEM, "runs v1.34.0", "pelamis upgrade"),
    ({"peers": (Peer("lab-2", "192.168.56.10", "True"),)}, PROBLEM, "have the same address", "--node-ip"),
    ({"address": "10.0.2.15"}, PROBLEM, "VirtualBox's NAT", "--node-ip 192.168.56.10")])
def test_faults_of_a_node(changed, level, fact, fix):
    found = checks.examine(FINE, replace(NODE, **changed))
    assert any(d.level == level and fact in d.fact and fix in d.fix and d.because for d in found), found


UBUNTU = {  # what these files of a fresh Ubuntu 24.04 server hold, with ufw switched on and a snap of Kubernetes
    "/etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\nID_LIKE=debian\n', gather.USERNS: "1\n",
    "/proc/swaps": "Filename Type Size Used Priority\n/swap.img file 4194300 0 -2\n",
    "/etc/ufw/ufw.conf": "ENABLED=yes\n",
    "/proc/modules": "overlay 212992 0 - Live 0x0\n", "/proc/net/ip_tables_names": "",
    "/run/systemd/resolve/resolv.conf": "nameserver 192.168.56.1\nsearch lan\n",
    "/etc/resolv.conf": "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
    f"/lib/modules/{os.uname().release}/modules.builtin": "kernel/fs/ext4/ext4.ko\n"}
SAID = {("timedatectl",): "yes\n", ("systemctl", "is-active", "ufw"): "active\n",
        ("iptables", "--version"): "iptables v1.8.10 (nf_tables)\n", ("modprobe", "-n", "nf_conntrack"): "",
        ("ip", "-j", "address"): '[{"ifname": "enp0s3", "mtu": 1500, "addr_info": [{"family": "inet", "local": '
                                 '"192.168.56.10"}]}]',
        ("nft", "-j"): '{"nftables": [{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": '
                       '"forward", "policy": "drop"}}]}'}


def test_what_is_found_on_a_server_of_ubuntu(monkeypatch, tmp_path):
    """Its own ways are known; what of them stands in the way is named: nothing else is."""
    def output(*command):
        return next((said for words, said in SAID.items() if command[:len(words)] == words), None)
    monkeypatch.setattr(gather, "read", lambda path: UBUNTU.get(str(path), ""))
    monkeypatch.setattr(gather, "output", output)
    for name, value in (("_cgroups", ("v2", checks.NEEDED_CONTROLLERS)), ("_disks", ()), ("_listeners", {})):
        monkeypatch.setattr(gather, name, lambda *_, value=value: value)
    monkeypatch.setattr(gather.preflight, "others", lambda: ["microk8s (/var/snap/microk8s)"])
    monkeypatch.setattr(gather.preflight, "node_ip", lambda wanted: "192.168.56.10")
    monkeypatch.setattr(gather, "MODULES", {"overlay": "", "nf_conntrack": "", "vxlan-of-another-kernel": ""})
    monkeypatch.setattr(gather, "DOCKER", tmp_path)  # as Docker's package and its snap have it
    found = checks.examine(gather.host(Paths(tmp_path)), Node())
    assert sorted((d.check, d.fact) for d in found) == [
        ("firewall", "the policy of ip filter FORWARD is drop"), ("firewall", "ufw is active"),
        ("kernel", "AppArmor keeps programs without root from making user namespaces"),
        ("kernel", "the kernel module vxlan-of-another-kernel is not there"),
        ("others", "Docker is on this host, and drops what it does not know"),
        ("others", "another Kubernetes is on this host: microk8s (/var/snap/microk8s)"),
        ("swap", "swap is on: /swap.img")], found


def test_an_occupied_port_matters_before_the_install_only():
    taken = replace(FINE, listeners={6443: "kube-apiserver (pid 7)"})
    assert "kube-apiserver (pid 7)" in checks.examine(taken, Node())[0].fact
    assert checks.examine(taken, NODE) == []


@pytest.mark.parametrize(("agent", "server", "fits"), [
    ("v1.36.0", "v1.36.4", True), ("v1.35.0", "v1.36.0", True), ("v1.34.9", "v1.36.0", False),
    ("v1.37.0", "v1.36.0", False), ("", "v1.36.0", True), ("v2.36.0", "v1.36.0", False)])
def test_versions_that_work_together(agent, server, fits):
    assert checks.compatible(agent, server) == fits
