"""A node on a kernel of its own with cgroup v2 under systemd: limits hold, and nothing is left of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent.image import demo
from controlplane.machinery.paths import Paths
from tests.client.cluster import kubectls
from tests.nightly import vm

pytestmark = pytest.mark.host
MEMORY_LIMIT, HUGE_LIMIT = 48 << 20, 4 << 20
WORKLOAD = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {demo.DEMO}
        imagePullPolicy: IfNotPresent
        resources: {{requests: {{cpu: 50m, memory: 32Mi}}, limits: {{cpu: 500m, memory: 48Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: huge}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{{name: pages, emptyDir: {{medium: HugePages}}}}]
  containers:
  - name: huge
    image: {demo.DEMO}
    imagePullPolicy: IfNotPresent
    resources: {{requests: {{cpu: 50m, memory: 32Mi}}, limits: {{memory: 32Mi, hugepages-2Mi: 4Mi}}}}
    volumeMounts: [{{name: pages, mountPath: /pages}}]
    command: [/bin/busybox, sleep, infinity]
  - name: free
    image: {demo.DEMO}
    imagePullPolicy: IfNotPresent
    command: [/bin/busybox, sleep, infinity]
"""
SCRIPT = f"""#!/bin/sh
export HOME=/root KUBECONFIG=/etc/pelamis/admin.kubeconfig NO_COLOR=1
PATH=/root:$PATH
chmod +x /root/kubectl
cd /root
sysctl -q vm.nr_hugepages=8
ids() {{ kubectl get pods -o 'jsonpath={{.items[*].status.containerStatuses[0].containerID}}'; }}
stat -fc 'cgroups: %T' /sys/fs/cgroup
PELAMIS_VENV=/root/venv /root/pelamis/pelamis install server --node-ip {vm.ADDRESS}; echo "install: $?"
pelamis doctor; echo "doctor: $?"
grep default_runtime_name /etc/pelamis/containerd.toml
pelamis image import /root/demo.tar
kubectl apply -f /root/work.yaml
kubectl rollout status deploy/web --timeout=240s; echo "rollout: $?"
curl -s --max-time 30 http://$(kubectl get svc web -o 'jsonpath={{.spec.clusterIP}}')/; echo "curl: $?"
kubectl wait --for=condition=Ready pod/huge --timeout=240s
for group in $(find /sys/fs/cgroup/kubepods.slice -name 'cri-containerd*.scope'); do
    [ -d $group/container ] && group=$group/container
    echo "limit: $(cat $group/memory.max) $(cat $group/cpu.max)" \
        "swap $(cat $group/memory.swap.max) together $(cat $group/memory.oom.group)"
done
for group in $(find /sys/fs/cgroup/kubepods.slice -path '*pod*' -name hugetlb.2MB.max); do
    echo "huge pages: $(cat $group)"
done
kubectl exec huge -c huge -- /bin/busybox fallocate -l {HUGE_LIMIT} /pages/all; echo "all of them: $?"
kubectl exec huge -c huge -- /bin/busybox fallocate -l {HUGE_LIMIT // 2} /pages/more; echo "more: $?"
kubectl delete pod huge
before=$(ids)
systemctl restart pelamis-containerd pelamis-agent pelamis-apiserver
kubectl wait --for=condition=Ready node --all --timeout=120s
[ "$(ids)" = "$before" ] && echo "containers: the same"
kubectl exec deploy/web -- /bin/busybox sh -c 'x=a; while :; do x=$x$x; done'; echo "greedy: $?"
pelamis reset; echo "reset: $?"
systemctl poweroff
"""


def test_a_node_on_cgroup_v2(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes a disk of a file tree that root owns")
    if shutil.which("qemu-system-x86_64") is None or shutil.which("mmdebstrap") is None:
        pytest.skip("needs qemu: apt-get install qemu-system-x86 mmdebstrap")
    if not kubectls():
        pytest.skip("needs kubectl on PATH: apt-get install kubernetes-client")
    work = tmp_path / "work.yaml"
    work.write_text(WORKLOAD)
    told = vm.run(SCRIPT, tmp_path, {"work.yaml": work, "demo.tar": demo.built(demo.DEMO, Paths(tmp_path / "images")),
                                     "kubectl": Path(kubectls()[0]).resolve()})
    for line in ("cgroups: cgroup2fs", "install: 0", "doctor: 0", "rollout: 0", "curl: 0", "containers: the same",
                 'default_runtime_name = "crun"', "all of them: 0", "more: 1", "greedy: 137", "This host is as it was.",
                 "reset: 0"):
        assert line in told, told[-6000:]
    assert told.count(f"limit: {MEMORY_LIMIT} 50000 100000") == 2, told
    assert "limit: max max 100000 swap 0 together 1" in told, told
    assert told.count(f"huge pages: {HUGE_LIMIT}") == 2, told  # the pod's group and its container's
