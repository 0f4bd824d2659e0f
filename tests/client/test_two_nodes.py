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
SECOND_IP = "192.168.77.11"
SPREAD = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: "IMAGE", imagePullPolicy: IfNotPresent}]}
""".replace("IMAGE", demo.DEMO)


class Second:
    """Another host on the same segment, with an agent whose certificates come from the cluster's authority."""

    def __init__(self, first: Cluster) -> None:
        self.first, self.host = first, Host()
        self.agent: subprocess.Popen[bytes] | None = None
        try:
            self._join_segment()
            self._certificates()
            self._start()
        except BaseException:
            self.close()
            raise

    def _join_segment(self) -> None:
        one, two = self.first.host.netns, self.host.netns
        for netns, line in (
                (one, "link add segment type bridge"), (one, "link set segment up"),
                (one, "link set wire master segment"),
                (two, f"link add uplink type veth peer name second netns {one}"),
                (one, "link set second master segment up"), (two, f"addr add {SECOND_IP}/24 dev uplink"),
                (two, "link set uplink up"), (two, "route add default via 192.168.77.1")):
            subprocess.run(["ip", "-n", netns, *line.split()], check=True)
        # The segment is a cable, not a host: the first host's rules have no business with what passes it.
        self.first.run("sh", "-c", "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables || true")

    def _certificates(self) -> None:
        paths, authority = self.host.paths, self.first.host.paths.pki
        paths.pki.mkdir(parents=True, exist_ok=True)
        for name in ("ca.crt", "ca.key", "sa.key", "sa.pub"):
            shutil.copy(authority / name, paths.pki / name)
        pki.ensure(paths, "second", SECOND_IP)
        for component in ("node", "kube-proxy"):
            file = paths.kubeconfig(component)
            file.write_text(file.read_text().replace("127.0.0.1", NODE_IP))

    def _start(self) -> None:
        paths = self.host.paths
        cni.install(paths, Ledger(paths.ledger))

        async def images() -> None:
            async with Connection(paths.containerd_socket) as connection:
                await demo.install(connection, paths, (demo.DEMO,))
        asyncio.run(images())
        with (self.host.root / "agent.log").open("wb") as out:
            self.agent = subprocess.Popen(self.host.enter(
                os.sys.executable, "-m", "agent", f"--kubeconfig={paths.kubeconfig('node')}",
                f"--proxy-kubeconfig={paths.kubeconfig('kube-proxy')}", "--hostname-override=second",
                f"--node-ip={SECOND_IP}", f"--container-runtime-endpoint=unix://{paths.containerd_socket}",
                f"--root-dir={paths.kubelet}", "--cluster-dns=10.96.0.10"),
                env={**os.environ, "PELAMIS_ROOT": str(self.host.root), "PYTHONPATH": str(CHECKOUT)}, stdout=out,
                stderr=out)

    def ready(self) -> bool:
        """Whether both nodes are; what the second one's agent says otherwise."""
        nodes = self.first.kubectl("get", "nodes")
        assert nodes.count(" Ready ") == 2, nodes + (self.host.root / "agent.log").read_text()[-2000:]
        return True

    def close(self) -> None:
        try:
            if self.agent:  # its pods first: taking down their network is the agent's work
                self.first.kubectl("delete", "daemonset", "each", "--ignore-not-found")
                eventually(lambda: "second" not in self.first.kubectl("get", "pods", "-o", "wide"))
                self.agent.terminate()
                self.agent.wait(20)
        finally:
            self.host.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Cluster, Second]]:
    first = Cluster()
    second = None
    try:
        first.pelamis("up", "--demo")
        second = Second(first)
        yield first, second
    finally:
        if second:
            second.close()
        first.close()


def test_pods_of_two_hosts(pair: tuple[Cluster, Second]) -> None:
    cluster, second = pair
    eventually(lambda: second.ready(), 20)
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
