"""Scheduling on a real cluster: preemption over a resource that somebody advertises, what-if, and the nearest miss."""

import json

import pytest

from tests.client.cluster import eventually

pytestmark = pytest.mark.client
RESOURCE, SPACE = "example.com/seats", "seats"


def pod(name, seats, priority):
    amounts = {RESOURCE: str(seats)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SPACE},
            "spec": {"priorityClassName": priority, "terminationGracePeriodSeconds": 0,
                     "containers": [{"name": "c", "image": "pelamis.local/pause:1",
                                     "resources": {"requests": amounts, "limits": amounts}}]}}


def advertise(cluster, seats):
    change = {"status": {field: {RESOURCE: seats} for field in ("capacity", "allocatable")}}
    cluster.kubectl("patch", "node", "lab-1", "--subresource=status", "--type=merge", "-p", json.dumps(change))


def running(cluster, name):
    return cluster.kubectl("get", "pod", name, "-n", SPACE, "-o", "jsonpath={.status.phase}") == "Running"


def test_important_pods_take_seats_and_whatif_knew_it(cluster, tmp_path):
    cluster.kubectl("create", "namespace", SPACE)
    advertise(cluster, "5")
    for name, value in (("seats-low", 1), ("seats-middle", 10), ("seats-high", 100)):
        cluster.kubectl("create", "priorityclass", name, f"--value={value}")
    try:
        for one in (pod("meek", 2, "seats-low"), pod("modest", 3, "seats-middle")):
            cluster.kubectl("apply", "-f", "-", input=json.dumps(one))
        eventually(lambda: running(cluster, "meek") and running(cluster, "modest"))
        file = tmp_path / "grand.json"
        file.write_text(json.dumps(pod("grand", 2, "seats-high")))
        answer = json.loads(cluster.pelamis("whatif", "-f", str(file), "-o", "json").stdout)["pods"][0]
        assert (answer["node"], answer["preempts"]) == ("lab-1", [f"{SPACE}/meek"])
        cluster.kubectl("apply", "-f", str(file))
        eventually(lambda: running(cluster, "grand"))
        assert "meek" not in cluster.kubectl("get", "pods", "-n", SPACE, "-o", "name")
        assert running(cluster, "modest")
        cluster.kubectl("apply", "-f", "-", input=json.dumps(pod("late", 2, "seats-low")))
        done = eventually(lambda: cluster.pelamis("why", "po/late", "-n", SPACE, check=False).stdout)
        eventually(lambda: f"node lab-1 lacks 2 {RESOURCE}" in cluster.pelamis(
            "why", "po/late", "-n", SPACE, check=False).stdout)
        assert "fits on no node" in done or "no scheduler has looked" in done
    finally:
        advertise(cluster, None)
        cluster.kubectl("delete", "priorityclass", "seats-low", "seats-middle", "seats-high")
        cluster.kubectl("delete", "namespace", SPACE, "--wait=false")
