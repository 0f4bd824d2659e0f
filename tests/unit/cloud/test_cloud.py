"""Machines and routes of a cloud, by a provider named in a flag; and what is left to a cloud-controller-manager."""

from __future__ import annotations

import asyncio

import pytest

from agent.kubelet.host import nodestatus
from controlplane.cloud import machines, provider
from controlplane.cloud.lab import Lab
from controlplane.cloud.provider import Metadata, Provider, Route
from controlplane.machinery import objects
from controlplane.machinery.errors import Finding, NotFound
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import cluster

NODES = named("nodes")
HOST = nodestatus.Host("n", ("10.0.0.1",), 2, 1 << 30, 1 << 30, cloud="")


class Cloud:
    """Machines by the names of nodes, and a table of routes that refuses one range at first."""

    made: Cloud

    def __init__(self) -> None:
        Cloud.made = self
        self.machines, self.off, self.routes, self.refusals = {"n"}, set(), [Route("10.9.9.0/24", "long-gone")], 1

    async def exists(self, node):
        return objects.name(node) in self.machines

    async def is_shut_down(self, node):
        return objects.name(node) in self.off

    async def metadata(self, node):
        if objects.name(node) not in self.machines:
            raise Finding(f"there is no machine {objects.name(node)}")
        return Metadata("lab://1", (("InternalIP", "10.0.0.1"), ("ExternalIP", "203.0.113.1")), "small", "z1", "r1")

    async def present(self):
        return list(self.routes)

    async def create(self, route):
        if self.refusals:
            self.refusals -= 1
            raise OSError("quota exceeded")
        self.routes.append(route)

    async def delete(self, route):
        self.routes.remove(route)


def made() -> Provider:
    cloud = Cloud()
    return Provider(instances=cloud, routes=cloud)


def ready(value: str) -> dict:
    return {"status": {"conditions": [{"type": "Ready", "status": value, "reason": "x"}]}}


def test_a_node_is_told_what_it_is_routed_to_tainted_while_off_and_deleted_when_gone():
    async def main():
        async with cluster(cloud=f"{__name__}:made") as c:
            def node():
                return c.of("nodes").get("", "n") or {}

            def tainted(key):
                return any(t["key"] == key for t in objects.get(node(), "spec.taints", []) or [])

            async def say(value):
                await c.client.patch(NODES, "n", ready(value), "", "strategic", "status")

            registered = nodestatus.node(HOST, "2026-01-01T00:00:00Z", nodestatus.Health())
            assert registered["spec"]["taints"] == [{"key": machines.UNINITIALIZED, "value": "true",
                                                     "effect": "NoSchedule"}]
            await c.client.create(NODES, registered)
            await c.until(lambda: node() and not tainted(machines.UNINITIALIZED)
                          and objects.get(node(), "spec.podCIDR"))
            found, labels = node(), objects.labels(node())
            assert found["spec"]["providerID"] == "lab://1" and labels["topology.kubernetes.io/zone"] == "z1"
            assert labels["node.kubernetes.io/instance-type"] == "small"
            told = {a["type"]: a["address"] for a in found["status"]["addresses"]}
            assert told == {"InternalIP": "10.0.0.1", "ExternalIP": "203.0.113.1", "Hostname": "n"}
            # The agent leaves the cloud's addresses as they are.
            kept = nodestatus.status(HOST, nodestatus.Health(), "2026-01-01T00:00:00Z", found["status"])
            assert kept["addresses"] == found["status"]["addresses"]

            cidr = found["spec"]["podCIDR"]
            await c.until(lambda: (objects.condition(node(), "NetworkUnavailable") or {}).get("status") == "False")
            assert Cloud.made.routes == [Route(cidr, "n")] and not Cloud.made.refusals  # it was asked once more

            Cloud.made.off.add("n")
            await say("False")
            await c.until(lambda: tainted(machines.SHUT_DOWN))
            Cloud.made.off.clear()
            await say("True")
            await c.until(lambda: not tainted(machines.SHUT_DOWN))
            Cloud.made.machines.clear()
            await say("False")
            await c.until(lambda: not node())
            with pytest.raises(NotFound):
                await c.client.get(NODES, "n")
    asyncio.run(main())


def test_who_answers_is_chosen_by_the_flag():
    assert isinstance(provider.chosen("").balancers, Lab)
    assert provider.chosen("external") == Provider()  # not a thing of the cloud's is touched
    for text, why in (("nowhere:made", "No module"), (f"{__name__}:absent", "absent"), (f"{__name__}:ready", "ready"),
                      (f"{__name__}:HOST", "not callable"), ("builtins:dict", "gives a dict")):
        with pytest.raises(Finding, match=why):
            provider.chosen(text)
