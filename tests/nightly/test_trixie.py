"""Debian 13 as a real machine: Python 3.13, containerd 1.7, iptables on nf_tables, systemd 257, networkd and resolved.

A server made by `vagrant up` runs a workload, resolves names, comes back after a hard reset, and is a plain host again.
"""

from __future__ import annotations

import pytest

from tests.client.cluster import eventually, kubectls
from tests.nightly.bookworm.test_vagrant import PATIENCE, WORKLOAD, answers_everywhere, boot_of, everything_is_ready
from tests.nightly.lab import Lab, obstacle

pytestmark = pytest.mark.host


def test_debian_13_from_install_to_reset():
    if why := obstacle():
        pytest.skip(why)
    if not kubectls():
        pytest.skip("needs kubectl on PATH: apt-get install kubernetes-client")
    lab = Lab("trixie", agents=0)
    try:
        lab.up()
        lab.kubectl("apply", "-f", "-", input=WORKLOAD)
        eventually(lambda: everything_is_ready(lab), PATIENCE)
        eventually(lambda: answers_everywhere(lab), PATIENCE)
        names = lab.kubectl("exec", "daemonset/web", "--", "/bin/busybox", "nslookup", "web.default.svc.cluster.local")
        assert lab.get("service", "web")["spec"]["clusterIP"] in names
        found = lab.ssh("server", "sudo pelamis doctor", check=False)
        assert found.returncode == 0, found.stdout + found.stderr
        before = boot_of(lab, "server")
        lab.virsh("reset", "server")
        eventually(lambda: boot_of(lab, "server") != before, PATIENCE)
        eventually(lambda: everything_is_ready(lab), PATIENCE)
        eventually(lambda: answers_everywhere(lab), PATIENCE)
        reset = lab.ssh("server", "sudo /opt/pelamis/pelamis reset", check=False)
        assert "This host is as it was." in reset.stdout, reset.stdout + reset.stderr
    finally:
        lab.close()
