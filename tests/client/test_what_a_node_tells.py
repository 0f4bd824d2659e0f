"""What a node tells of itself and its pods: the Node and its lease, the kubelet's API, metrics by which pods scale."""

import json
import os
import re
from pathlib import Path

import pytest

from controlplane.machinery.clock import parse_rfc3339
from tests.client.cluster import NODE_IP, eventually

pytestmark = pytest.mark.client
NODE = "lab-1"
BUSY = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "busy"}, "spec": {
    "selector": {"matchLabels": {"app": "busy"}}, "template": {"metadata": {"labels": {"app": "busy"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": "pelamis.local/demo:1", "command": ["sh", "-c", "while :; do :; done"],
            "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"cpu": "60m", "memory": "32Mi"}}}]}}}}


def proxied(cluster, path):
    return cluster.kubectl("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/{path}")


@pytest.fixture(scope="module")
def busy(cluster):
    """The name of a pod that uses all the time it may."""
    cluster.kubectl("create", "-f", "-", input=json.dumps(BUSY))
    cluster.kubectl("autoscale", "deployment", "busy", "--min=1", "--max=2", "--cpu-percent=10")
    cluster.kubectl("rollout", "status", "deployment/busy", "--timeout=60s")
    yield cluster.kubectl("get", "pods", "-l", "app=busy", "-o", "jsonpath={.items[0].metadata.name}")
    cluster.kubectl("delete", "hpa,deployment", "busy")


def test_the_node_is_what_the_host_is(cluster, busy):
    node = cluster.get("node", NODE)
    status, info = node["status"], node["status"]["nodeInfo"]
    memory = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1])
    assert {a["type"]: a["address"] for a in status["addresses"]} == {"InternalIP": NODE_IP, "Hostname": NODE}
    assert (status["capacity"]["cpu"], status["capacity"]["memory"]) == (str(os.cpu_count()), f"{memory}Ki")
    assert int(status["allocatable"]["memory"].removesuffix("Ki")) == memory - (100 << 10)  # what evictions keep free
    assert (info["kernelVersion"], info["bootID"]) == (
        os.uname().release, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    assert info["containerRuntimeVersion"].startswith("containerd://") and info["kubeletVersion"].startswith("v1.36.")
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False", "Ready": "True"}
    lease = cluster.get("lease", NODE, "-n", "kube-node-lease")
    assert lease["spec"]["holderIdentity"] == NODE and lease["metadata"]["ownerReferences"][0]["name"] == NODE
    eventually(lambda: cluster.get("lease", NODE, "-n", "kube-node-lease")["spec"]["renewTime"]
               > lease["spec"]["renewTime"])
    eventually(lambda: "pelamis.local/demo:1" in str(cluster.get("node", NODE)["status"]["images"]))


def test_the_kubelet_answers_for_its_pods(cluster, busy):
    assert proxied(cluster, "healthz") == "ok"
    config = json.loads(proxied(cluster, "configz"))["kubeletconfig"]
    assert (config["maxPods"], config["evictionHard"]["memory.available"], config["readOnlyPort"]) == (110, "100Mi", 0)
    pods = {pod["metadata"]["name"]: pod for pod in json.loads(proxied(cluster, "pods"))["items"]}
    assert pods[busy]["status"]["phase"] == "Running"

    def measured():
        """The pod by /stats/summary: what its group has used is what the kernel says."""
        summary = json.loads(proxied(cluster, "stats/summary"))
        (pod,) = (one for one in summary["pods"] if one["podRef"]["name"] == busy)
        node, since = summary["node"], re.search(r"btime (\d+)", Path("/proc/stat").read_text())[1]
        assert node["nodeName"] == NODE and node["fs"]["capacityBytes"] > 0
        assert parse_rfc3339(node["startTime"]) == float(since)
        assert ("psi" in node["cpu"]) == Path("/proc/pressure/cpu").exists()
        assert pod["network"]["txBytes"] >= 0 and pod["containers"][0]["memory"]["workingSetBytes"] > 0
        return 1_000_000 < pod["containers"][0]["cpu"]["usageNanoCores"] < 120_000_000
    eventually(measured, why="60m is all it may use")
    labels = f'container="main",namespace="default",pod="{busy}"'
    assert f"container_cpu_usage_seconds_total{{{labels}}}" in proxied(cluster, "metrics/resource")
    deep = proxied(cluster, "metrics/cadvisor")
    for name, least in (("container_spec_memory_limit_bytes", 32 << 20),
                        ("container_cpu_cfs_throttled_periods_total", 1)):
        found = re.search(rf'{name}{{[^}}]*container="main"[^}}]*pod="{busy}"[^}}]*}} (\S+)', deep)
        assert found is not None and float(found[1]) >= least, name


def test_what_pods_use_is_told_by_top_and_scales_them(cluster, busy):
    def told():
        name, cpu, memory = cluster.kubectl("top", "pod", busy, "--no-headers").split()
        assert name == busy and memory.endswith("Mi")
        return 1 <= int(cpu.removesuffix("m")) <= 120
    eventually(told)
    name, cpu, _, memory, _ = cluster.kubectl("top", "node", "--no-headers").split()
    assert name == NODE and int(cpu.removesuffix("m")) > 1 and int(memory.removesuffix("Mi")) > 0

    def scaled():
        status = cluster.get("hpa", "busy")["status"]
        assert status["currentMetrics"][0]["resource"]["current"]["averageUtilization"] > 10, status
        return cluster.get("deployment", "busy")["spec"]["replicas"] == 2
    eventually(scaled, 180)


def test_a_running_pod_is_resized_by_kubectl(cluster, busy):
    def quota():
        return cluster.kubectl("exec", busy, "--", "sh", "-c", "cat /sys/fs/cgroup/cpu.max 2>/dev/null || "
                               "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us").split()[0]
    before = cluster.get("pod", busy)
    assert quota() == "6000" and before["status"]["resources"]["limits"] == {"cpu": "60m", "memory": "32Mi"}
    wish = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"cpu": "120m"}}}]}}
    cluster.kubectl("patch", "pod", busy, "--subresource", "resize", "-p", json.dumps(wish))
    eventually(lambda: quota() == "12000")
    eventually(lambda: cluster.get("pod", busy)["status"]["resources"]["limits"]["cpu"] == "120m")
    after = cluster.get("pod", busy)["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["status"]["containerStatuses"][0]["containerID"], 0)
    wish["spec"]["containers"][0]["resources"] = {kind: {"cpu": "9000"} for kind in ("requests", "limits")}
    cluster.kubectl("patch", "pod", busy, "--subresource", "resize", "-p", json.dumps(wish))
    eventually(lambda: "ResizeInfeasible" in cluster.kubectl("events", "--for", f"pod/{busy}"))
    assert quota() == "12000"
