"""Three hosts with systemd and a cluster across them, made once for the tier: installing is what users do first."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.image import demo
from controlplane.machinery.paths import Paths
from tests.client.cluster import eventually, kubectls
from tests.host.machine import Machine, Segment, obstacle

IMAGE = "demo.tar"
KUBECTL_SECONDS = 180.0  # more than what any command here is told to wait
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


class Lab:
    """A server and two agents. `kubectl` runs outside of them, in the server's network."""

    def __init__(self) -> None:
        self.segment = Segment()
        self.machines: list[Machine] = []
        try:
            self.machines = [Machine(self.segment, number) for number in (1, 2, 3)]
        except BaseException:
            self.close()
            raise
        self.server, *self.agents = self.machines

    def install(self) -> None:
        self.server.pelamis("install", "server")
        command = self.server.pelamis("token", "create").stdout.split()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda agent: agent.pelamis(*command[1:]), self.agents))

    def images(self, folder: Path) -> None:
        """The demo's image, on every machine: there is no registry."""
        built = demo.built(demo.DEMO, Paths(folder))
        for machine in self.machines:
            target = machine.root / "root" / IMAGE
            target.write_bytes(built.read_bytes())
            machine.pelamis("image", "import", f"/root/{IMAGE}")

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.server.netns}", kubectls()[0],
             f"--kubeconfig={self.server.root}/etc/pelamis/admin.kubeconfig", "--cache-dir", f"{self.server.root}/tmp",
             *arguments], capture_output=True, text=True, input=input, timeout=KUBECTL_SECONDS)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout} {done.stderr}"
        return done.stdout

    def ready(self, *names: str) -> bool:
        """Whether exactly these nodes, or all, are ready."""
        lines = [line.split() for line in self.kubectl("get", "nodes", "--no-headers").splitlines()]
        found = {words[0] for words in lines if words[1] == "Ready"}
        assert found == set(names or [m.name for m in self.machines]), lines
        return True

    def pods(self) -> dict[str, str]:
        """Node → the container of the workload that runs there, and since when."""
        form = ("jsonpath={range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].containerID}/"
                "{.status.containerStatuses[0].state.running.startedAt}{'\\n'}{end}")
        return dict(line.split() for line in self.kubectl("get", "pods", "-l", "app=each", "-o", form).splitlines())

    def pod_on(self, machine: Machine) -> str:
        """The workload's pod there."""
        return self.kubectl("get", "pods", "-l", "app=each", "-o", "name", "--field-selector",
                            f"spec.nodeName={machine.name}").strip()

    def answers(self) -> bool:
        """Whether the workload's Service answers on every host."""
        where = self.kubectl("get", "service", "each", "-o", "jsonpath={.spec.clusterIP}")
        for machine in self.machines:
            done = machine.run("curl", "-sf", "--max-time", "5", f"http://{where}/", check=False)
            assert done.returncode == 0, f"{machine.name}: {done.stderr}"
        return True

    def forget(self, machine: Machine) -> None:
        """A node that was reset leaves nothing in the cluster either."""
        self.kubectl("delete", "node", machine.name)
        eventually(self.ready)

    def close(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Machine.close, self.machines))
        self.segment.close()


class Stranger(Machine):
    """A host on the same segment with nothing of ours on it, before and after each attempt."""

    def refused(self, *arguments: str) -> str:
        """What an install says that must fail, and leave nothing."""
        done = self.pelamis("install", *arguments, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
        self.untouched()
        return done.stderr

    def cleared(self) -> None:
        """Whatever an attempt that failed left is gone."""
        self.pelamis("reset")
        self.run("rm", "-rf", "/var/lib/pelamis", "/etc/pelamis")

    def untouched(self) -> None:
        assert "nothing of ours" in self.pelamis("reset").stdout
        left = self.run("sh", "-c", "ls -d /etc/pelamis /var/lib/pelamis /usr/local/bin/pelamis "
                        "/etc/systemd/system/*pelamis* 2>/dev/null; getent passwd | grep pelamis", check=False).stdout
        assert not left, left


@pytest.fixture(scope="session")
def stranger(lab: Lab) -> Iterator[Stranger]:
    made = Stranger(lab.segment, 4)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if why := obstacle():
        pytest.skip(why)
    if not kubectls():
        pytest.skip("needs kubectl on PATH: apt-get install kubernetes-client")
    made = Lab()
    try:
        made.install()
        made.images(tmp_path_factory.mktemp("images"))
        eventually(made.ready)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def workload(lab: Lab) -> None:
    """A pod on every host, and a Service before them: what must run on, whatever is done to the hosts."""
    lab.kubectl("apply", "-f", "-", input=WORKLOAD)
    lab.kubectl("rollout", "status", "daemonset/each", "--timeout=150s")
