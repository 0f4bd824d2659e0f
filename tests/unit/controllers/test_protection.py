"""Claims and volumes stay while they are used."""

import asyncio

from controlplane.machinery import objects
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import cluster

PODS, CLAIMS, VOLUMES = named("pods"), named("persistentvolumeclaims"), named("persistentvolumes")


def test_a_claim_goes_with_its_last_pod_and_a_free_volume_at_once():
    async def play():
        async with cluster(kubelet=False) as made:
            client = made.client
            await made.until(lambda: made.of("serviceaccounts").get("default", "default"))
            claim = {"metadata": {"name": "c", "namespace": "default"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
            stored = await client.create(CLAIMS, claim)
            assert stored["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
            await client.create(PODS, {"metadata": {"name": "p", "namespace": "default"}, "spec": {
                "nodeName": "n", "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}})
            await made.until(lambda: made.pods.by("claims", "default/c"))
            await client.delete(CLAIMS, "c", "default")
            await client.create(VOLUMES, {"metadata": {"name": "v"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp"}}})
            await client.delete(VOLUMES, "v")
            await made.until(lambda: made.of("persistentvolumes").get("", "v") is None)
            waiting = made.of("persistentvolumeclaims").get("default", "c")
            assert waiting is not None and objects.deleting(waiting)
            await client.delete(PODS, "p", "default", grace=0)
            await made.until(lambda: made.of("persistentvolumeclaims").get("default", "c") is None)
    asyncio.run(play())


def test_attributes_stay_while_a_claim_has_them():
    async def play():
        async with cluster(kubelet=False) as made:
            client, classes = made.client, named("volumeattributesclasses.storage.k8s.io")
            for name in ("used", "idle"):
                await client.create(classes, {"metadata": {"name": name}, "driverName": "ex.io",
                                              "parameters": {"a": "b"}})
            await client.create(CLAIMS, {"metadata": {"name": "c", "namespace": "default"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "volumeAttributesClassName": "used"}})
            await made.until(lambda: made.of("persistentvolumeclaims").by("attributes", "used"))
            for name in ("used", "idle"):
                await client.delete(classes, name)
            await made.until(lambda: made.of(classes.name).get("", "idle") is None)
            assert made.of(classes.name).get("", "used") is not None
            await client.delete(CLAIMS, "c", "default")
            await made.until(lambda: made.of(classes.name).get("", "used") is None)
    asyncio.run(play())
