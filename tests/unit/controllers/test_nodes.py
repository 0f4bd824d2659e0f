"""A node that falls silent: noticed after the grace, tainted, emptied after the tolerated time, and welcomed back.

And many that do: nobody is driven away when it is the network."""

import asyncio

from controlplane.client.config import ClientConfig
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.controllers.manager import Manager, Settings
from controlplane.controllers.nodes import health, zones
from controlplane.machinery import objects
from controlplane.machinery.clock import FakeClock, settle
from controlplane.machinery.resources import named
from tests.unit.apiserver.harness import pod, serving
from tests.unit.controllers.cluster import PODS, Cluster, cluster

NODES, LEASES = named("nodes"), named("leases.coordination.k8s.io")
TOLERATED = 300  # seconds: what admission gives every pod


def ready(status="True"):
    return {"status": {"conditions": [{"type": "Ready", "status": status, "reason": "KubeletReady"}]}}


async def later(clock, seconds):
    """Move on once every timer that is due to be set is set."""
    await settle()
    await clock.advance(seconds)


async def alive(c, name):
    """The node says once more that it is well."""
    before = objects.revision(c.of("nodes").get("", name))
    beat = {"type": "Ready", "status": "True", "lastHeartbeatTime": c.manager.informers.clock.timestamp()}
    await c.client.patch(NODES, name, {"status": {"conditions": [beat]}}, subresource="status")
    await c.until(lambda: objects.revision(c.of("nodes").get("", name)) != before)


def taints(c):
    return {(t["key"], t["effect"]) for t in objects.get(c.of("nodes").get("", "n") or {}, "spec.taints", [])}


def test_silence_taint_eviction_return():
    async def main():
        clock = FakeClock()
        async with serving() as api, Client(ClientConfig(server=api.url)) as client:
            manager = Manager(client, Settings(), clock)
            filled = asyncio.Event()
            tasks = [asyncio.create_task(manager.follow(filled.set))]
            await filled.wait()
            tasks.append(asyncio.create_task(manager.work()))
            c = Cluster(client, manager)
            await client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {
                "taints": [{"key": health.NOT_READY, "effect": "NoSchedule"}]}, **ready()})
            await c.until(lambda: not taints(c) and objects.get(c.of("nodes").get("", "n") or {}, "spec.podCIDR"))
            await client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "well"}, **ready()})
            patient = {"key": health.UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}
            for name, tolerations in (("brief", [{**patient, "tolerationSeconds": TOLERATED}]), ("patient", [patient])):
                made = pod(name, nodeName="n", tolerations=tolerations)
                made["metadata"]["namespace"] = "default"
                await client.create(PODS, made)
                await client.patch(PODS, name, {"status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True"}]}}, "default", subresource="status")
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {
                "name": "n", "namespace": "kube-node-lease"}, "spec": {"holderIdentity": "n"}}
            await later(clock, health.GRACE_SECONDS - 1)
            await client.create(LEASES, lease)  # a sign of life in the last moment
            await c.until(lambda: c.of("leases.coordination.k8s.io").get("kube-node-lease", "n") and len(c.pods) == 2)
            await later(clock, health.GRACE_SECONDS - 1)
            assert not taints(c)
            await alive(c, "well")
            await later(clock, 2)
            unreachable = {(health.UNREACHABLE, "NoSchedule"), (health.UNREACHABLE, "NoExecute")}
            await c.until(lambda: taints(c) == unreachable)
            assert objects.condition(c.of("nodes").get("", "n"), "Ready")["reason"] == "NodeStatusUnknown"
            await c.until(lambda: all(objects.condition(p, "Ready")["status"] == "False" for p in c.pods.items()))
            for _ in range(9):
                await alive(c, "well")
                await later(clock, (TOLERATED - 2) / 9)
            assert not any(map(objects.deleting, c.pods.items()))
            await later(clock, 3)
            await c.until(lambda: objects.deleting(c.pods.get("default", "brief")))
            assert not objects.deleting(c.pods.get("default", "patient"))
            await client.patch(NODES, "n", ready(), subresource="status")
            await c.until(lambda: not taints(c))
            await client.delete(NODES, "n")
            await c.until(lambda: len(c.of("nodes")) == 1)
            await later(clock, 41)
            await c.until(lambda: not len(c.pods))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.run(main())


def test_a_range_of_pods_that_is_given_out_waits_for_a_node_to_go():
    async def main():
        async with cluster(cluster_cidr="10.244.0.0/23") as c:
            events = Informer(c.client, named("events"))
            events.subscribe(lambda *_: c.changed.set())
            following = asyncio.create_task(events.run())

            def block(name):
                return objects.get(c.of("nodes").get("", name) or {}, "spec.podCIDR", "")

            for name in ("one", "two"):
                await c.client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
                await c.until(lambda name=name: block(name))
            held = block("one"), block("two")
            await c.client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "three"}})
            told = await c.until(lambda: [event for event in events.items() if event["reason"] == "CIDRNotAvailable"])
            assert "of 10.244.0.0/23 no block is left" in told[0]["message"] and not block("three")
            assert sorted(held) == ["10.244.0.0/24", "10.244.1.0/24"] and held == (block("one"), block("two"))
            await c.client.delete(NODES, "one")
            await c.until(lambda: block("three") == held[0])
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    asyncio.run(main())


def test_the_more_nodes_fall_silent_the_slower_their_pods_are_moved():
    def node(zone, status="True"):
        return {"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"conditions": [{"type": "Ready", "status": status}]}}
    found = zones.counts([node("a"), node("a", "Unknown"), node("b", "False")])
    assert found == {"/a": (1, 1), "/b": (0, 1)} and not zones.cut_off(found)
    assert zones.cut_off(zones.counts([node("a", "Unknown"), node("b", "Unknown")]))
    assert zones.rate(1, 1) == zones.rate(0, 9) == zones.RATE  # few, or a whole zone while others are well
    assert zones.rate(4, 6) == 0.0 and zones.rate(40, 60) == zones.SLOW_RATE
    silent = node("a", "Unknown")
    assert [t["effect"] for t in health.taints(silent, "t", False)] == ["NoSchedule"]


def test_a_taint_that_does_not_say_when_it_was_added_counts_from_when_it_is_seen():
    async def main():
        async with cluster(kubelet=False) as c:
            await c.until(lambda: c.of("serviceaccounts").get("default", "default"))
            taint = {"key": "evict", "value": "yes", "effect": "NoExecute"}
            await c.client.create(NODES, {"metadata": {"name": "n"}, **ready()})
            for name, seconds in (("brief", 1), ("long", 100)):
                made = pod(name, nodeName="n", tolerations=[{**taint, "tolerationSeconds": seconds}])
                made["metadata"]["namespace"] = "default"
                await c.client.create(PODS, made)
            await c.client.patch(NODES, "n", {"spec": {"taints": [taint]}})
            await c.until(lambda: objects.deleting(c.pods.get("default", "brief")))
            assert objects.condition(c.pods.get("default", "brief"), "DisruptionTarget")["reason"] == \
                "DeletionByTaintManager"
            await c.client.patch(NODES, "n", {"spec": {"taints": None}}, kind="merge")
            events = c.of("events")
            events.subscribe(lambda *_: c.changed.set())
            await c.until(lambda: [e for e in events.items() if e.get("message") == "Cancelling deletion of Pod "
                                   "default/long"])
            assert not objects.deleting(c.pods.get("default", "long"))
    asyncio.run(main())
