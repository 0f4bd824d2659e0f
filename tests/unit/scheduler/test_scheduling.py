"""The scheduler at a real API server: bindings, preemption, gates, groups, volumes, and what it tells."""

import asyncio
from contextlib import asynccontextmanager

from controlplane.client.config import ClientConfig
from controlplane.client.events import Recorder
from controlplane.client.informer import Informers
from controlplane.client.rest import Client
from controlplane.machinery import objects
from controlplane.machinery.resources import named
from controlplane.scheduler import gangs
from controlplane.scheduler.loop import Scheduler
from controlplane.scheduler.world import World
from controlplane.store.cache import key_of
from tests.unit.apiserver.harness import serving

PODS, NODES, CLAIMS = named("pods"), named("nodes"), named("persistentvolumeclaims")
SECONDS = 60.0  # only a failing wait, or a very busy machine, needs it


class Bench:
    def __init__(self, client, informers):
        self.client, self.informers = client, informers
        self.changed = asyncio.Event()
        for informer in informers:
            informer.subscribe(lambda *_: self.changed.set())
        self.pods = informers.of(PODS)

    async def until(self, condition):
        async with asyncio.timeout(SECONDS):
            while not (found := condition()):
                self.changed.clear()
                await self.changed.wait()
            return found

    async def node(self, name, cpu="2", labels=None):
        status = {r: {"cpu": cpu, "memory": "4Gi", "pods": "20"} for r in ("capacity", "allocatable")}
        await self.client.create(NODES, {"metadata": {"name": name, "labels": labels or {}}, "status": status})
        node = await self.client.get(NODES, name)
        await self.client.update(NODES, {**node, "spec": {"taints": []}})

    async def pod(self, name, cpu="100m", labels=None, **spec):
        return await self.client.create(PODS, {
            "metadata": {"name": name, "namespace": "default", "labels": labels or {}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}], **spec}})

    def at(self, name):
        return objects.get(self.pods.get("default", name) or {}, "spec.nodeName", "")

    def reason(self, name):
        return (objects.condition(self.pods.get("default", name) or {}, "PodScheduled") or {}).get("reason", "")

    def message(self, name):
        return (objects.condition(self.pods.get("default", name) or {}, "PodScheduled") or {}).get("message", "")


@asynccontextmanager
async def bench():
    async with serving() as api, Client(ClientConfig(server=api.url)) as client:
        informers = Informers(client)
        recorder = Recorder(client, "default-scheduler")
        scheduler = Scheduler(client, informers.of(PODS), informers.of(NODES), World(informers), recorder)
        tasks = [asyncio.create_task(work()) for work in (informers.run, recorder.run, scheduler.run)]
        try:
            async with asyncio.timeout(SECONDS):
                await informers.synced()
            await client.create(named("serviceaccounts"), {"metadata": {"name": "default", "namespace": "default"}})
            made = Bench(client, informers)
            made.recorder, made.api = recorder, api
            yield made
            for task in tasks:
                if task.done():
                    await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def test_a_pod_without_room_says_what_would_help_and_is_placed_when_there_is_room():
    async def run():
        async with bench() as made:
            await made.node("n1")
            await made.pod("small")
            await made.until(lambda: made.at("small"))
            await made.pod("big", cpu="4")
            await made.until(lambda: made.reason("big") == "Unschedulable")
            assert made.message("big") == (
                "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not "
                "helpful for scheduling. Nearest miss: node n1 lacks 2100m cpu; request at most 1900m cpu, or free as "
                "much there.")
            await made.node("n2", cpu="8")
            assert await made.until(lambda: made.at("big")) == "n2"
    asyncio.run(run())


def test_a_pod_whose_devices_cannot_be_read_holds_up_nobody():
    async def run():
        async with bench() as made:
            await made.node("n1")
            slices, claims = named("resourceslices.resource.k8s.io"), named("resourceclaims.resource.k8s.io")
            odd = {"apiVersion": slices.api_version, "kind": "ResourceSlice", "metadata": {"name": "odd", "uid": "odd"}}
            await made.api.server.cache.write(key_of(slices.name, "", "odd"), odd, 0)  # nobody could by the API
            await made.client.create(named("deviceclasses.resource.k8s.io"), {"metadata": {"name": "gpu"}, "spec": {}})
            await made.client.create(claims, {"metadata": {"name": "c", "namespace": "default"}, "spec": {"devices": {
                "requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}})
            await made.pod("first", resourceClaims=[{"name": "c", "resourceClaimName": "c"}])
            await made.until(lambda: "cannot be read: KeyError('spec')" in made.message("first"))
            await made.pod("second")
            await made.until(lambda: made.at("second") == "n1")
            await made.client.delete(slices, "odd")
            await made.until(lambda: "cannot allocate all claims" in made.message("first"))
    asyncio.run(run())


def test_a_more_important_pod_takes_the_place_of_the_least_important():
    async def run():
        async with bench() as made:
            await made.node("n1")
            classes = named("priorityclasses.scheduling.k8s.io")
            for name, value in (("low", 1), ("middle", 10), ("high", 100)):
                await made.client.create(classes, {"metadata": {"name": name}, "value": value})
            await made.pod("a", cpu="1", priorityClassName="low")
            await made.pod("b", cpu="900m", priorityClassName="middle")
            await made.until(lambda: made.at("a") and made.at("b"))
            kept = await made.client.get(PODS, "a", "default")
            await made.client.update(PODS, {**kept, "metadata": {**kept["metadata"], "finalizers": ["x.io/keep"]}})
            await made.client.create(classes, {"metadata": {"name": "meek"}, "value": 50, "preemptionPolicy": "Never"})
            await made.pod("meek", cpu="1", priorityClassName="meek")
            await made.until(lambda: "preemptionPolicy=Never" in made.message("meek"))
            await made.client.delete(PODS, "meek", "default")
            preemptor = await made.pod("c", cpu="1", priorityClassName="high")
            await made.until(lambda: objects.deleting(made.pods.get("default", "a")))
            condition = objects.condition(made.pods.get("default", "a"), "DisruptionTarget")
            assert (condition["status"], condition["reason"]) == ("True", "PreemptionByScheduler")
            await made.until(lambda: objects.get(made.pods.get("default", "c"), "status.nominatedNodeName") == "n1")
            await made.pod("thief", cpu="1")
            await made.until(lambda: made.reason("thief"))
            await made.client.patch(PODS, "a", {"metadata": {"finalizers": None}}, "default", "merge")
            await made.client.delete(PODS, "a", "default", grace=0)
            await made.until(lambda: made.at("c"))
            assert made.at("b") and not made.at("thief"), "room promised to a pod is left to it"
            await made.recorder.drained()
            told, _ = await made.client.list(named("events"), "default")
            assert f"Preempted by pod {objects.uid(preemptor)} on node n1" in [e["message"] for e in told]
    asyncio.run(run())


def test_gates_hold_and_groups_start_together():
    async def run():
        async with bench() as made:
            await made.node("n1")
            await made.pod("gated", schedulingGates=[{"name": "x.io/wait"}])
            labels = {gangs.NAME: "g", gangs.LEAST: "3"}
            await made.pod("g1", cpu="900m", labels=labels)
            await made.until(lambda: "has 1 of the 3" in made.message("g1"))
            await made.pod("g2", cpu="900m", labels=labels)
            await made.pod("g3", cpu="900m", labels=labels)
            await made.until(lambda: "only 2 of the 3" in made.message("g3"))
            assert not made.at("g1") and not made.at("g2")
            await made.node("n2")
            await made.until(lambda: all(made.at(name) for name in ("g1", "g2", "g3")))
            assert made.reason("gated") == "SchedulingGated"
            await made.client.patch(PODS, "gated", {"spec": {"schedulingGates": None}}, "default", "merge")
            await made.until(lambda: made.at("gated"))
    asyncio.run(run())


def test_a_claim_that_waits_gets_the_volume_its_pod_can_reach():
    async def run():
        async with bench() as made:
            await made.node("n1", labels={"disk": "a"})
            await made.node("n2", labels={"disk": "b"})
            await made.client.create(named("storageclasses.storage.k8s.io"), {
                "metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
                "volumeBindingMode": "WaitForFirstConsumer"})
            volumes = named("persistentvolumes")
            await made.client.create(volumes, {"metadata": {"name": "v"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"], "storageClassName": "local",
                "local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["b"]}]}]}}}})
            await made.client.patch(volumes, "v", {"status": {"phase": "Available"}}, kind="merge",
                                    subresource="status")
            pod = {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}
            await made.pod("p", **pod)
            await made.pod("q", **pod)
            await made.until(lambda: 'persistentvolumeclaim "c" not found' in made.message("p"))
            await made.client.create(CLAIMS, {"metadata": {"name": "c", "namespace": "default"}, "spec": {
                "accessModes": ["ReadWriteOncePod"], "storageClassName": "local",
                "resources": {"requests": {"storage": "1Gi"}}}})
            volume = made.informers.of(volumes)
            await made.until(lambda: objects.get(volume.get("", "v"), "spec.claimRef.name", "") == "c")
            assert not made.at("p")
            await made.client.patch(CLAIMS, "c", {
                "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "v"}},
                "default", "merge")
            first = await made.until(lambda: next((name for name in "pq" if made.at(name)), ""))
            other = "q" if first == "p" else "p"
            assert made.at(first) == "n2"
            await made.until(lambda: "ReadWriteOncePod access mode" in made.message(other))
            await made.client.delete(PODS, first, "default", grace=0)
            assert await made.until(lambda: made.at(other)) == "n2"
    asyncio.run(run())
