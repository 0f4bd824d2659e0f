"""A device plugin on a node of a whole cluster: its devices are counted, scheduled by and handed in."""

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
