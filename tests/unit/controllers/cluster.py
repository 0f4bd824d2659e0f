"""A control plane in the test: the real API server over loopback, all controllers, and a hand for a kubelet."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from controlplane.client.config import ClientConfig
from controlplane.client.rest import Client
from controlplane.controllers.manager import Manager, Settings
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import named
from tests.unit.apiserver.harness import serving

PODS = named("pods")
SECONDS = 60.0  # any one wait of a test: only a failing one, or a very busy machine, needs it


class Cluster:
    def __init__(self, client, manager, api=None):
        self.client, self.manager, self.api = client, manager, api
        self.changed = asyncio.Event()
        for informer in manager.informers:
            informer.subscribe(lambda *_: self.changed.set())
        self.pods = manager.informers.of(PODS)

    async def until(self, condition, seconds=SECONDS):
        """Wait until `condition()` is true, looking whenever any informer hears of something."""
        try:
            async with asyncio.timeout(seconds):
                while not (found := condition()):
                    self.changed.clear()
                    await self.changed.wait()
                return found
        except TimeoutError:
            raise AssertionError("it never came true") from None

    def of(self, name):
        return self.manager.informers.of(named(name))

    async def run_pods(self):
        """Act as scheduler and kubelet: every pod gets an address and becomes ready, every deleted one ends."""
        done = {}
        heard = asyncio.Event()
        self.pods.subscribe(lambda *_: heard.set())

        async def serve(pod):
            name, namespace = objects.name(pod), objects.namespace(pod)
            try:
                if objects.deleting(pod):
                    await self.client.delete(PODS, name, namespace, grace=0, uid=objects.uid(pod))
                    return
                now = self.client.clock.timestamp()
                ip = f"10.244.0.{len(done) % 250 + 1}"
                status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                          "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}
                await self.client.patch(PODS, name, {"status": status}, namespace, "merge", "status")
            except ApiError:  # it is gone, or nothing one could run
                pass
        while True:
            heard.clear()
            work = [pod for pod in self.pods.items()
                    if done.get(objects.uid(pod)) != objects.deleting(pod)]
            for pod in work:
                done[objects.uid(pod)] = objects.deleting(pod)
                await serve(pod)
            if not work:
                await heard.wait()


@asynccontextmanager
async def cluster(root_ca="PEM", kubelet=True, served=None, config=ClientConfig, **settings):
    """`served` are settings of the server; `config` is what its clients are, but for the address."""
    async with serving(**(served or {})) as api, Client(config(server=api.url)) as client:
        manager = Manager(client, Settings(root_ca=root_ca, **settings))
        ready = asyncio.Event()
        tasks = [asyncio.create_task(manager.follow(ready.set))]
        try:
            async with asyncio.timeout(SECONDS):
                await ready.wait()
            made = Cluster(client, manager, api)
            tasks.append(asyncio.create_task(manager.work()))
            if kubelet:
                tasks.append(asyncio.create_task(made.run_pods()))
            yield made
            failed = [task for task in tasks if task.done()]
            for task in failed:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def deployment(name, replicas=3, image="web:1", **spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, **spec,
                     "template": {"metadata": {"labels": {"app": name}},
                                  "spec": {"containers": [{"name": "c", "image": image,
                                                           "ports": [{"name": "http", "containerPort": 8080}]}]}}}}
