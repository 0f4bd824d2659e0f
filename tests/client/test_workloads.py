"""Workloads as users run them: claims that are filled out of the box, rollouts back and forth, budgets and jobs."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

import pytest

from agent.image import demo
from tests.client.cluster import eventually

pytestmark = pytest.mark.client


@contextmanager
def space(cluster: Any, name: str):
    """A namespace of the test's own."""
    cluster.kubectl("create", "namespace", name)
    try:
        eventually(lambda: cluster.get("-n", name, "serviceaccount", "default"))
        yield lambda *arguments, **more: cluster.kubectl("-n", name, *arguments, **more)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def workload(kind: str, name: str, command: str, pod: dict[str, Any] | None = None,
             container: dict[str, Any] | None = None, **spec: Any) -> str:
    """A manifest; `pod` and `container` go into the template, `spec` beside it."""
    main = {"name": "c", "image": demo.BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {
        "terminationGracePeriodSeconds": 0, **(pod or {}), "containers": [{**main, **(container or {})}]}}
    batch = kind == "Job"
    selector = {} if batch else {"selector": {"matchLabels": {"app": name}}}
    return json.dumps({"apiVersion": "batch/v1" if batch else "apps/v1", "kind": kind, "metadata": {"name": name},
                       "spec": {**selector, **spec, "template": template}})


def test_a_statefulset_keeps_its_data(cluster):
    with space(cluster, "stateful") as k:
        claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                                                        "resources": {"requests": {"storage": "1Mi"}}}}
        k("apply", "-f", "-", input=workload(
            "StatefulSet", "db", "hostname >> /data/log; exec sleep 100000",
            {"securityContext": {"runAsUser": 1000, "runAsGroup": 1000}},
            {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}, serviceName="db", replicas=2,
            volumeClaimTemplates=[claim],
            persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete", "whenScaled": "Retain"}))
        k("rollout", "status", "statefulset/db", "--timeout=60s")
        k("delete", "pod", "db-0")
        k("rollout", "status", "statefulset/db", "--timeout=60s")
        eventually(lambda: k("exec", "db-0", "--", "cat", "/data/log") == "db-0\ndb-0\n")
        volumes = [item["spec"]["volumeName"] for item in json.loads(k("get", "pvc", "-o", "json"))["items"]]
        folders = [cluster.host.paths.volumes / name for name in volumes]
        assert len(folders) == 2 and all(folder.is_dir() for folder in folders)
        k("delete", "statefulset", "db")  # its claims go by the policy, their volumes and folders with them
        eventually(lambda: not any(folder.exists() for folder in folders))
        assert not [item for item in cluster.get("pv")["items"] if item["metadata"]["name"] in volumes]


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet", "StatefulSet"])
def test_rollouts_go_back_and_forth(cluster, kind):
    name = f"{kind.lower()}/r"
    with space(cluster, f"rollout-{kind.lower()}") as k:
        more = {} if kind == "DaemonSet" else {"replicas": 2}
        k("apply", "-f", "-", input=workload(kind, "r", "exec sleep 100000", **more,
                                             **({"serviceName": "r"} if kind == "StatefulSet" else {})))

        def settled():
            k("rollout", "status", name, "--timeout=60s")
            pods = json.loads(k("get", "pods", "-l", "app=r", "-o", "json"))["items"]
            return {entry.get("value") for pod in pods if "deletionTimestamp" not in pod["metadata"]
                    for entry in pod["spec"]["containers"][0].get("env", [{}])}
        assert settled() == {None}
        k("set", "env", name, "A=1")
        assert settled() == {"1"}
        k("rollout", "undo", name)
        assert settled() == {None}
        k("rollout", "undo", name, "--to-revision=2")
        assert settled() == {"1"}
        history = k("rollout", "history", name).split()
        assert history[-4::2] == ["3", "4"]


def test_a_budget_holds_evictions_and_jobs_count_exactly(cluster):
    with space(cluster, "budget") as k:
        k("apply", "-f", "-", input=workload("Deployment", "web", "exec sleep 100000", replicas=2))
        k("rollout", "status", "deployment/web", "--timeout=60s")
        k("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
        eventually(lambda: json.loads(k("get", "pdb", "web", "-o", "json"))["status"].get("currentHealthy") == 2)
        pod = json.loads(k("get", "pods", "-o", "json"))["items"][0]["metadata"]["name"]
        eviction = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}})
        path = f"/api/v1/namespaces/budget/pods/{pod}/eviction"
        refused = cluster.fails("create", "--raw", path, "-f", "-", input=eviction)
        assert "disruption budget" in refused
        k("scale", "deployment/web", "--replicas=3")
        eventually(lambda: json.loads(k("get", "pdb", "web", "-o", "json"))["status"]["disruptionsAllowed"] == 1)
        k("create", "--raw", path, "-f", "-", input=eviction)
        k("apply", "-f", "-", input=workload(
            "Job", "j", "test $JOB_COMPLETION_INDEX != 1", {"restartPolicy": "Never"}, completions=3, parallelism=3,
            completionMode="Indexed", backoffLimitPerIndex=0))
        k("wait", "--for=condition=Failed", "job/j", "--timeout=60s")
        status = json.loads(k("get", "job", "j", "-o", "json"))["status"]
        assert (status["completedIndexes"], status["failedIndexes"], status["succeeded"], status["failed"]) == (
            "0,2", "1", 2, 1)
