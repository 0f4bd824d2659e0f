"""A containerd that a person runs, as Debian's service with a configuration of its own: looked at, used, never changed.

CRI-O is no package of Debian 12; what it tells of itself is judged by the same function (tests/unit/hosts)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.image import demo
from controlplane.machinery.paths import Paths
from tests.client.cluster import eventually
from tests.host.conftest import Lab, Stranger

pytestmark = pytest.mark.host
ENDPOINT = "/run/containerd/containerd.sock"
CONFIG = "/etc/containerd/config.toml"
# Restricted in what it asks of the out-of-memory killer: where these machines run in a container themselves, root has
# no CAP_SYS_RESOURCE, and runc ends with "can't get final child's PID from pipe".
FINE = """# mine
version = 2
disabled_plugins = []
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pelamis.local/pause:1"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "/etc/pelamis/cni/net.d"
  bin_dir = "/var/lib/pelamis/cni/bin"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


@pytest.fixture(scope="module")
def host(stranger: Stranger) -> Iterator[Stranger]:
    """The host with the distribution's containerd running."""
    original = stranger.run("cat", CONFIG).stdout
    stranger.run("systemctl", "unmask", "containerd")
    yield stranger
    (stranger.root / CONFIG[1:]).write_text(original)
    stranger.run("systemctl", "mask", "--now", "containerd")
    stranger.run("rm", "-rf", "/etc/pelamis")


def configure(host: Stranger, text: str) -> Path:
    """Have containerd run with this configuration."""
    file = host.root / CONFIG[1:]
    file.write_text(text)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "containerd")
    eventually(lambda: host.run("test", "-S", ENDPOINT, check=False).returncode == 0)
    return file


@pytest.mark.parametrize(("change", "fact", "fix"), [
    ((FINE, 'disabled_plugins = ["cri"]\n'), "runs no pods", 'take "cri" out of disabled_plugins'),  # as Docker ships
    (("SystemdCgroup = false", "SystemdCgroup = true"), "makes control groups by systemd", "SystemdCgroup = false"),
    (("/etc/pelamis/cni/net.d", "/etc/cni/net.d"), "looks for pod networks in /etc/cni/net.d",
     'conf_dir = "/etc/pelamis/cni/net.d"')])
def test_a_configuration_that_does_not_fit(host: Stranger, change: tuple[str, str], fact: str, fix: str) -> None:
    wrong = FINE.replace(*change)
    file = configure(host, wrong)
    host.run("rm", "-rf", "/etc/pelamis")  # containerd makes the folder it is told to look into
    said = host.refused("server", "--container-runtime-endpoint", ENDPOINT)
    assert fact in said and fix in said, said
    assert file.read_text() == wrong
    assert "active" in host.run("systemctl", "is-active", "containerd").stdout


def test_a_socket_where_nobody_listens(host: Stranger) -> None:
    said = host.refused("server", "--container-runtime-endpoint", "unix:///run/crio/crio.sock")
    assert "no container runtime answers at /run/crio/crio.sock" in said and "--container-runtime-endpoint" in said


def test_a_node_on_it(lab: Lab, host: Stranger, tmp_path: Path) -> None:
    file = configure(host, FINE)
    mine = host.root / "etc/pelamis/mine"  # beside the folder for networks, which containerd made
    mine.write_text("theirs")
    command = lab.server.pelamis("token", "create").stdout.split()[1:]
    host.pelamis(*command, "--container-runtime-endpoint", ENDPOINT)
    assert host.run("systemctl", "list-unit-files", "pelamis-containerd.service", check=False).stdout.count(
        "pelamis-containerd") == 0, "none of our own"
    (host.root / "root/demo.tar").write_bytes(demo.built(demo.DEMO, Paths(tmp_path)).read_bytes())
    host.pelamis("image", "import", "/root/demo.tar")
    lab.kubectl("run", "guest", f"--image={demo.DEMO}", "--overrides",
                '{"spec": {"nodeName": "host4", "terminationGracePeriodSeconds": 1}}')
    lab.kubectl("wait", "--for=condition=Ready", "pod/guest", "--timeout=150s")
    assert demo.DEMO in host.run("ctr", "-n", "k8s.io", "containers", "ls").stdout
    assert lab.kubectl("exec", "guest", "--", "/bin/busybox", "echo", "here") == "here\n"
    done = host.pelamis("reset")
    assert "This host is as it was." in done.stdout, done.stdout
    assert file.read_text() == FINE and "active" in host.run("systemctl", "is-active", "containerd").stdout
    assert mine.read_text() == "theirs" and (host.root / "etc/pelamis/cni/net.d").is_dir()
    assert demo.DEMO not in host.run("ctr", "-n", "k8s.io", "containers", "ls").stdout, "its pods ended with it"
    lab.forget(host)
