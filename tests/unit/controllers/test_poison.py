"""Objects nobody could have written through the API, straight in the store: no controller stops for the others."""

import asyncio

import pytest

from controlplane.client.config import ClientConfig
from controlplane.client.events import Recorder
from controlplane.client.informer import Informer, Informers
from controlplane.client.rest import Client
from controlplane.controllers.manager import Manager, Settings
from controlplane.controllers.runtime import NODES, PODS, keep_for
from controlplane.machinery import objects
from controlplane.machinery.resources import BUILTIN, named
from controlplane.scheduler.loop import Scheduler
from controlplane.scheduler.world import World
from controlplane.store.cache import key_of
from tests.unit.apiserver.harness import serving
from tests.unit.controllers.cluster import Cluster, deployment
from tests.unit.controllers.samples import service
from tests.unit.controllers.test_workloads import node, workload

SPARED = {"namespaces", "serviceaccounts", "events", "leases.coordination.k8s.io"}  # what the test itself stands on
POISONS = {
    "bare": {},
    "empty": {"spec": {}, "status": {}},
    "null": {"spec": None, "status": None, "data": None, "webhooks": None, "rules": None, "subsets": [{}]},
    "odd": {"spec": {"selector": {"matchExpressions": [{"key": "a", "operator": "Bogus"}]}, "replicas": 2,
                     "template": {"spec": {"containers": [{}]}}, "nodeName": "gone", "containers": [{}],
                     "volumes": [{"name": "v", "persistentVolumeClaim": {}}], "schedule": "no", "minAvailable": "x%",
                     "claimRef": {}, "capacity": {"storage": "much"}, "taints": [{}], "podCIDR": "no"},
            "status": {"conditions": [{}, {"type": "Ready"}], "phase": "Odd", "disruptedPods": {"p": "then"},
                       "containerStatuses": [{}]}},
}


def poisoned(resource, name, body):
    owners = [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "another", "controller": True},
              {"apiVersion": "no/v1", "kind": "Thing"}]
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": {
        "name": f"poison-{name}", "uid": f"{name}-{resource.name}", "labels": {"app": "web"},
        "annotations": {"deployment.kubernetes.io/revision": "x"}, "ownerReferences": owners,
        "creationTimestamp": "2026-01-01T00:00:00Z", **({"namespace": "default"} if resource.namespaced else {})}}


async def poisoned_store(api, poison):
    for resource in {resource.name: resource for resource in BUILTIN}.values():
        if "watch" in resource.verbs and resource.name not in SPARED:
            obj = poisoned(resource, poison, POISONS[poison])
            space = "default" if resource.namespaced else ""
            await api.server.cache.write(key_of(resource.name, space, objects.name(obj)), obj, 0)


@pytest.mark.parametrize("poison", POISONS)
def test_other_objects_are_served(poison):
    async def play():
        async with serving() as api, Client(ClientConfig(server=api.url)) as client:
            await poisoned_store(api, poison)
            manager = Manager(client, Settings(root_ca="PEM"))
            ready = asyncio.Event()
            tasks = [asyncio.create_task(manager.follow(ready.set))]
            async with asyncio.timeout(15):
                await ready.wait()
            made = Cluster(client, manager)
            tasks += [asyncio.create_task(manager.work()), asyncio.create_task(made.run_pods())]
            try:
                await check(made)
                assert not [task for task in tasks if task.done()]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.run(play())


async def check(made):
    """Every kind of workload, its endpoints, its budget and its end."""
    def status(name, key, field, value):
        return lambda: objects.get(made.of(name).get("default", key) or {}, f"status.{field}") == value
    client = made.client
    await made.until(lambda: made.of("serviceaccounts").get("default", "default"))
    await client.create(named("nodes"), node("n"))
    await client.create(named("deployments.apps"), deployment("web", 2))
    await client.create(named("services"), {**service("web"), "spec": {"selector": {"app": "web"}, "ports": [
        {"port": 80}]}})
    await client.create(named("daemonsets.apps"), workload("DaemonSet", "d"))
    await client.create(named("statefulsets.apps"), workload("StatefulSet", "s", replicas=1, serviceName="s"))
    await client.create(named("poddisruptionbudgets.policy"), {"metadata": {"name": "b", "namespace": "default"},
                                                               "spec": {"minAvailable": 1, "selector": {
                                                                   "matchLabels": {"app": "d"}}}})
    await client.create(named("resourcequotas"), {"metadata": {"name": "q", "namespace": "default"}, "spec": {
        "hard": {"pods": "50", "requests.storage": "1Ti", "services": "9"}}})
    await client.create(named("persistentvolumeclaims"), {"metadata": {"name": "c", "namespace": "default"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}})
    await made.until(status("deployments.apps", "web", "availableReplicas", 2))
    await made.until(status("daemonsets.apps", "d", "numberAvailable", 1))
    await made.until(status("statefulsets.apps", "s", "readyReplicas", 1))
    await made.until(status("persistentvolumeclaims", "c", "phase", "Pending"))
    await made.until(lambda: objects.get(made.of("resourcequotas").get("default", "q") or {}, "status.used.services"))
    await made.until(status("poddisruptionbudgets.policy", "b", "observedGeneration", 1))
    await made.until(lambda: [one for one in made.of("endpointslices.discovery.k8s.io").items() if objects.labels(
        one).get("kubernetes.io/service-name") == "web" and len(one.get("endpoints") or ()) == 2])
    await made.until(lambda: objects.get(made.of("nodes").get("", "n"), "spec.podCIDR"))
    await client.delete(named("deployments.apps"), "web", "default")
    await made.until(lambda: not [pod for pod in made.pods.items() if objects.name(pod).startswith("web-")])


@pytest.mark.parametrize("poison", POISONS)
def test_other_pods_are_scheduled(poison):
    """One that asks for as much as can be asked for, and one beside it."""
    wants = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}], "containers": [
        {"name": "c", "image": "i", "resources": {"limits": {"x.io/gpu": "1"}}}]}
    apart = {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "none"}}, "namespaceSelector": {}}]}

    async def play():
        async with serving() as api, Client(ClientConfig(server=api.url)) as client:
            await poisoned_store(api, poison)
            informers, nodes, recorder = Informers(client), Informer(client, NODES), Recorder(client, "s")
            scheduler = Scheduler(client, informers.of(PODS), nodes, World(informers, keep_for), recorder)
            tasks = [asyncio.create_task(work()) for work in (informers.run, nodes.run, recorder.run, scheduler.run)]
            placed = asyncio.Event()

            def look(kind, old, new):
                if objects.name(new) == "good" and objects.get(new, "spec.nodeName") == "n":
                    placed.set()
            informers.of(PODS).subscribe(look)
            try:
                await client.create(named("serviceaccounts"), {"metadata": {"name": "default", "namespace": "default"}})
                room = {"cpu": "2", "memory": "4Gi", "pods": "20"}
                await client.create(NODES, {"metadata": {"name": "n"}, "status": {
                    "capacity": room, "allocatable": room}})
                await client.patch(NODES, "n", {"spec": {"taints": None}}, kind="merge")
                await client.create(named("persistentvolumeclaims"), {
                    "metadata": {"name": "c", "namespace": "default"}, "spec": {
                        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}})
                for name, spec in (("wants", wants), ("good", {"affinity": {"podAntiAffinity": apart}})):
                    await client.create(PODS, {
                        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
                        "spec": {"containers": [{"name": "c", "image": "i"}], **spec}})
                async with asyncio.timeout(60):
                    await placed.wait()
                assert not [task for task in tasks if task.done()]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.run(play())


def test_owners_in_a_circle_go_together():
    from tests.unit.controllers.cluster import cluster

    async def play():
        async with cluster(kubelet=False) as made:
            maps = named("configmaps")

            def owner(one):
                return {"apiVersion": "v1", "kind": "ConfigMap", "name": objects.name(one), "uid": objects.uid(one),
                        "blockOwnerDeletion": True}
            ring = [await made.client.create(maps, {"metadata": {"name": name, "namespace": "default"}})
                    for name in "abc"]
            for one, other in zip(ring, [*ring[1:], ring[0]]):
                await made.client.patch(maps, objects.name(one), {"metadata": {"ownerReferences": [owner(other)]}},
                                        "default", "merge")
            await made.client.delete(maps, "a", "default", propagation="Foreground")
            await made.until(lambda: not [one for one in made.of("configmaps").items() if objects.name(one) in "abc"])
    asyncio.run(play())
