"""DaemonSets, StatefulSets, Jobs and CronJobs against the real API server: what users see of them."""

import asyncio

import pytest

from controlplane.controllers.workloads import history
from controlplane.machinery import objects
from controlplane.machinery.resources import BUILTIN, named
from tests.unit.controllers.cluster import PODS, cluster

SERVED = {resource.name for resource in BUILTIN}


def needs(*names):
    return pytest.mark.skipif(not SERVED.issuperset(names), reason=f"{names} are not served")


def workload(kind, name, api="apps/v1", **spec):
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": name}}, **spec,
                     "template": {"metadata": {"labels": {"app": name}},
                                  "spec": {"containers": [{"name": "c", "image": "web:1"}]}}}}


def image(text):
    return {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": text}]}}}}


def node(name):
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"disk": "ssd"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def alive(c):
    return [pod for pod in c.pods.items() if not objects.deleting(pod)]


def seen(c, name, key, **fields):
    """Whether the object's status says `fields`, of its present generation; the object."""
    def check():
        one = c.of(name).get("default", key)
        status = (one or {}).get("status") or {}
        return one if one and status.get("observedGeneration", 1) >= one["metadata"].get("generation", 1) and all(
            status.get(field, 0) == value for field, value in fields.items()) else None
    return check


@needs("daemonsets.apps", "controllerrevisions.apps")
def test_daemonset_follows_nodes_and_template():
    async def main():
        async with cluster() as c:
            daemonsets = named("daemonsets.apps")
            for name in "ab":
                await c.client.create(named("nodes"), node(name))
            await c.client.create(daemonsets, workload("DaemonSet", "d"))
            await c.until(seen(c, "daemonsets.apps", "d", numberAvailable=2, desiredNumberScheduled=2))
            await c.client.create(named("nodes"), node("c"))
            await c.until(seen(c, "daemonsets.apps", "d", numberAvailable=3, updatedNumberScheduled=3))
            (first,) = c.of("controllerrevisions.apps").items()
            await c.client.patch(daemonsets, "d", image("web:2"), "default")
            await c.until(seen(c, "daemonsets.apps", "d", numberAvailable=3, updatedNumberScheduled=3))
            assert {p["spec"]["containers"][0]["image"] for p in alive(c)} == {"web:2"}
            assert sorted(history.number(one) for one in c.of("controllerrevisions.apps").items()) == [1, 2]
            await c.client.patch(daemonsets, "d", first["data"], "default")  # as kubectl rollout undo does
            await c.until(seen(c, "daemonsets.apps", "d", numberAvailable=3, updatedNumberScheduled=3))
            await c.until(lambda: history.number(
                c.of("controllerrevisions.apps").get("default", objects.name(first))) == 3)
            await c.client.patch(named("nodes"), "c", {"metadata": {"labels": {"disk": "tape"}}})
            await c.client.patch(daemonsets, "d", {"spec": {"template": {"spec": {
                "nodeSelector": {"disk": "ssd"}}}}}, "default")
            await c.until(seen(c, "daemonsets.apps", "d", numberAvailable=2, desiredNumberScheduled=2,
                               updatedNumberScheduled=2))
            await c.until(lambda: len(c.pods) == 2)
            await c.client.delete(daemonsets, "d", "default")
            await c.until(lambda: not len(c.pods) and not c.of("controllerrevisions.apps").items())
    asyncio.run(main())


def job(name, labels=None, **spec):
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"job": name}}, "manualSelector": True, **spec,
                     "template": {"metadata": {"labels": {"job": name}}, "spec": {
                         "restartPolicy": "Never", "containers": [{"name": "c", "image": "web:1"}]}}}}


async def end(c, pod, phase, code=0):
    ended = {"name": "c", "image": "web:1", "imageID": "", "ready": False, "restartCount": 0,
             "state": {"terminated": {"exitCode": code, "finishedAt": c.client.clock.timestamp()}}}
    await c.client.patch(PODS, objects.name(pod), {"status": {"phase": phase, "containerStatuses": [ended]}},
                         "default", "merge", "status")


def running(c):
    return [pod for pod in alive(c) if objects.get(pod, "status.phase") in ("Pending", "Running")]


@needs("jobs.batch")
def test_job_counts_its_pods_and_lets_them_go():
    async def main():
        async with cluster(kubelet=False) as c:
            await c.client.create(named("jobs.batch"), job("j", completions=3, parallelism=2, completionMode="Indexed",
                                                           ttlSecondsAfterFinished=1))
            for _ in range(3):
                (pod, *_) = await c.until(lambda: running(c))
                await end(c, pod, "Succeeded")
                await c.until(lambda pod=pod: objects.name(pod) not in map(objects.name, running(c)))
            one = await c.until(lambda: (j := c.of("jobs.batch").get("default", "j")) and j["status"].get(
                "completionTime") and j)
            assert one["status"]["succeeded"] == 3 and one["status"]["completedIndexes"] == "0-2"
            assert all(not pod["metadata"].get("finalizers") for pod in c.pods.items())
            await c.until(lambda: not c.of("jobs.batch").items() and not len(c.pods))
    asyncio.run(main())


@needs("jobs.batch")
def test_job_deleted_in_the_middle_leaves_nothing():
    async def main():
        async with cluster() as c:
            for propagation in ("Background", "Foreground"):
                await c.client.create(named("jobs.batch"), job("j", completions=3, parallelism=3))
                await c.until(lambda: len(running(c)) == 3)
                await c.client.delete(named("jobs.batch"), "j", "default", propagation=propagation)
                await c.until(lambda: not len(c.pods) and not c.of("jobs.batch").items())
    asyncio.run(main())


@needs("jobs.batch", "cronjobs.batch")
def test_cronjob_starts_jobs_on_time():
    async def main():
        async with cluster() as c:
            template = job("ignored")
            await c.client.create(named("cronjobs.batch"), {
                "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c", "namespace": "default"},
                "spec": {"schedule": "@every 1s", "concurrencyPolicy": "Replace", "jobTemplate": {
                    "spec": {"template": template["spec"]["template"], "completions": 1}}}})
            one = await c.until(lambda: (j := c.of("cronjobs.batch").get("default", "c")) and j.get("status", {}).get(
                "active") and j)
            (made,) = c.of("jobs.batch").by("controller", objects.uid(one))
            assert one["status"]["active"][0]["name"] == objects.name(made) and one["status"]["lastScheduleTime"]
            await c.client.patch(named("cronjobs.batch"), "c", {"spec": {"suspend": True}}, "default")
            await c.client.delete(named("cronjobs.batch"), "c", "default")
            await c.until(lambda: not c.of("jobs.batch").items() and not len(c.pods))
    asyncio.run(main())


@needs("statefulsets.apps", "controllerrevisions.apps", "persistentvolumeclaims")
def test_statefulset_keeps_names_and_claims():
    async def main():
        async with cluster() as c:
            sets, claims = named("statefulsets.apps"), c.of("persistentvolumeclaims")
            await c.client.create(sets, workload(
                "StatefulSet", "web", serviceName="web", replicas=2,
                persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete", "whenScaled": "Delete"},
                volumeClaimTemplates=[{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]))
            await c.until(seen(c, "statefulsets.apps", "web", availableReplicas=2, updatedReplicas=2))
            assert {objects.name(p) for p in c.pods.items()} == {"web-0", "web-1"}
            await c.until(lambda: {(objects.name(one), ref["kind"]) for one in claims.items()
                                   for ref in one["metadata"].get("ownerReferences", ())}
                          == {("data-web-0", "StatefulSet"), ("data-web-1", "StatefulSet")})
            first = objects.get(c.of("statefulsets.apps").get("default", "web"), "status.currentRevision")
            await c.client.patch(sets, "web", image("web:2"), "default")
            one = await c.until(seen(c, "statefulsets.apps", "web", availableReplicas=2, updatedReplicas=2,
                                     currentReplicas=2))
            assert one["status"]["currentRevision"] == one["status"]["updateRevision"] != first
            assert {p["spec"]["containers"][0]["image"] for p in c.pods.items()} == {"web:2"}
            await c.client.patch(sets, "web", {"spec": {"replicas": 1}}, "default", "merge", "scale")
            await c.until(lambda: len(c.pods) == 1 and [objects.name(one) for one in claims.items()] == ["data-web-0"])
            await c.client.delete(sets, "web", "default")
            await c.until(lambda: not len(c.pods) and not claims.items())
    asyncio.run(main())
