"""Certificates in the last third of their life are renewed while all runs: served anew, and no connection ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from controlplane.cli import control
from controlplane.machinery.clock import SYSTEM, FakeClock
from controlplane.pki import cluster as pki
from tests.client.cluster import NODE_IP, Cluster, eventually

pytestmark = pytest.mark.client
DAY = 86400.0
SHOWN = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2]))))"


def shown(cluster: Cluster, port: int) -> str:
    """The certificate that is served at a port of the node."""
    return cluster.run(sys.executable, "-c", SHOWN, NODE_IP, str(port)).stdout.strip()


def served(cluster: Cluster, port: int, name: str) -> bool:
    return shown(cluster, port) == (cluster.host.paths.pki / f"{name}.crt").read_text().strip()


def test_old_certificates_are_renewed_without_a_restart(cluster: Cluster) -> None:
    paths = cluster.host.paths
    before = {row["name"]: row["pid"] for row in control.status(paths) or []}
    for file in sorted(paths.pki.rglob("*.crt")):
        if file.name != "ca.crt":
            file.unlink()
    pki.ensure(paths, "lab-1", NODE_IP, clock=FakeClock(SYSTEM.now() - 300 * DAY))
    old = (paths.pki / "apiserver.crt").read_text().strip()
    assert control.reload(paths)
    eventually(lambda: shown(cluster, 6443) == old)
    cluster.kubectl("create", "configmap", "renewal", "--from-literal=a=b")
    with subprocess.Popen(cluster.host.enter("kubectl", "get", "configmap", "renewal", "--watch", "-o",
                                             "jsonpath={.data.a}{'\\n'}"), env=cluster.env, stdout=subprocess.PIPE,
                          text=True) as watch:
        assert watch.stdout is not None and watch.stdout.readline() == "b\n"
        cluster.pelamis("certs", "renew", "--due")  # as the supervisor does every day
        for port, name in ((6443, "apiserver"), (10250, "kubelet")):
            eventually(lambda port=port, name=name: served(cluster, port, name))  # type: ignore[misc]
        assert (paths.pki / "apiserver.crt").read_text().strip() != old
        cluster.kubectl("patch", "configmap", "renewal", "-p", '{"data": {"a": "c"}}')
        assert watch.stdout.readline() == "c\n", "the watch lives on"
        watch.terminate()
    assert "all are good for long" in cluster.pelamis("certs", "renew", "--due").stdout
    cluster.kubectl("create", "deployment", "renewal", "--image=demo", "--replicas=0")
    eventually(lambda: cluster.get("deployment", "renewal")["status"].get("observedGeneration"))
    assert {row["name"]: row["pid"] for row in control.status(paths) or []} == before, "nothing was started anew"
    cluster.kubectl("delete", "deployment/renewal", "configmap/renewal")
