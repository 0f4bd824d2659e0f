"""A node that is there already is taken over, its lease renewed, and every range of pods it is given handed on."""

import argparse
import asyncio
from dataclasses import replace

import pytest

from agent.kubelet.cri.runtime import Unreachable
from agent.kubelet.host import nodestatus, registration
from agent.kubelet.host.node import LEASE_NAMESPACE, LEASES, NODES, NodeAgent
from agent.kubelet.host.nodestatus import Health, Host
from controlplane.client.config import ClientConfig
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery import objects
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import Finding, NotFound
from tests.unit.apiserver.harness import serving

HOST = Host("n1", ("10.0.0.1",), 2, 4 << 30, 100 << 30, runtime_version="containerd://1.6.20")
SECONDS = 15.0


class Runtime:
    async def status(self):
        return {"RuntimeReady": (True, "", ""), "NetworkReady": (True, "", "")}


class Restarting(Runtime):
    """Does not answer the next `away` times."""

    away = answered = 0

    async def status(self):
        if self.away:
            self.away -= 1
            raise Unreachable("connection refused")
        self.answered += 1
        return await super().status()


class Images:
    async def list(self):
        return []


def test_the_lease_is_renewed_when_the_watch_is_faster_than_the_registration():
    async def assigned(cidr):
        pass

    async def main():
        async with serving() as api, Client(ClientConfig(api.url)) as client:
            await client.create(NODES, nodestatus.node(HOST, SYSTEM.timestamp(), Health()))
            nodes = Informer(client, NODES)
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                watching = group.create_task(nodes.run())
                await nodes.synced()
                node = NodeAgent(HOST, client, Runtime(), Images(), SYSTEM, nodes, assigned)
                working = group.create_task(node.run())
                while True:
                    try:
                        lease = await client.get(LEASES, "n1", LEASE_NAMESPACE)
                        break
                    except NotFound:
                        await asyncio.sleep(0.02)
                assert lease["spec"]["holderIdentity"] == "n1" and node.registered.is_set()
                working.cancel()
                watching.cancel()
    asyncio.run(main())


def test_a_node_that_is_made_anew_may_be_given_another_range():
    ranges = asyncio.Queue()

    async def main():
        async with serving() as api, Client(ClientConfig(api.url)) as client:
            nodes = Informer(client, NODES)
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                watching = group.create_task(nodes.run())
                await nodes.synced()
                node = NodeAgent(HOST, client, Runtime(), Images(), SYSTEM, nodes, ranges.put)
                working = group.create_task(node.run())
                await node.registered.wait()
                for cidr in ("10.244.0.0/24", "10.244.7.0/24"):
                    await client.patch(NODES, "n1", {"spec": {"podCIDR": cidr}})
                    assert await ranges.get() == cidr
                    before = (await client.get(NODES, "n1"))["metadata"]["uid"]
                    await client.delete(NODES, "n1")
                    while nodes.get("", "n1") is None or nodes.get("", "n1")["metadata"]["uid"] == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                working.cancel()
                watching.cancel()
    asyncio.run(main())


def test_a_runtime_that_goes_is_told_unless_it_is_only_restarted(monkeypatch):
    """Told at once and asked again soon, not at the next interval."""
    monkeypatch.setattr("agent.kubelet.host.node.CHECK_SECONDS", 86400.0)
    told, away = [], ("gone", "False", "container runtime is down: connection refused")

    def heard(kind, old, new):
        ready = objects.condition(new, "Ready")
        told.append((new["metadata"]["labels"].get("phase"), ready["status"], ready["message"]))

    async def until(holds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def assigned(cidr):
        pass

    async def main():
        async with serving() as api, Client(ClientConfig(api.url)) as client:
            nodes, runtime = Informer(client, NODES), Restarting()
            nodes.subscribe(heard)
            async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                watching = group.create_task(nodes.run())
                await nodes.synced()
                node = NodeAgent(HOST, client, runtime, Images(), SYSTEM, nodes, assigned, "10.244.0.0/24")
                working = group.create_task(node.run())
                await until(lambda: told and told[-1][1] == "True")
                for phase, seconds in (("restarted", 86400.0), ("gone", 0.0)):
                    monkeypatch.setattr("agent.kubelet.host.node.AWAY_SECONDS", seconds)
                    await client.patch(NODES, "n1", {"metadata": {"labels": {"phase": phase}}})
                    await until(lambda phase=phase: told[-1][0] == phase)
                    runtime.away, before = 2, runtime.answered
                    node.check()
                    await until(lambda before=before: runtime.answered > before)
                await until(lambda: away in told and told[-1][1] == "True")
                working.cancel()
                watching.cancel()
    asyncio.run(main())
    assert {status for phase, status, _ in told if phase == "restarted"} == {"True"}
def registered(*arguments):
    flags = argparse.ArgumentParser()
    registration.add_flags(flags)
    return registration.of(flags.parse_args(arguments))


def test_a_new_node_has_the_labels_and_taints_it_was_given_and_an_old_one_keeps_its_own():
    given = registered("--node-labels=disk=ssd,node.kubernetes.io/role=edge,bare=",
                       "--register-with-taints=for=batch:NoSchedule,old:NoExecute")
    made = nodestatus.node(replace(HOST, registration=given, cloud=""), SYSTEM.timestamp(), Health())
    assert {"disk": "ssd", "node.kubernetes.io/role": "edge", "bare": "", "kubernetes.io/hostname": "n1"}.items() \
        <= made["metadata"]["labels"].items()
    assert [(t["key"], t.get("value"), t["effect"]) for t in made["spec"]["taints"]] == [
        ("for", "batch", "NoSchedule"), ("old", None, "NoExecute"),
        ("node.cloudprovider.kubernetes.io/uninitialized", "true", "NoSchedule")]

    async def assigned(cidr):
        pass

    async def main():
        async with serving() as api, Client(ClientConfig(api.url)) as client:
            async def registers():
                """The Node after an agent with these flags has begun."""
                nodes = Informer(client, NODES)
                async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
                    watching = group.create_task(nodes.run())
                    await nodes.synced()
                    host = replace(HOST, registration=given)
                    node = NodeAgent(host, client, Runtime(), Images(), SYSTEM, nodes, assigned)
                    working = group.create_task(node.run())
                    await node.registered.wait()
                    working.cancel()
                    watching.cancel()
                return await client.get(NODES, "n1")
            first = await registers()
            assert first["metadata"]["labels"]["disk"] == "ssd" and len(first["spec"]["taints"]) >= 2
            await client.patch(NODES, "n1", {"metadata": {"labels": {"disk": "slow", "bare": None}},
                                             "spec": {"taints": None}})
            again = await registers()
            assert again["metadata"]["labels"]["disk"] == "slow" and "bare" not in again["metadata"]["labels"]
            assert not {t["key"] for t in again["spec"].get("taints") or ()} & {"for", "old"}
    asyncio.run(main())


@pytest.mark.parametrize(("flag", "fault"), [
    ("--node-labels=node-restriction.kubernetes.io/x=y", "a node may set no label of kubernetes.io"),
    ("--node-labels=a b=c", "name part must consist of alphanumeric characters"),
    ("--register-with-taints=key=value", "taints[0].key"),
    ("--register-with-taints=a:Sometimes", 'Unsupported value: "Sometimes"'),
    ("--register-with-taints=a:NoSchedule,a=b:NoSchedule", "taints must be unique by key and effect pair")])
def test_labels_and_taints_that_no_node_may_have_are_refused(flag, fault):
    with pytest.raises(Finding) as refused:
        registered(flag)
    assert fault in str(refused.value)
