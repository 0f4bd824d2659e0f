"""A host that reaches nothing becomes a server from one file: program, libraries, packages and images."""

from __future__ import annotations

import pytest

from controlplane.cli import packages
from tests.host.machine import Machine, Segment, obstacle

pytestmark = pytest.mark.host
OFFLINE = ("env", "-u", "http_proxy", "-u", "https_proxy")
TOOLS = ("containerd", "runc", "crun", "iptables", "conntrack", "nftables")


def test_a_server_without_a_network():
    if why := obstacle():
        pytest.skip(why)
    segment, machine = Segment(), None
    try:
        machine = Machine(segment, 1)
        policy = machine.root / str(packages.POLICY)[1:]
        machine.pelamis("bundle", "create", "-o", "/root/bundle.tar")
        machine.run("sh", "-c", "DEBIAN_FRONTEND=noninteractive apt-get purge -y " + " ".join(TOOLS))
        machine.run("rm", "-f", "/etc/systemd/system/containerd.service")  # the test host's own way to keep it off
        machine.run("sh", "-c", "rm -rf /root/venv /root/pelamis /var/lib/apt/lists/*; "
                    "mkdir /root/lab && tar -xf /root/bundle.tar -C /root/lab --strip-components=1")
        for killed in (True, False):
            installed = machine.run(*OFFLINE, "/root/lab/pelamis", "install", "server", "--bundle", "/root/lab/bundle",
                                    check=False)
            assert installed.returncode == 0, installed.stdout + installed.stderr
            assert "This server is ready." in installed.stdout
            assert "pause" in machine.run(*OFFLINE, "pelamis", "image", "list").stdout
            left = machine.run("systemctl", "is-enabled", "containerd", check=False).stdout
            assert left == "disabled\n" and not policy.exists()
            if killed:  # right after apt: that would leave both
                policy.write_text(packages.NO_SERVICES)
                machine.run("systemctl", "enable", "containerd")
        reset = machine.run(*OFFLINE, "/root/lab/pelamis", "reset", check=False)
        assert "This host is as it was." in reset.stdout, reset.stdout + reset.stderr
        (machine.root / "root/lab/bundle/images/more.tar").write_bytes(b"not packed")
        spoilt = machine.run(*OFFLINE, "/root/lab/pelamis", "install", "server", "--bundle", "/root/lab/bundle",
                             check=False)
        assert spoilt.returncode == 1 and "is damaged" in spoilt.stderr
    finally:
        if machine is not None:
            machine.close()
        segment.close()
