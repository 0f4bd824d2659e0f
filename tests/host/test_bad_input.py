"""What can be wrong when a host is to join or to be a server: told in a sentence with its fix, and nothing is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from controlplane.machinery.clock import SYSTEM, parse_rfc3339
from tests.client.cluster import eventually
from tests.host.conftest import Lab, Stranger

pytestmark = pytest.mark.host
SERVER = "https://192.168.79.11:6443"
# The server's certificate as it looks to a host whose clock is off: issued `days` from now.
OTHER_TIME = """
import sys
from pathlib import Path
from controlplane.machinery.clock import FakeClock, SYSTEM
from controlplane.pki import leaves
from controlplane.pki.authority import Authority
folder = Path("/etc/pelamis/pki")
authority = Authority.load(folder, FakeClock(SYSTEM.now() + float(sys.argv[1]) * 86400))
leaf = leaves.wanted("host1", "192.168.79.11", "10.96.0.0/16", "cluster.local")[0]
pair = authority.issue(leaf.common_name, leaf.organizations, leaf.usages, leaf.sans)
(folder / "apiserver.crt").write_bytes(pair.certificate)
(folder / "apiserver.key").write_bytes(pair.key)
for kind, data in (("crt", pair.certificate), ("key", pair.key)):
    Path(f"/run/pelamis/credentials/apiserver/apiserver.{kind}").write_bytes(data)
"""


@pytest.fixture(scope="module")
def command(lab: Lab) -> dict[str, str]:
    """What `token create` printed, by flag."""
    words = lab.server.pelamis("token", "create").stdout.split()
    assert words[1:3] == ["install", "agent"]
    return dict(zip(words[3::2], words[4::2]))


def join(stranger: Stranger, command: dict[str, str], *more: str, **changed: str) -> str:
    flags = {**command, **{f"--{k.replace('_', '-')}": v for k, v in changed.items()}}
    return stranger.refused("agent", *(word for pair in flags.items() for word in pair), *more)


def test_a_wrong_token_and_a_wrong_hash(lab: Lab, stranger: Stranger, command: dict[str, str]) -> None:
    assert "does not know this token" in join(stranger, command, token="abcdef.0123456789abcdef")
    assert "is no token" in join(stranger, command, token="hello")
    assert "is not the cluster you mean" in join(stranger, command, ca_cert_hash="sha256:" + "0" * 64)
    assert "no hash" in join(stranger, command, ca_cert_hash="sha256:12")


def test_an_expired_token(lab: Lab, stranger: Stranger, command: dict[str, str]) -> None:
    token = lab.server.pelamis("token", "create").stdout.partition("--token ")[2].split()[0]
    past = '{"stringData": {"expiration": "2020-01-01T00:00:00Z"}}'
    lab.kubectl("-n", "kube-system", "patch", "secret", f"bootstrap-token-{token[:6]}", "-p", past)
    said = join(stranger, command, token=token)
    assert "it has expired" in said and "pelamis token create" in said


def test_a_token_holds_for_as_long_as_it_was_made_for(lab: Lab, stranger: Stranger, command: dict[str, str]) -> None:
    """An hour when nothing is said; until it is taken back."""
    short, usual = (lab.server.pelamis("token", "create", "--token-only", *ttl).stdout.strip()
                    for ttl in (("--ttl", "30m"), ()))
    listed = dict(line.split()[:2] for line in lab.server.pelamis("token", "list").stdout.splitlines())
    left = [parse_rfc3339(listed[f"{token[:6]}.<secret>"]) - SYSTEM.now() for token in (short, usual)]
    assert 0 < left[0] <= 1800 < left[1] <= 3600
    lab.server.pelamis("token", "delete", usual)
    assert usual[:6] not in lab.server.pelamis("token", "list").stdout
    assert "does not know this token" in join(stranger, command, token=usual)


def test_a_server_that_cannot_be_reached(lab: Lab, stranger: Stranger, command: dict[str, str]) -> None:
    for server in ("https://192.168.79.11:6444", "https://192.168.79.99:6443", "https://no.such.name:6443"):
        assert "cannot be reached" in join(stranger, command, server=server)
    assert "is no server" in join(stranger, command, server="192.168.79.11")


@pytest.mark.parametrize("days", ["1", "-370"])
def test_a_clock_that_is_off(lab: Lab, stranger: Stranger, command: dict[str, str], days: str) -> None:
    server, right = lab.server, lab.server.certificate(6443)
    try:
        server.python(OTHER_TIME, days)
        server.run("systemctl", "reload", "pelamis-apiserver")
        eventually(lambda: server.certificate(6443) != right)
        said = join(stranger, command)
        assert "not valid at the time this host has" in said and "timedatectl" in said, said
    finally:
        server.pelamis("certs", "renew")
        eventually(lambda: lab.ready())


def test_a_name_that_is_taken(lab: Lab, stranger: Stranger, command: dict[str, str]) -> None:
    said = join(stranger, command, "--node-name", "host2")
    assert "has a node called host2 already" in said and "--node-name" in said
    assert lab.ready()


@contextmanager
def program(stranger: Stranger, name: str, *words: str, socket: str = "") -> Iterator[None]:
    """A program of that name that runs, until the end; `socket` is what it leaves."""
    stranger.run("cp", "/usr/bin/python3", f"/usr/local/bin/{name}")
    with subprocess.Popen(stranger.enter(f"/usr/local/bin/{name}", "-c", *words), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "up\n"
        try:
            yield
        finally:
            running.communicate("end\n")
            stranger.run("rm", f"/usr/local/bin/{name}", *([socket] if socket else []))


WAIT = "print('up', flush=True); sys.stdin.readline()"


def test_an_occupied_port(stranger: Stranger) -> None:
    for port in (6443, 10250):
        with program(stranger, "squatter", f"import socket, sys; s = socket.create_server(('', {port})); {WAIT}"):
            said = stranger.refused("server")
            assert f"port {port}" in said and "is in use by squatter (pid " in said and "ss -ltnp" in said, said


def test_another_kubernetes(stranger: Stranger) -> None:
    stranger.run("sh", "-c", "mkdir -p /etc/kubernetes; echo kind: Config > /etc/kubernetes/kubelet.conf")
    said = stranger.refused("server")
    assert "another Kubernetes is on this host: kubelet (/etc/kubernetes/kubelet.conf)" in said
    assert "kubeadm reset" in said
    stranger.run("rm", "-r", "/etc/kubernetes")
    with program(stranger, "kubelet", f"import sys; {WAIT}"):
        assert "another Kubernetes is on this host: kubelet (pid " in stranger.refused("server")


def test_a_disk_that_is_full_in_the_middle(stranger: Stranger) -> None:
    stranger.run("sh", "-c", "mkdir -p /usr/local/lib/pelamis; mount -t tmpfs -o size=8m none /usr/local/lib/pelamis")
    try:
        said = stranger.refused("server")
        assert "the disk is full: " in said and "df -h" in said
    finally:
        stranger.run("sh", "-c", "umount /usr/local/lib/pelamis; rmdir /usr/local/lib/pelamis")


def test_after_all_that_the_host_joins_beside_docker(lab: Lab, stranger: Stranger, command: dict[str, str]) -> None:
    """Docker is no obstacle; that it drops what it does not know is told."""
    stranger.run("sh", "-c", "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER")
    with program(stranger, "dockerd", "import os, socket, sys; s = socket.socket(socket.AF_UNIX); "
                 f"s.bind('/run/docker.sock'); {WAIT}", socket="/run/docker.sock"):
        stranger.pelamis("install", "agent", *(word for pair in command.items() for word in pair))
        found = stranger.pelamis("doctor", check=False).stdout
        assert "Docker is on this host, and drops what it does not know" in found and "DOCKER-USER" in found
        done = stranger.pelamis("reset")
    assert "This host is as it was." in done.stdout, done.stdout
    assert "DOCKER-USER" in stranger.run("iptables", "-S").stdout, "what is another's stays"
    stranger.run("sh", "-c", "iptables -F FORWARD; iptables -X DOCKER-USER; iptables -P FORWARD ACCEPT")
    lab.forget(stranger)
