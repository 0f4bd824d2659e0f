"""Killed at any write: the successor goes on, and nothing is ever made twice."""

import asyncio
import random

from controlplane.client.config import ClientConfig
from controlplane.client.informer import Informers
from controlplane.client.rest import Client, Unreachable
from controlplane.controllers.manager import Manager, Settings
from controlplane.controllers.runtime import Context
from controlplane.controllers.volumes.volumebinder import VolumeBinder
from controlplane.controllers.workloads.deployments import rollout
from controlplane.controllers.workloads.deployments.controller import Deployments
from controlplane.controllers.workloads.replicasets.controller import replicasets
from controlplane.controllers.workloads.statefulsets.controller import StatefulSets
from controlplane.machinery import objects
from controlplane.machinery.resources import named
from tests.unit.apiserver.harness import serving
from tests.unit.controllers.cluster import Cluster, deployment
from tests.unit.controllers.test_cluster import DEPLOYMENTS, settled
from tests.unit.controllers.test_workloads import workload

WANTED, SURGE = 6, 2


class Dying(Client):
    """A client whose process dies around its `fatal`-th write: before it is sent, or before its answer is read."""

    fatal, died, lossy = 10**9, None, 0.0
    chance = random.Random(7)

    async def _send(self, method, target, body, headers):
        if method == "GET":
            return await super()._send(method, target, body, headers)
        self.fatal -= 1
        last = self.fatal == 0
        if last and self.chance.random() < 0.5:
            self.died.set()
        if self.died.is_set():
            await asyncio.Event().wait()
        answer = await super()._send(method, target, body, headers)
        if last:
            self.died.set()
            await asyncio.Event().wait()
        if method == "POST" and "/pods" in target and self.chance.random() < self.lossy:
            raise Unreachable("the answer was lost")
        return answer


class Some(Manager):
    """Only these controllers: a life that begins with a list of every kind takes ten times as long."""

    def __init__(self, client, kinds):
        self.informers = Informers(client)
        self.controllers = [kind(Context(client, self.informers, client.clock)) for kind in kinds]


ACCOUNT = {"metadata": {"name": "default", "namespace": "default"}}  # which pods ask for


async def life(url, fatal, kinds, step):
    """One process: run `step(cluster)` until it returns or the process dies; whether it returned."""
    async with Dying(ClientConfig(server=url)) as client:
        client.fatal, client.died = fatal, asyncio.Event()
        manager = Some(client, kinds)
        ready = asyncio.Event()
        tasks = [asyncio.create_task(manager.follow(ready.set))]
        await ready.wait()
        tasks.append(asyncio.create_task(manager.work()))
        async with Client(ClientConfig(server=url)) as other:
            cluster = Cluster(client, manager)
            cluster.client = other
            tasks.append(asyncio.create_task(cluster.run_pods()))
            done, dead = asyncio.create_task(step(cluster)), asyncio.create_task(client.died.wait())
            await asyncio.wait({done, dead}, return_when=asyncio.FIRST_COMPLETED)
            finished = done.done()
            for task in [*tasks, done, dead]:
                task.cancel()
            results = await asyncio.gather(*tasks, done, dead, return_exceptions=True)
            broken = [r for r in results if isinstance(r, Exception)]
            assert not broken, broken
            return finished


def test_a_rollout_survives_a_death_at_every_write():
    async def main():
        async with serving() as api, Client(ClientConfig(server=api.url)) as client:
            await client.create(named("serviceaccounts"), ACCOUNT)
            await client.create(DEPLOYMENTS, deployment("web", WANTED, strategy={
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": SURGE, "maxUnavailable": 1}}))
            for image, fatal in (("web:1", 1), ("web:2", 2), ("web:3", 3), ("web:4", 7)):
                changed = await client.patch(DEPLOYMENTS, "web", {"spec": {"template": {"spec": {
                    "containers": [{"name": "c", "image": image}]}}}}, "default")
                worst = []

                async def step(cluster, changed=changed, worst=worst):
                    def count(kind, old, new):
                        worst.append(sum(not objects.deleting(p) for p in cluster.pods.items()))
                    cluster.pods.subscribe(count)
                    await cluster.until(settled(cluster, "web", WANTED, changed))
                lives = 1
                while not await life(api.url, fatal, (Deployments, replicasets), step):
                    lives += 1
                    assert lives < 200
                assert max(worst) <= WANTED + SURGE and lives > 1
            sets, _ = await client.list(named("replicasets.apps"), "default")
            assert sorted(objects.annotations(s)[rollout.REVISION] for s in sets) == ["1", "2", "3", "4"]
    asyncio.run(main())


def test_lost_answers_make_no_second_pod():
    async def main():
        async with serving() as api, Dying(ClientConfig(server=api.url)) as client:
            client.died, client.lossy = asyncio.Event(), 0.5
            pause = client.clock.sleep

            async def brief(seconds):
                await pause(min(seconds, 0.01))
            client.clock = type("Brief", (type(client.clock),), {"sleep": staticmethod(brief)})()
            manager = Manager(client, Settings())
            ready, made = asyncio.Event(), []
            tasks = [asyncio.create_task(manager.follow(ready.set))]
            await ready.wait()
            tasks += [asyncio.create_task(manager.work()), asyncio.create_task(Cluster(client, manager).run_pods())]
            cluster = Cluster(client, manager)
            cluster.pods.subscribe(lambda kind, old, new: made.append(objects.name(new)) if kind == "ADDED" else None)
            async with Client(ClientConfig(server=api.url)) as other:
                await other.create(DEPLOYMENTS, deployment("web", 12))
                await cluster.until(settled(cluster, "web", 12))
            assert len(made) == len(set(made)) == 12
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.run(main())


def test_bindings_and_claims_survive_a_death_at_every_write():
    """Three claims for two volumes and a StatefulSet with claims of its own; each life ends at its second write."""
    async def main():
        async with serving() as api, Client(ClientConfig(server=api.url)) as client:
            await client.create(named("serviceaccounts"), ACCOUNT)
            request = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}},
                       "storageClassName": "static"}
            for name in "ab":
                await client.create(named("persistentvolumes"), {"metadata": {"name": name}, "spec": {
                    "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp"},
                    "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "static"}})
            for name in "xyz":
                await client.create(named("persistentvolumeclaims"), {
                    "metadata": {"name": name, "namespace": "default"}, "spec": request})
            await client.create(named("statefulsets.apps"), workload(
                "StatefulSet", "s", replicas=2, serviceName="s", volumeClaimTemplates=[{
                    "metadata": {"name": "data"}, "spec": {**request, "storageClassName": "other"}}]))
            made = set()

            async def step(cluster):
                cluster.pods.subscribe(lambda kind, old, new: made.add((objects.name(new), objects.uid(new))))

                def done():
                    claims = {objects.name(one): one for one in cluster.of("persistentvolumeclaims").items()}
                    bound = [one for name, one in claims.items() if name in "xyz"
                             and objects.get(one, "status.phase") == "Bound"]
                    ready = objects.get(cluster.of("statefulsets.apps").get("default", "s") or {},
                                        "status.readyReplicas")
                    phases = {objects.get(one, "status.phase") for one in cluster.of("persistentvolumes").items()}
                    return len(bound) == 2 and phases == {"Bound"} and ready == 2 and len(claims) == 5
                await cluster.until(done)
            lives = 1
            while not await life(api.url, 2, (StatefulSets, VolumeBinder), step):
                lives += 1
                assert lives < 200
            claims, _ = await client.list(named("persistentvolumeclaims"), "default")
            volumes, _ = await client.list(named("persistentvolumes"))
            pairs = {(objects.name(one), objects.get(one, "spec.claimRef.name")) for one in volumes}
            assert pairs == {(one["spec"]["volumeName"], objects.name(one)) for one in claims
                             if one["spec"].get("volumeName")}
            assert {name for name, _ in made} == {"s-0", "s-1"} and len(made) == 2 and lives > 3
    asyncio.run(main())
