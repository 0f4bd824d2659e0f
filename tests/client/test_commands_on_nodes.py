"""The commands of kubectl that need pods that run, by the oldest and the newest kubectl at hand: one session each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.cluster import eventually, kubectls

pytestmark = pytest.mark.client
AVAILABLE = kubectls()
VERSIONS = sorted({0, 1, len(AVAILABLE) - 1} & set(range(len(AVAILABLE))))
SETS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds}
spec:
  selector: {matchLabels: {app: ds}}
  template:
    metadata: {labels: {app: ds}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "busybox:1", command: [sleep, "3600"]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ss}
spec:
  serviceName: ss
  selector: {matchLabels: {app: ss}}
  template:
    metadata: {labels: {app: ss}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "busybox:1", command: [sleep, "3600"]}]}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: rc}
spec:
  replicas: 1
  selector: {app: rc}
  template:
    metadata: {labels: {app: rc}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "busybox:1", command: [sh, -c, "for i in 1 2 3; do echo line $i; done; sleep 999"]}]
"""


@pytest.fixture
def space(cluster):
    cluster.kubectl("create", "namespace", "commands")
    eventually(lambda: cluster.run("kubectl", "-n", "commands", "get", "serviceaccount", "default",
                                   check=False).returncode == 0)
    yield "commands"
    cluster.kubectl("delete", "namespace", "commands")


@pytest.mark.parametrize("binary", [AVAILABLE[i] for i in VERSIONS], ids=[Path(AVAILABLE[i]).name for i in VERSIONS])
def test_workloads_roll_and_pods_are_worked_in(cluster, space, tmp_path, binary):
    def k(*words, **more):
        return cluster.kubectl("-n", space, *(w for word in words for w in word.split()), binary=binary, **more)

    assert k("create -f -", input=SETS).count("created") == 3
    for name in ("ds/ds", "sts/ss"):
        k(f"rollout status {name} --timeout=60s")
        assert "env updated" in k(f"set env {name} A=1")
        k(f"rollout status {name} --timeout=60s")
        assert k(f"rollout history {name}").count("<none>") == 2
        assert "rolled back" in k(f"rollout undo {name}")
        k(f"rollout status {name} --timeout=60s")
        assert "restarted" in k(f"rollout restart {name}")
    assert "condition met" in k("wait --for=condition=Ready pod -l app=rc --timeout=60s")
    pod, = k("get pods -l app=rc -o name").split()
    assert eventually(lambda: k(f"logs {pod}")).count("line") == 3
    assert k(f"logs {pod} --tail=1 --timestamps").count("\n") == 1 and k(f"logs {pod} --limit-bytes=1") == "l"
    assert "line" in k("logs -l app=rc --prefix --tail=1") and "line" in k("logs rc/rc --since=1h")
    assert k(f"exec -i {pod} -- cat", input="given") == "given"
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(bytes(range(256)) * 64)
    k(f"cp {sent} {pod.removeprefix('pod/')}:/tmp/sent")
    k(f"cp {pod.removeprefix('pod/')}:/tmp/sent {back}")
    assert back.read_bytes() == sent.read_bytes()
    k(f"debug {pod} --image=busybox:1 --container=dbg -- sleep 3600")
    eventually(lambda: k(f"exec {pod} -c dbg -- echo hi").strip() == "hi")
    k(f"debug {pod} --copy-to=copy --image=busybox:1 -- sleep 3600")
    assert "condition met" in k("wait --for=condition=Ready pod/copy --timeout=60s")
    for word in ("Controlled By:", "ReplicationController/rc", "QoS Class:", "Started"):
        assert word in k(f"describe {pod}")
    eventually(lambda: "1 Running / 0 Waiting / 0 Succeeded / 0 Failed" in k("describe rc rc"))
    assert "Scheduled" in k("events") and "exposed" in k("expose rc rc --port=80 --name=svc")
    assert "scaled" in k("scale rc rc --replicas=2")
    eventually(lambda: len(k("get pods -l app=rc -o name").split()) == 2)
    k("wait --for=condition=Ready pod -l app=rc --timeout=60s")
    try:
        assert "drained" in k("drain lab-1 --pod-selector=app=rc --force --timeout=60s")
    finally:
        k("uncordon lab-1")
    assert "deleted" in k("delete rc rc --cascade=orphan") and k("get pods -l app=rc -o name")
    assert "deleted" in k("delete ds ds --cascade=foreground")
    assert "out" in k("run tmp -i --rm --restart=Never --image=busybox:1 --command --", "sh", "-c",
                      "cat", input="out\n")
