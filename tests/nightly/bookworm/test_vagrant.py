"""The Vagrant lab, really made: a cluster for the host's kubectl that survives a reboot and a power cut of a machine.

The tests are in the order of a person's day, the last takes the lab away.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from agent.image import demo
from tests.client.cluster import eventually
from tests.client.fresh import CHECKOUT
from tests.nightly.lab import NETWORK, Lab

pytestmark = pytest.mark.host
POOL = f"{NETWORK}.200"
PATIENCE = 600.0  # seconds: emulated machines on a busy host
WORKLOAD = json.dumps({"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load-balancer-pools", "namespace": "kube-system"},
     "data": {"lab": POOL}},
    {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "web", "image": demo.DEMO, "imagePullPolicy": "IfNotPresent"}]}}}},
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80}]}}]})


def everything_is_ready(lab: Lab) -> bool:
    """All nodes, and a pod of the workload on each."""
    nodes = [line.split()[:2] for line in lab.kubectl("get", "nodes", "--no-headers").splitlines()]
    assert sorted(nodes) == sorted([name, "Ready"] for name in lab.names), nodes
    status = lab.get("daemonset", "web")["status"]
    assert status.get("numberReady", 0) == len(lab.names), status
    return True


def answers_everywhere(lab: Lab) -> bool:
    """Its cluster IP on each node, its balanced address on the host."""
    address = lab.get("service", "web")["spec"]["clusterIP"]
    for name in lab.names:
        lab.ssh(name, f"curl -sf -m 20 http://{address}/")
    lab.hypervisor.run("curl", "-sf", "-m", "20", f"http://{POOL}/")
    return True


def boot_of(lab: Lab, name: str) -> str:
    return lab.ssh(name, "cat /proc/sys/kernel/random/boot_id").stdout


def starts_anew(lab: Lab, name: str, before: str) -> None:
    """Wait until the machine runs in another boot than `before`, and all is well again."""
    eventually(lambda: boot_of(lab, name) != before, PATIENCE)
    eventually(lambda: everything_is_ready(lab), PATIENCE)
    eventually(lambda: answers_everywhere(lab), PATIENCE)


def test_the_vagrantfile_is_valid():
    if shutil.which("vagrant") is None:
        pytest.skip("needs vagrant: apt-get install vagrant")
    done = subprocess.run(["vagrant", "validate", "--ignore-provider"], cwd=CHECKOUT / "vagrant", capture_output=True,
                          text=True, timeout=120)
    assert "validated successfully" in done.stdout, done.stdout + done.stderr


def test_a_workload_answers_on_every_node_and_on_the_host(lab: Lab):
    assert f"export KUBECONFIG={lab.folder}/kubeconfig" in lab.said
    lab.kubectl("apply", "-f", "-", input=WORKLOAD)
    eventually(lambda: everything_is_ready(lab), PATIENCE)
    eventually(lambda: answers_everywhere(lab), PATIENCE)
    for name in lab.names:
        found = lab.ssh(name, "sudo pelamis doctor", check=False)
        assert found.returncode == 0, found.stdout + found.stderr
        assert lab.ssh(name, "systemctl list-units --failed --no-legend 'pelamis*'").stdout == ""


def test_a_reboot(lab: Lab):
    name = lab.names[-1]
    before = boot_of(lab, name)
    lab.ssh(name, "sudo systemctl reboot", check=False)
    starts_anew(lab, name, before)


def test_a_power_cut_of_the_server_loses_nothing(lab: Lab):
    name = lab.names[0]
    before = boot_of(lab, name)
    lab.kubectl("create", "configmap", "written-last")
    lab.virsh("destroy", name)
    lab.virsh("start", name)
    starts_anew(lab, name, before)
    assert lab.get("configmap", "written-last")["metadata"]["name"] == "written-last"
    assert lab.ssh(name, "sudo pelamis store check", check=False).returncode == 0


def test_destroy_leaves_nothing(lab: Lab):
    lab.vagrant("destroy", "-f")
    assert lab.hypervisor.run("virsh", "list", "--all", "--name").stdout.strip() == ""
    volumes = lab.hypervisor.run("virsh", "vol-list", "default").stdout
    assert not [name for name in lab.names if name in volumes], volumes
    assert lab.hypervisor.run("virsh", "net-list", "--all", "--name").stdout.strip() == ""
    assert not (lab.folder / "kubeconfig").exists()
