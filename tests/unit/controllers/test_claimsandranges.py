"""Device claims made from templates and freed with their pods; ranges of Services held while they are used."""

import asyncio

from controlplane.controllers.services.servicecidrs import needed
from controlplane.machinery import objects
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import PODS, cluster

CLAIMS, TEMPLATES, RANGES = (named(n) for n in ("resourceclaims.resource.k8s.io",
                                                "resourceclaimtemplates.resource.k8s.io",
                                                "servicecidrs.networking.k8s.io"))


def test_a_template_makes_a_claim_that_is_freed_with_its_pod():
    async def play():
        async with cluster(kubelet=False) as made:
            client = made.client
            await made.until(lambda: made.of("serviceaccounts").get("default", "default"))
            spec = {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]}}
            await client.create(PODS, {"metadata": {"name": "p", "namespace": "default"}, "spec": {
                "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "dev"}]}}],
                "resourceClaims": [{"name": "dev", "resourceClaimTemplateName": "t"}]}})
            await client.create(TEMPLATES, {"metadata": {"name": "t", "namespace": "default"}, "spec": {"spec": spec}})
            await made.until(lambda: objects.get(made.pods.get("default", "p") or {}, "status.resourceClaimStatuses"))
            (claim,) = made.of(CLAIMS.name).items()
            pod = made.pods.get("default", "p")
            assert pod["status"]["resourceClaimStatuses"] == [{"name": "dev", "resourceClaimName": objects.name(claim)}]
            reserved = [{"resource": "pods", "name": "p", "uid": objects.uid(pod)}]
            await client.patch(CLAIMS, objects.name(claim), {"status": {
                "allocation": {"devices": {"results": [{"request": "gpu", "driver": "ex.io", "pool": "n",
                                                        "device": "d"}]}},
                "reservedFor": reserved}}, "default", "merge", "status")
            await made.until(lambda: objects.get(made.of(CLAIMS.name).items()[0], "status.reservedFor") == reserved)
            await client.patch(PODS, "p", {"status": {"phase": "Succeeded"}}, "default", "merge", "status")
            await made.until(lambda: not made.of(CLAIMS.name).items())
    asyncio.run(play())


def test_a_range_leaves_when_its_last_address_does():
    async def play():
        async with cluster(kubelet=False) as made:
            await made.client.create(RANGES, {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.55.0.0/24"]}})
            await made.until(lambda: (made.of(RANGES.name).get("", "more") or {"metadata": {}})["metadata"].get(
                "finalizers"))
            await made.client.create(named("ipaddresses.networking.k8s.io"), {
                "metadata": {"name": "10.55.0.7"}, "spec": {"parentRef": {
                    "resource": "services", "namespace": "default", "name": "s"}}})
            await made.until(lambda: made.of("ipaddresses.networking.k8s.io").get("", "10.55.0.7"))
            await made.client.delete(RANGES, "more")
            await made.until(lambda: (objects.condition(made.of(RANGES.name).get("", "more"), "Ready") or {}).get(
                "reason") == "Terminating")
            await made.client.delete(named("ipaddresses.networking.k8s.io"), "10.55.0.7")
            await made.until(lambda: made.of(RANGES.name).get("", "more") is None)
    asyncio.run(play())


def test_another_range_with_the_address_frees_this_one():
    def one(name, cidr):
        return {"metadata": {"name": name}, "spec": {"cidrs": [cidr]}}
    assert needed(one("a", "10.0.0.0/24"), [one("a", "10.0.0.0/24")], ["10.0.0.9"])
    assert not needed(one("a", "10.0.0.0/24"), [one("b", "10.0.0.0/16")], ["10.0.0.9"])
    assert not needed(one("a", "10.0.0.0/24"), [], ["10.1.0.9", "fd00::1"])
