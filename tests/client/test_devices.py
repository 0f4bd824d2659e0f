"""Devices in a whole cluster: those of a plugin are counted, scheduled by and handed in; those of a driver are given to
claims."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client.cluster import Cluster, eventually

pytestmark = pytest.mark.client
RESOURCE = "example.com/lab"


@contextmanager
def plugin(folder: Path, device: Path) -> Iterator[None]:
    """A plugin with one device, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "tests.node.deviceplugin", str(folder), RESOURCE, f"a={device}"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None and process.stdout.readline() == "registered\n"
        yield
    finally:
        process.kill()
        process.communicate()


def wants(name: str) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
            "resources": {"limits": {RESOURCE: 1}}}]}})


def test_devices_of_a_plugin_are_scheduled_by_and_handed_in(cluster: Cluster, tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    def counted() -> tuple[str | None, str | None]:
        status = cluster.get("node", "lab-1")["status"]
        return status["capacity"].get(RESOURCE), status["allocatable"].get(RESOURCE)

    def unscheduled() -> bool:
        return f"Insufficient {RESOURCE}" in json.dumps(cluster.get("-n", "devices", "pod", "second")["status"])
    cluster.kubectl("create", "namespace", "devices")
    with plugin(cluster.root / "var/lib/pelamis/kubelet/device-plugins", tmp_path / "null"):
        eventually(lambda: counted() == ("1", "1"))
        cluster.kubectl("-n", "devices", "create", "-f", "-", input=wants("first"))
        cluster.kubectl("-n", "devices", "wait", "--for=condition=Ready", "pod/first", "--timeout=60s")
        inside = cluster.kubectl("-n", "devices", "exec", "first", "--", "sh", "-c", "echo x > /dev/lab-a && echo "
                                                                                     "$LAB_DEVICES")
        assert inside.strip() == "a"
        cluster.kubectl("-n", "devices", "create", "-f", "-", input=wants("second"))
        eventually(unscheduled)
        cluster.kubectl("-n", "devices", "delete", "pod", "first")
        cluster.kubectl("-n", "devices", "wait", "--for=condition=Ready", "pod/second", "--timeout=60s")
    eventually(lambda: counted() == ("1", "0"))  # the plugin has gone; it may come back
    status = cluster.get("-n", "devices", "pod", "second")["status"]["containerStatuses"][0]
    eventually(lambda: "Unhealthy" in json.dumps(cluster.get("-n", "devices", "pod", "second")["status"]))
    assert status["allocatedResources"] == {RESOURCE: "1"}
    cluster.kubectl("delete", "namespace", "devices")


DRIVEN = """
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu}
spec:
  extendedResourceName: example.com/gpu
  selectors: [{cel: {expression: 'device.driver == "gpu.example.com" && device.attributes["gpu.example.com"].fast'}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: lab-1-gpus}
spec:
  driver: gpu.example.com
  nodeName: lab-1
  pool: {name: lab-1, generation: 1, resourceSliceCount: 1}
  devices: [{name: slow, attributes: {fast: {bool: false}}}, {name: a, attributes: {fast: {bool: true}}},
            {name: b, attributes: {fast: {bool: true}}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: mine, namespace: driven}
spec: {devices: {requests: [{name: r, exactly: {deviceClassName: gpu}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: claims, namespace: driven}
spec:
  terminationGracePeriodSeconds: 0
  resourceClaims: [{name: c, resourceClaimName: mine}]
  containers: [{name: c, image: "busybox:1", command: [sleep, "3600"], resources: {claims: [{name: c}]}}]
---
apiVersion: v1
kind: Pod
metadata: {name: asks, namespace: driven}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "busybox:1", command: [sleep, "3600"], resources: {limits: {example.com/gpu: 1}}}]
"""


def test_devices_of_a_driver_are_given_to_claims_and_for_extended_resources(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "driven")
    cluster.kubectl("create", "-f", "-", input=DRIVEN)

    def allocated() -> list[tuple[str, str]] | None:
        found = [(one["metadata"]["name"].rpartition("-")[0] or "mine", result["device"])
                 for one in cluster.get("-n", "driven", "resourceclaims")["items"]
                 for result in one.get("status", {}).get("allocation", {}).get("devices", {}).get("results", ())]
        return sorted(found) if len(found) == 2 else None
    found = eventually(allocated)
    assert [name for name, _ in found] == ["asks-extended-resources", "mine"] and {at for _, at in found} == {"a", "b"}
    assert "allocated,reserved" in cluster.kubectl("-n", "driven", "get", "resourceclaim", "mine")
    for pod in ("claims", "asks"):  # the node lacks the driver, and says so
        eventually(lambda pod=pod: "DRA driver gpu.example.com is not registered on this node" in json.dumps(
            cluster.get("-n", "driven", "pod", pod)["status"]))
    cluster.kubectl("-n", "driven", "delete", "pod", "claims", "asks")
    eventually(lambda: [one["metadata"]["name"] for one in cluster.get(
        "-n", "driven", "resourceclaims")["items"]] == ["mine"])
    eventually(lambda: "pending" in cluster.kubectl("-n", "driven", "get", "resourceclaim", "mine"))
    cluster.kubectl("delete", "namespace", "driven")
    cluster.kubectl("delete", "deviceclass/gpu", "resourceslice/lab-1-gpus")
