"""What pods find in their volumes, on a whole cluster: claims that keep their data, files that follow their source."""

from __future__ import annotations

import json

from tests.client.cluster import Cluster, eventually

CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {colour: red}, annotations: {part: one}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, fsGroup: 4711}
  containers:
  - name: c
    image: busybox:1
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    env: [{name: PART, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['part']"}}}]
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: self, mountPath: /self}
    - {name: mine, mountPath: /mine, subPathExpr: $(PART)}
    - {name: mine, mountPath: /all}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: mine, emptyDir: {}}
  - {name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
"""
ABOVE = """
apiVersion: v1
kind: Pod
metadata: {name: above}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: "busybox:1", imagePullPolicy: IfNotPresent, volumeMounts: [{name: e, mountPath: /e}],
     command: [sh, -c, "head -c 3000000 /dev/zero > /e/x; sleep 3600"]}
  volumes: [{name: e, emptyDir: {sizeLimit: 1Mi}}]
"""


def test_volumes_hold_what_they_promise(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "volumes")

    def inside(pod: str, script: str) -> str:
        return cluster.kubectl("-n", "volumes", "exec", pod, "--", "sh", "-c", script).strip()

    def start(name: str) -> None:
        cluster.kubectl("-n", "volumes", "apply", "-f", "-", input=POD.replace("NAME", name))
        cluster.kubectl("-n", "volumes", "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")

    cluster.kubectl("-n", "volumes", "apply", "-f", "-", input=ABOVE)
    cluster.kubectl("-n", "volumes", "apply", "-f", "-", input=CLAIM)
    start("first")
    assert inside("first", "echo kept > /data/file; touch /mine/x; stat -c %g /all/one; ls /all/one") == "4711\nx"
    assert "Read-only file system" in inside("first", "touch /self/x 2>&1 || true")
    cluster.kubectl("-n", "volumes", "label", "pod", "first", "colour=blue", "--overwrite")
    eventually(lambda: inside("first", "cat /self/labels") == 'colour="blue"')
    cluster.kubectl("-n", "volumes", "delete", "pod", "first")
    start("second")
    assert inside("second", "cat /data/file") == "kept"

    def evicted() -> bool:
        status = json.loads(cluster.kubectl("-n", "volumes", "get", "pod", "above", "-o", "json"))["status"]
        return bool(status.get("reason") == "Evicted" and status["phase"] == "Failed"
                    and status["message"] == 'Usage of EmptyDir volume "e" exceeds the limit "1Mi". ')
    eventually(evicted)
    cluster.kubectl("delete", "namespace", "volumes", "--wait=false")
