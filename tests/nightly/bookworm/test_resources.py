"""Resources of containers on real machines with cgroup v2 alone, under systemd: limits, out of memory, resize."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.image import demo
from tests.client.cluster import eventually
from tests.nightly.lab import Lab

pytestmark = pytest.mark.host
PATIENCE = 600.0  # seconds: emulated machines on a busy host
MEBIBYTE = 1 << 20


def pod(name: str, node: str, *command: str) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": demo.DEMO, "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/busybox", *command],
            "resources": {"requests": {"cpu": "100m", "memory": "32Mi"},
                          "limits": {"cpu": "250m", "memory": "48Mi"}}}]}})


def main_of(lab: Lab, name: str) -> Any:
    """The status of the pod's container."""
    return lab.get("pod", name)["status"]["containerStatuses"][0]


def setting(lab: Lab, name: str, file: str) -> str:
    """A file of the running container's control group, as its node has it."""
    found = lab.get("pod", name)
    scope = "cri-containerd-" + found["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2] + ".scope"
    groups = f"'(' -name {scope} -o -path '*/{scope}/container' ')'"  # crun makes one in the scope
    return lab.ssh(found["spec"]["nodeName"],
                   f"cat $(find /sys/fs/cgroup/kubepods.slice -type d {groups} | tail -n 1)/{file}").stdout.strip()


def test_the_machines_have_cgroup_v2_alone(lab: Lab):
    for name in lab.names:
        assert lab.ssh(name, "stat -fc %T /sys/fs/cgroup").stdout.strip() == "cgroup2fs"


def test_limits_hold_and_are_resized_while_running(lab: Lab):
    lab.kubectl("apply", "-f", "-", input=pod("sized", lab.names[1], "sh", "-c", "while :; do :; done"))
    try:
        eventually(lambda: main_of(lab, "sized")["state"].get("running"), PATIENCE)
        assert setting(lab, "sized", "memory.max") == str(48 * MEBIBYTE)
        assert setting(lab, "sized", "cpu.max") == "25000 100000"

        def throttled() -> bool:
            counted = dict(line.split() for line in setting(lab, "sized", "cpu.stat").splitlines())
            return int(counted["nr_throttled"]) > 0
        eventually(throttled, PATIENCE)
        before = main_of(lab, "sized")
        lab.kubectl("patch", "pod", "sized", "--subresource=resize", "--patch", json.dumps({"spec": {"containers": [{
            "name": "main", "resources": {"limits": {"cpu": "500m", "memory": "80Mi"}}}]}}))
        eventually(lambda: setting(lab, "sized", "memory.max") == str(80 * MEBIBYTE), PATIENCE)
        eventually(lambda: setting(lab, "sized", "cpu.max") == "50000 100000", PATIENCE)
        eventually(lambda: main_of(lab, "sized")["resources"]["limits"] == {"cpu": "500m", "memory": "80Mi"}, PATIENCE)
        after = main_of(lab, "sized")
        assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    finally:
        lab.kubectl("delete", "pod", "sized", "--ignore-not-found")


def test_who_takes_too_much_memory_is_ended_alone(lab: Lab):
    lab.kubectl("apply", "-f", "-", input=pod("greedy", lab.names[1], "sh", "-c",
                                              "x=a; while :; do x=$x$x; done"))
    try:
        def ended() -> bool:
            status = main_of(lab, "greedy")
            last = status["lastState"].get("terminated") or status["state"].get("terminated") or {}
            assert (last.get("reason"), last.get("exitCode")) == ("OOMKilled", 137), status
            return True
        eventually(ended, PATIENCE)
        node = next(one for one in lab.get("nodes")["items"] if one["metadata"]["name"] == lab.names[1])
        conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert (conditions["Ready"], conditions["MemoryPressure"]) == ("True", "False")
    finally:
        lab.kubectl("delete", "pod", "greedy", "--ignore-not-found")
