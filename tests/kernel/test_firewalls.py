"""Beside other owners of the host's firewall: firewalld, ufw and Docker, run for real, and rules of later Dockers.

Debian's packages are unpacked beside the host, not installed: a firewall that starts on a test host would shut it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.image import debian
from agent.proxy.proxy import Proxy
from controlplane.machinery.errors import Finding
from netsetup import xtables

from .conftest import Namespace
from .proxynode import Api, endpoints, service
from .test_cni import Node

pytestmark = pytest.mark.kernel
KEPT = Path("/var/tmp/pelamis-test-images/packages")  # where all tests on this machine keep Debian packages
HOST, OUT, CLUSTER = "192.168.9.1", "192.168.9.2", "10.244.0.0/16"
DEADLINE = 60.0  # seconds: Docker and firewalld take some to start on a busy host
BUS = """<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>"""


class Host:
    """A node with two pods, its service proxy and somebody outside."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path) -> None:
        self.host, self.out, self.pods = make("node"), make("out"), [make("a"), make("b")]
        self.out.sh(f"ip link add eth0 type veth peer name up0 netns {self.host.name};"
                    f"ip addr add {OUT}/24 dev eth0; ip link set eth0 up; ip route add 10.96.0.0/16 via {HOST}")
        self.host.sh(f"ip addr add {HOST}/24 dev up0; ip link set up0 up; ip route add default via {OUT}")
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """The node comes up: pods, and the proxy's rules."""
        self.node = Node(self.host, self.folder)
        self.node.do(self.node.daemon.configure("10.244.3.0/24", CLUSTER))
        self.addresses = []
        for pod in self.pods:
            code, answer = self.node.cni("ADD", pod.name, pod.path)
            assert code == 0, answer
            self.addresses.append(answer["ips"][0]["address"].removesuffix("/32"))
        for name, one in (("a", self.pods[0]), ("b", self.pods[1]), ("out", self.out)):
            one.serve(name)
        api, ready = Api(), threading.Event()
        api.change("services", "ADDED", service("web", "10.96.0.1", node_port=30066))
        api.change("endpointslices", "ADDED", endpoints("web", self.addresses[0]))

        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            # What the agent gives the proxy: whoever flushes the one's rules has flushed the other's too.
            proxy = Proxy(api, "n1", CLUSTER, None, repair=self.repair)
            self.task = asyncio.create_task(proxy.run())
            await proxy.synced.wait()
            ready.set()
            await asyncio.gather(self.task, return_exceptions=True)

        self.future = self.host.background(main)
        assert ready.wait(DEADLINE)

    async def repair(self) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.node.daemon.repair(), self.node.loop))

    def works(self) -> bool:
        """Pod to pod, pod to Service, itself through the Service, outside to a node port, and pod to the world."""
        (a, b), (own, other) = self.pods, self.addresses
        return (b.tcp(own, 8080, 0.5) == f"a|{other}" and b.tcp("10.96.0.1", 80, 0.5) == f"a|{other}"
                and a.tcp("10.96.0.1", 80, 0.5).startswith("a|")
                and self.out.tcp(HOST, 30066, 0.5).startswith("a|") and a.tcp(OUT, 8080, 0.5) == f"out|{HOST}")

    def until(self, condition: Callable[[], bool], why: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"{why}\n" + self.host.sh("iptables-save; nft list tables")
            threading.Event().wait(0.05)

    def spawn(self, *command: str, env: dict[str, str]) -> None:
        with (self.folder / "firewall.log").open("ab") as log:
            self.processes.append(self.host.run(lambda: subprocess.Popen(command, env=env, stdout=log, stderr=log)))

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(DEADLINE)
        if hasattr(self, "future"):
            self.loop.call_soon_threadsafe(self.task.cancel)
            self.future.result(DEADLINE)
            self.node.stop()


@pytest.fixture
def host(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> Iterator[Host]:
    made = Host(make_namespace, tmp_path)
    yield made
    made.close()


def unpacked(root: Path, *packages: str) -> dict[str, str]:
    """The packages with what this host lacks of what they need, below `root`; the environment to run them in."""
    told = subprocess.run(["apt-get", "install", "-s", "--no-install-recommends", *packages], capture_output=True,
                          text=True, check=False)
    lacking = [line.split()[1] for line in told.stdout.splitlines() if line.startswith("Inst ")]
    try:
        for package in {*lacking, packages[0]}:
            debian.extract(package, root, KEPT)
    except Finding as problem:
        pytest.skip(f"{packages[0]} is not to be had here: {problem.fact}")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return {**os.environ, "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
            "PATH": f"{xtables.PATH}:{root}/usr/bin",
            "LD_LIBRARY_PATH": str(libraries), "GI_TYPELIB_PATH": str(libraries / "girepository-1.0")}


def test_firewalld_with_pods_trusted(host: Host) -> None:
    root, bus = host.folder / "firewalld", host.folder / "bus"
    env = unpacked(root, "firewalld", "dbus-daemon", "python3-dbus", "python3-gi")
    env["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={bus}"
    (host.folder / "bus.conf").write_text(BUS.format(bus))
    (host.folder / "etc").mkdir()
    host.spawn("dbus-daemon", f"--config-file={host.folder}/bus.conf", "--nofork", env=env)
    host.until(bus.exists, "no bus")
    host.spawn("/usr/bin/python3", f"{root}/usr/sbin/firewalld", "--nofork", "--nopid", "--default-config",
               f"{root}/usr/lib/firewalld", "--system-config", f"{host.folder}/etc", "--log-file",
               f"{host.folder}/firewalld.log", env=env)

    def command(*words: str) -> int:
        """firewall-cmd."""
        return host.host.run(lambda: subprocess.run(["/usr/bin/python3", f"{root}/usr/bin/firewall-cmd", *words],
                                                    env=env, capture_output=True)).returncode

    host.until(lambda: command("--state") == 0, "firewalld does not start")
    host.begin()
    (_, b), (own, other) = host.pods, host.addresses
    assert b.tcp(own, 8080, 0.5) != f"a|{other}"  # what an accept of ours cannot change
    for cidr in (CLUSTER, "10.96.0.0/16"):
        assert command("--permanent", "--zone=trusted", f"--add-source={cidr}") == 0
    assert command("--reload") == 0
    host.until(host.works, "pods are trusted, but do not reach each other")
    assert command("--complete-reload") == 0
    host.until(host.works, "not after firewalld's restart")
    host.host.sh("iptables -F; iptables -t nat -F")
    host.until(host.works, "not after a flush")


def test_ufw_that_forwards_nothing(host: Host) -> None:
    root = host.folder / "ufw"
    env = unpacked(root, "ufw")
    for name in ("etc/ufw", "var/lib/ufw", "run"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for path in (*(root / "usr/share/ufw").glob("*.rules"), *(root / "usr/share/ufw/iptables").glob("*.rules"),
                 root / "usr/share/ufw/ufw.conf"):
        (root / "etc/ufw" / path.name).write_bytes(path.read_bytes())  # as its installation does

    def ufw(*words: str) -> None:
        done = host.host.run(lambda: subprocess.run(
            ["/usr/bin/python3", f"{root}/usr/sbin/ufw", f"--rootdir={root}", f"--datadir={root}", "--force", *words],
            env=env, capture_output=True, text=True))
        assert done.returncode == 0, done.stdout + done.stderr

    ufw("enable")
    host.begin()
    assert ":FORWARD DROP" in host.host.sh("iptables-save -t filter")
    assert host.out.tcp(HOST, 22, 0.3) == "TIMEOUT"  # it is on: the host itself is shut
    host.until(host.works, "not beside ufw")
    for words in (("reload",), ("disable",), ("enable",)):
        ufw(*words)
        host.until(host.works, f"not after ufw {words}")
    host.host.sh("iptables -F; iptables -t nat -F")
    host.until(host.works, "not after a flush")


@pytest.fixture
def docker_folders() -> Iterator[str]:
    """The command that hides what Docker writes wherever it is told to write: it sees empty folders instead."""
    made = [folder for folder in (Path("/etc/docker"), Path("/run/docker")) if not folder.exists()]
    for folder in made:
        folder.mkdir()
    yield "mount -t tmpfs none /etc/docker && mount -t tmpfs none /run/docker"
    for folder in made:
        folder.rmdir()


def test_docker_itself(docker_folders: str, host: Host) -> None:
    root = host.folder / "docker"
    env = unpacked(root, "docker.io")
    dockerd = shutil.which("dockerd", path=f"{root}/usr/sbin:{root}/usr/bin") or shutil.which("dockerd")
    assert dockerd and shutil.which("containerd", path=env["PATH"])

    listening, settings = host.folder / "docker.sock", host.folder / "daemon.json"
    settings.write_text(json.dumps({
        "data-root": f"{host.folder}/data", "exec-root": f"{host.folder}/exec", "pidfile": f"{host.folder}/docker.pid",
        "hosts": [f"unix://{listening}"], "storage-driver": "vfs"}))

    def start() -> None:
        """It has put its rules in when it answers."""
        host.spawn("unshare", "--mount", "sh", "-c",
                   f"{docker_folders} && exec {dockerd} --config-file={settings}", env=env)
        host.until(lambda: answers(listening), f"Docker does not start, see {host.folder}/firewall.log")

    start()
    host.begin()
    assert ":FORWARD DROP" in host.host.sh("iptables-save -t filter")
    host.until(host.works, "not beside Docker")
    docker = host.processes.pop()
    docker.terminate()
    docker.wait(DEADLINE)
    host.host.sh("iptables -F; iptables -t nat -F")
    start()
    host.until(host.works, "not after Docker's restart")
    assert ":DOCKER-USER " in host.host.sh("iptables-save -t filter")


def answers(listening: Path) -> bool:
    """Whether Docker has started."""
    with socket.socket(socket.AF_UNIX) as link, suppress(OSError):
        link.settimeout(1)
        link.connect(str(listening))
        link.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b"OK" in link.recv(4096)
    return False


@pytest.mark.parametrize("variant", xtables.BACKENDS)
@pytest.mark.parametrize("release", ["26", "28"])
def test_rules_of_other_dockers(host: Host, variant: str, release: str) -> None:
    backend = xtables.Backend(variant)
    if not backend.present:
        pytest.skip(f"iptables-{variant} is not installed")
    rules = (Path(__file__).parent / f"data/docker-{release}.rules").read_text()
    host.host.sh("ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up")
    host.host.run(backend.restore, rules)
    host.begin()
    host.until(host.works, "not beside Docker")
    assert ":KUBE-SERVICES " in host.host.run(backend.save, "nat")  # where the host's other rules are
    command = backend.command("")
    host.host.sh(f"{command} -F; {command} -X; {command} -t nat -F; {command} -t nat -X", check=False)
    host.host.run(backend.restore, rules)  # Docker starts anew
    host.until(host.works, "not after Docker's restart")
    assert all(f":{chain} " in host.host.run(backend.save) for chain in ("DOCKER-USER", "DOCKER"))
