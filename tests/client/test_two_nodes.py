"""A second host joins the cluster: its pods, services, names and policies work across both."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from agent.image import demo
from controlplane.pki import cluster as pki
from cri_proto.client import Connection
from netsetup.cni import install as cni
from netsetup.ledger import Ledger
from tests.node.rig import Host

from .cluster import CHECKOUT, NODE_IP, Cluster, eventually

pytestmark = pytest.mark.client
SECOND_IP, THIRD_IP, MOVED_IP = "192.168.77.11", "192.168.77.12", "192.168.77.13"
GRACE = 90.0  # seconds: a node that is silent for 40 s is given up, its endpoints with it
SPREAD = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata:
      labels: {app: each}
      annotations: {kubernetes.io/ingress-bandwidth: 80M, kubernetes.io/egress-bandwidth: 40M}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: "IMAGE", imagePullPolicy: IfNotPresent}]}
""".replace("IMAGE", demo.DEMO)


class Joined:
    """A further host on the same segment, with an agent whose certificates come from the cluster's authority."""

    def __init__(self, first: Cluster, name: str, address: str) -> None:
        self.first, self.name, self.address, self.host = first, name, address, Host()
        self.agent: subprocess.Popen[bytes] | None = None
        try:
            self._join_segment()
            self._certificates()
            (self.host.paths.cni_conf / "10-test.conflist").unlink()  # of the rig: an early pod would get its network
            cni.install(self.host.paths, Ledger(self.host.paths.ledger))
            asyncio.run(self._images())
            self.start()
        except BaseException:
            self.close()
            raise

    def ip(self, line: str, netns: str = "") -> None:
        subprocess.run(["ip", "-n", netns or self.host.netns, *line.split()], check=True)

    def _join_segment(self) -> None:
        one = self.first.host.netns
        self.ip(f"link add uplink type veth peer name {self.name} netns {one}")
        self.ip(f"link set {self.name} master segment up", one)
        self.ip(f"addr add {self.address}/24 dev uplink")
        self.ip("link set uplink up")
        self.ip("route add default via 192.168.77.1")

    def _certificates(self) -> None:
        paths, authority = self.host.paths, self.first.host.paths.pki
        paths.pki.mkdir(parents=True, exist_ok=True)
        for name in ("ca.crt", "ca.key", "sa.key", "sa.pub"):
            shutil.copy(authority / name, paths.pki / name)
        pki.ensure(paths, self.name, self.address)
        for component in ("node", "kube-proxy"):
            file = paths.kubeconfig(component)
            file.write_text(file.read_text().replace("127.0.0.1", NODE_IP))

    async def _images(self) -> None:
        async with Connection(self.host.paths.containerd_socket) as connection:
            await demo.install(connection, self.host.paths, (demo.DEMO,))

    def start(self) -> None:
        paths = self.host.paths
        with (self.host.root / "agent.log").open("wb") as out:
            self.agent = subprocess.Popen(self.host.enter(
                os.sys.executable, "-m", "agent", f"--kubeconfig={paths.kubeconfig('node')}",
                f"--proxy-kubeconfig={paths.kubeconfig('kube-proxy')}", f"--hostname-override={self.name}",
                f"--node-ip={self.address}", f"--container-runtime-endpoint=unix://{paths.containerd_socket}",
                f"--root-dir={paths.kubelet}", "--cluster-dns=10.96.0.10"),
                env={**os.environ, "PELAMIS_ROOT": str(self.host.root), "PYTHONPATH": str(CHECKOUT)}, stdout=out,
                stderr=out)

    def stop(self) -> None:
        if self.agent:
            self.agent.terminate()
            self.agent.wait(20)

    def move(self, address: str) -> None:
        """The host gets another address, as a lab's DHCP may do."""
        self.stop()
        self.ip(f"addr del {self.address}/24 dev uplink")
        self.address = address
        self.ip(f"addr add {address}/24 dev uplink")
        self.ip("route replace default via 192.168.77.1")
        self.start()

    def cut(self) -> None:
        """Somebody pulls the cable."""
        self.ip(f"link set {self.name} down", self.first.host.netns)

    def mend(self) -> None:
        self.ip(f"link set {self.name} up", self.first.host.netns)

    def ready(self, count: int) -> bool:
        """Whether so many nodes are; what this one's agent says otherwise."""
        nodes = self.first.kubectl("get", "nodes")
        assert nodes.count(" Ready ") == count, nodes + (self.host.root / "agent.log").read_text()[-2000:]
        return True

    def close(self) -> None:
        try:
            if self.agent:  # its pods first: taking down their network is the agent's work
                self.first.kubectl("delete", "daemonset", "each", "--ignore-not-found")
                eventually(lambda: f" {self.name} " not in self.first.kubectl("get", "pods", "-o", "wide"))
                self.stop()
        finally:
            self.host.close()


def segment(first: Cluster) -> None:
    """A cable between the hosts. It is no host: the first one's rules have no business with what passes it."""
    for line in ("link add segment type bridge", "link set segment up", "link set wire master segment"):
        subprocess.run(["ip", "-n", first.host.netns, *line.split()], check=True)
    first.run("sh", "-c", "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables || true")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Cluster, Joined]]:
    first = Cluster()
    second = None
    try:
        first.pelamis("up", "--demo")
        segment(first)
        second = Joined(first, "second", SECOND_IP)
        yield first, second
    finally:
        if second:
            second.close()
        first.close()


def test_pods_of_two_hosts(pair: tuple[Cluster, Joined]) -> None:
    cluster, second = pair
    eventually(lambda: second.ready(2), 20)
    cluster.kubectl("apply", "-f", "-", input=SPREAD)
    cluster.kubectl(
        "create", "service", "clusterip", "each", "--tcp=80")
    cluster.kubectl("rollout", "status", "daemonset/each", "--timeout=60s")
    pods = {p["spec"]["nodeName"]: p for p in cluster.get("pods", "-l", "app=each")["items"]}
    assert len(pods) == 2
    here, there = (p for _, p in sorted(pods.items(), key=lambda item: item[0] == "second"))
    names = {p["metadata"]["name"] for p in pods.values()}

    def fetch(pod: dict, url: str) -> str:
        return cluster.run("kubectl", "exec", pod["metadata"]["name"], "--", "timeout", "2", "wget", "-qO-", url,
                           check=False).stdout.strip()

    for shaped in (cluster.run("tc", "qdisc").stdout, second.host.call("tc", "qdisc")):
        assert "tbf" in shaped and "rate 80Mbit" in shaped  # what the pod receives; what it sends is held in the pod
    for one, other in ((here, there), (there, here)):
        assert fetch(one, f"http://{other['status']['podIP']}/") == other["metadata"]["name"]
        eventually(lambda one=one: {fetch(one, "http://each/") for _ in range(8)} == names)
    assert "10.96.0.1" in cluster.run("kubectl", "exec", there["metadata"]["name"], "--", "nslookup",
                                      "kubernetes.default.svc.cluster.local", check=False).stdout
    assert there["metadata"]["name"] in cluster.kubectl("exec", there["metadata"]["name"], "--", "hostname")
    cluster.kubectl("apply", "-f", "-", input="""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: each}}}
""")
    for one, other in ((here, there), (there, here)):  # each held by the receiver's node
        eventually(lambda one=one, other=other: not fetch(one, f"http://{other['status']['podIP']}/"))
    cluster.kubectl("delete", "networkpolicy", "deny")


def test_a_network_that_somebody_installs_takes_the_place_of_ours(pair: tuple[Cluster, Joined]) -> None:
    cluster, _ = pair
    first = next(n["metadata"]["name"] for n in cluster.get("nodes")["items"] if n["metadata"]["name"] != "second")
    far = cluster.get("node", "second")["spec"]["podCIDR"]
    ours = cluster.host.paths.cni_conf / cni.CONFIGURATION

    def pod(name: str) -> str:
        """A new one on the first host; its address."""
        cluster.kubectl("run", name, f"--image={demo.DEMO}", "--image-pull-policy=IfNotPresent", "--overrides",
                        f'{{"spec": {{"nodeName": "{first}"}}}}')
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
        address = cluster.get("pod", name)["status"]["podIP"]
        assert f" {address}/" in cluster.kubectl("exec", name, "--", "ip", "addr", "show", "eth0")
        assert cluster.run("curl", "-s", "-m", "5", f"http://{address}/").stdout.strip() == name
        return address

    eventually(lambda: far in cluster.run("ip", "route").stdout)
    theirs = cluster.host.bridge("20-theirs.conflist", "10.99.0.0/24")
    eventually(lambda: not ours.exists() and far not in cluster.run("ip", "route").stdout)
    assert pod("theirs").startswith("10.99.0.")
    cluster.kubectl("delete", "pod", "theirs", "--now")
    theirs.unlink()
    eventually(lambda: ours.exists() and far in cluster.run("ip", "route").stdout)
    assert pod("ours").startswith("10.244.")
    cluster.kubectl("delete", "pod", "ours", "--now")


def test_hosts_come_move_lose_their_cable_and_die(pair: tuple[Cluster, Joined]) -> None:
    cluster, second = pair
    third = Joined(cluster, "third", THIRD_IP)
    try:
        eventually(lambda: third.ready(3), 20)

        def pods() -> dict[str, dict]:
            found = {p["spec"]["nodeName"]: p for p in cluster.get("pods", "-l", "app=each")["items"]}
            assert len(found) == 3 and all(p["status"].get("podIP") for p in found.values())
            return found

        here, there = (eventually(pods)[name] for name in ("second", "third"))
        address, name = there["status"]["podIP"], there["metadata"]["name"]

        def asked(host: Joined | None, target: str) -> str:
            """What the host itself gets of a target; from the first host by default."""
            command = ["curl", "-s", "-m", "1", f"http://{target}/"]
            run = command if host is None else host.host.enter(*command)
            return (cluster.run(*run, check=False) if host is None else
                    subprocess.run(run, capture_output=True, text=True)).stdout.strip()

        service = cluster.get("service", "each")["spec"]["clusterIP"]
        for host in (None, second):
            eventually(lambda host=host: asked(host, address) == name)
        third.move(MOVED_IP)
        for host in (None, second):
            eventually(lambda host=host: asked(host, address) == name)  # by the new address, the same pod
        third.cut()
        assert asked(second, address) == ""
        third.mend()
        eventually(lambda: asked(second, address) == name)
        third.cut()  # for good: its pod leaves the Service when the node is given up
        names = {here["metadata"]["name"], *(p["metadata"]["name"] for p in pods().values()
                                             if p["spec"]["nodeName"] not in ("second", "third"))}
        eventually(lambda: {asked(second, service) for _ in range(12)} == names, GRACE)
        eventually(lambda: {asked(None, service) for _ in range(12)} == names, GRACE)
    finally:
        third.mend()
        third.close()
