"""The controllers against the real API server: what users see of them."""

import asyncio

from controlplane.controllers.workloads.deployments import rollout
from controlplane.machinery import objects
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import PODS, cluster, deployment

DEPLOYMENTS, REPLICASETS, SERVICES = named("deployments.apps"), named("replicasets.apps"), named("services")
SLICES, NAMESPACES, CONFIG_MAPS = named("endpointslices.discovery.k8s.io"), named("namespaces"), named("configmaps")
EVENTS = named("events")


def settled(c, name, replicas, since=None):
    """Whether the rollout is complete, of the generation of `since` (what a write returned) or a later one."""
    def check():
        one = c.of("deployments.apps").get("default", name)
        status = (one or {}).get("status") or {}
        return one and status.get("observedGeneration") == one["metadata"]["generation"] and \
            status.get("updatedReplicas", 0) == status.get("availableReplicas", 0) == \
            status.get("replicas", 0) == replicas and \
            one["metadata"]["generation"] >= (since["metadata"]["generation"] if since else 0) and \
            objects.condition(one, "Progressing")["reason"] == "NewReplicaSetAvailable" and one
    return check


def test_deployment_rolls_within_its_bounds():
    async def main():
        async with cluster() as c:
            await c.client.create(DEPLOYMENTS, deployment("web", 4, strategy={
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}))
            one = await c.until(settled(c, "web", 4))
            assert objects.condition(one, "Available")["reason"] == "MinimumReplicasAvailable"
            first = c.of("replicasets.apps").items()[0]
            assert objects.name(first).startswith("web-") and objects.annotations(first)[rollout.REVISION] == "1"
            assert len({objects.name(p) for p in c.pods.items()}) == 4

            seen = []

            def watch(kind, old, new):
                alive = [p for p in c.pods.items() if not objects.deleting(p)]
                ready = [p for p in alive if (objects.condition(p, "Ready") or {}).get("status") == "True"]
                seen.append((len(alive), len(ready)))
            c.pods.subscribe(watch)
            del seen[:]
            changed = await c.client.patch(DEPLOYMENTS, "web", {"spec": {"template": {"spec": {
                "containers": [{"name": "c", "image": "web:2"}]}}}}, "default")
            await c.until(settled(c, "web", 4, changed))
            assert max(alive for alive, _ in seen) <= 5 and min(ready for _, ready in seen) >= 3
            sets = {objects.annotations(s)[rollout.REVISION]: rollout.replicas(s)
                    for s in c.of("replicasets.apps").items()}
            assert sets == {"1": 0, "2": 4}
            assert {p["spec"]["containers"][0]["image"] for p in c.pods.items() if not objects.deleting(p)} == {"web:2"}

            back = [{"op": "replace", "path": "/spec/template", "value": {
                **first["spec"]["template"], "metadata": {"labels": {"app": "web"}}}}]
            changed = await c.client.patch(DEPLOYMENTS, "web", back, "default", "json")
            await c.until(settled(c, "web", 4, changed))
            again = c.of("replicasets.apps").get("default", objects.name(first))
            assert objects.annotations(again)[rollout.REVISION] == "3"
            assert objects.annotations(again)[rollout.HISTORY] == "1"
            events, _ = await c.client.list(EVENTS, "default", fields="involvedObject.kind=Deployment")
            messages = [e["message"] for e in events if e["reason"] == "ScalingReplicaSet"]
            assert f"Scaled up replica set {objects.name(first)} from 0 to 4" in messages
    asyncio.run(main())


def test_lost_pods_are_replaced_and_scaling_keeps_the_count():
    async def main():
        async with cluster() as c:
            await c.client.create(DEPLOYMENTS, deployment("web", 2))
            await c.until(settled(c, "web", 2))
            victim = c.pods.items()[0]
            await c.client.delete(PODS, objects.name(victim), "default")
            await c.until(lambda: c.pods.get("default", objects.name(victim)) is None and len(c.pods) == 2)
            await c.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 5}}, "default", "merge", "scale")
            await c.until(settled(c, "web", 5))
            await c.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 1}}, "default")
            await c.until(settled(c, "web", 1))
            changed = await c.client.patch(DEPLOYMENTS, "web", {"spec": {
                "strategy": {"$retainKeys": ["type"], "type": "Recreate"},
                "template": {"metadata": {"labels": {"v": "2"}}}}}, "default")
            await c.until(settled(c, "web", 1, changed))
            await c.until(lambda: len(c.pods) == 1)
    asyncio.run(main())


def test_services_find_their_pods():
    async def main():
        async with cluster() as c:
            await c.client.create(SERVICES, {"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}})
            await c.client.create(DEPLOYMENTS, deployment("web", 3))
            await c.until(settled(c, "web", 3))

            def ready():
                found = [s for s in c.of("endpointslices.discovery.k8s.io").items()
                         if objects.labels(s).get("kubernetes.io/service-name") == "web"]
                return len(found) == 1 and found[0] if \
                    sum(e["conditions"]["ready"] for s in found for e in s["endpoints"]) == 3 else None
            one = await c.until(ready)
            assert one["ports"] == [{"name": "", "protocol": "TCP", "port": 8080}]
            assert one["endpoints"][0]["targetRef"]["kind"] == "Pod"
            await c.until(lambda: len((c.of("endpoints").get("default", "web") or {}).get("subsets", [{}])[0].get(
                "addresses", [])) == 3)
            # A slice that somebody takes over, or gives to another Service, is no longer ours: its pods get a new one.
            def mine():
                found = [s for s in c.of("endpointslices.discovery.k8s.io").items() if objects.labels(s).get(
                    "endpointslice.kubernetes.io/managed-by") == "endpointslice-controller.k8s.io"
                    and objects.labels(s).get("kubernetes.io/service-name") == "web"]
                return found[0] if len(found) == 1 and len(found[0]["endpoints"]) == 3 else None
            seen = set()
            for label in ("endpointslice.kubernetes.io/managed-by", "kubernetes.io/service-name"):
                seen.add(name := objects.name(mine()))
                await c.client.patch(SLICES, name, {"metadata": {"labels": {label: "me"}}}, "default", "merge")
                await c.until(lambda: mine() and objects.name(mine()) not in seen)
            await c.client.delete(SERVICES, "web", "default")
            await c.until(lambda: c.of("endpoints").get("default", "web") is None and ready() is None)
    asyncio.run(main())


def test_written_endpoints_are_mirrored():
    async def main():
        async with cluster() as c:
            await c.client.create(SERVICES, {"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "db", "namespace": "default"}, "spec": {"ports": [{"port": 5432}]}})
            await c.client.create(named("endpoints"), {"apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"name": "db", "namespace": "default"},
                "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}]})

            def mirrored():
                return [(s["endpoints"][0]["addresses"], s["ports"][0]["port"])
                        for s in c.of("endpointslices.discovery.k8s.io").items()
                        if objects.labels(s).get("kubernetes.io/service-name") == "db"]
            await c.until(lambda: mirrored() == [(["192.0.2.7"], 5432)])
            await c.client.patch(named("endpoints"), "db", {"subsets": [
                {"addresses": [{"ip": "192.0.2.8"}], "ports": [{"port": 5432}]}]}, "default", "merge")
            await c.until(lambda: mirrored() == [(["192.0.2.8"], 5432)])
            assert not [s for s in c.of("endpointslices.discovery.k8s.io").items()
                        if objects.labels(s).get("kubernetes.io/service-name") == "kubernetes"
                        and objects.labels(s).get("endpointslice.kubernetes.io/managed-by", "").startswith("endpoints")]
            # Whoever has a selector has its endpoints from the pods, or, as an alias, none: what it had is no mirror's.
            await c.client.patch(SERVICES, "db", {"spec": {"type": "ExternalName", "externalName": "db.example.com",
                                                           "selector": {"app": "db"}}}, "default", "merge")
            await c.until(lambda: not mirrored())
            await c.client.patch(SERVICES, "db", {"spec": {"type": "ClusterIP", "selector": None}}, "default", "merge")
            await c.until(lambda: mirrored() == [(["192.0.2.8"], 5432)])

            async def annotate(**annotations):
                await c.client.patch(named("endpoints"), "db", {"metadata": {"annotations": annotations}}, "default",
                                     "merge")
            await annotate(note="two")
            await c.until(lambda: [s for s in c.of("endpointslices.discovery.k8s.io").items()
                                   if objects.annotations(s).get("note") == "two"])
            await annotate(**{"control-plane.alpha.kubernetes.io/leader": "{}"})
            await c.until(lambda: not mirrored())
            await annotate(**{"control-plane.alpha.kubernetes.io/leader": None})
            await c.client.patch(named("endpoints"), "db", {"subsets": [{"ports": [{"port": 5432}], "addresses": [
                {"ip": f"192.0.{n // 250}.{n % 250 + 1}"} for n in range(1002)]}]}, "default", "merge")
            await c.until(lambda: [e for e in c.of("events").items() if e["reason"] == "TooManyAddressesToMirror"
                                   and "2 addresses were skipped" in e["message"]])
            await c.client.delete(named("endpoints"), "db", "default")
            await c.until(lambda: not mirrored())
    asyncio.run(main())


def test_namespaces_are_furnished_and_emptied():
    async def main():
        async with cluster() as c:
            await c.client.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
            await c.until(lambda: c.of("serviceaccounts").get("team", "default")
                          and c.of("configmaps").get("team", "kube-root-ca.crt"))
            await c.client.delete(CONFIG_MAPS, "kube-root-ca.crt", "team")
            bundle = await c.until(lambda: c.of("configmaps").get("team", "kube-root-ca.crt"))
            assert bundle["data"] == {"ca.crt": "PEM"}
            made = deployment("web", 2)
            made["metadata"]["namespace"] = "team"
            await c.client.create(DEPLOYMENTS, made)
            held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "team",
                                                                          "finalizers": ["example.com/hold"]}}
            await c.client.create(CONFIG_MAPS, held)
            await c.until(lambda: len(c.pods) == 2)
            await c.client.delete(NAMESPACES, "team")

            def told():
                condition = objects.condition(c.of("namespaces").get("", "team"), "NamespaceFinalizersRemaining")
                return condition and condition["status"] == "True" and condition
            assert "example.com/hold in 1 resource instances" in (await c.until(told))["message"]
            assert len(c.pods) == 0
            await c.client.patch(CONFIG_MAPS, "held", {"metadata": {"finalizers": None}}, "team", "merge")
            await c.until(lambda: c.of("namespaces").get("", "team") is None)
            assert not [s for s in c.of("replicasets.apps").items() if objects.namespace(s) == "team"]
    asyncio.run(main())


def test_garbage_follows_its_owners():
    async def main():
        async with cluster() as c:
            for name, policy in (("background", "Background"), ("foreground", "Foreground"), ("orphan", "Orphan")):
                await c.client.create(DEPLOYMENTS, deployment(name, 2))
                await c.until(settled(c, name, 2))
                await c.client.delete(DEPLOYMENTS, name, "default", propagation=policy)
                await c.until(lambda name=name: c.of("deployments.apps").get("default", name) is None)
                if policy == "Foreground":
                    assert not c.of("replicasets.apps").items()  # the dependents went first
                if policy != "Orphan":
                    await c.until(lambda: len(c.pods) == 0 and not c.of("replicasets.apps").items())
            (left,) = c.of("replicasets.apps").items()
            assert not left["metadata"].get("ownerReferences") and len(c.pods) == 2
            ref = {"apiVersion": "v1", "kind": "ConfigMap", "name": "ghost", "uid": "no-such-uid"}
            await c.client.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
                "name": "lost", "namespace": "default", "ownerReferences": [ref]}})
            await c.until(lambda: c.of("configmaps").get("default", "lost") is None and len(c.pods) == 2)
    asyncio.run(main())
