"""The last of the tier: the hosts of all its tests are left without a cluster, and as they were before."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.image import demo
from tests.host.conftest import Lab

pytestmark = pytest.mark.host


CLAIM = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "precious"}, "spec": {
    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}
WRITER = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "writer"}, "spec": {
    "nodeSelector": {"kubernetes.io/hostname": "host3"},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "precious"}}],
    "containers": [{"name": "main", "image": demo.DEMO, "imagePullPolicy": "IfNotPresent",
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}


def test_the_hosts_are_as_before(lab: Lab) -> None:
    """But for what a pod wrote into its persistent volume, which is named and stays."""
    for wanted in (CLAIM, WRITER):
        lab.kubectl("create", "-f", "-", input=json.dumps(wanted))
    lab.kubectl("wait", "--for=condition=Ready", "pod/writer", "--timeout=150s")
    lab.kubectl("exec", "writer", "--", "/bin/busybox", "sh", "-c", "echo data > /data/file")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda m: m.pelamis("reset", check=False), reversed(lab.machines)))
    for reset, but in zip(done, (", but for what was kept.", ".", ".")):
        assert reset.returncode == 0 and f"This host is as it was{but}\n" in reset.stdout, reset.stdout + reset.stderr
        assert "different" not in reset.stdout
    (file,) = (lab.agents[1].root / "var/lib/pelamis/volumes").rglob("file")
    assert file.read_text() == "data\n" and f"/{file.parent.relative_to(lab.agents[1].root)}" in done[0].stdout
    for machine in lab.machines:
        assert "nothing of ours" in machine.pelamis("reset").stdout
