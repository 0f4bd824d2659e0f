"""Draining: who leaves, what is said of a budget that refuses, and the end of patience."""

import asyncio

import pytest

from controlplane.apiserver.writing.eviction import judge
from controlplane.hosts import drain
from controlplane.machinery.clock import FakeClock, settle
from controlplane.machinery.errors import Finding
from controlplane.machinery.patch import merge_patch
from controlplane.machinery.paths import Paths

BUDGET = {"metadata": {"name": "web"}, "status": {"desiredHealthy": 2, "currentHealthy": 2, "disruptionsAllowed": 0}}


def pod(name, owner="ReplicaSet", phase="Running"):
    return {"metadata": {"name": name, "namespace": "default", "uid": name, "ownerReferences": [{"kind": owner}]},
            "status": {"phase": phase}}


class Server:
    """A server with pods and one budget, that lets pods go when it has `allowed` disruptions."""

    def __init__(self, *names):
        self.pods, self.allowed = [pod(name) for name in names], 0

    async def list(self, resource, fields):
        assert fields == "spec.nodeName=lab-2"
        return list(self.pods), "1"

    async def create(self, resource, obj, subresource, name):
        assert subresource == "eviction" and obj["kind"] == "Eviction"
        status = {**BUDGET["status"], "disruptionsAllowed": self.allowed}
        judge({**BUDGET, "status": status}, pod(name), "2026-01-01T00:00:00Z")
        self.allowed -= 1
        self.pods = [p for p in self.pods if p["metadata"]["name"] != name]


def test_who_leaves():
    mirror = pod("static")
    mirror["metadata"]["annotations"] = {drain.MIRROR: "x"}
    pods = [pod("a"), pod("each", owner="DaemonSet"), pod("done", phase="Succeeded"), mirror]
    assert drain.leaving(pods) == [pods[0]]


@pytest.mark.parametrize(("marks", "unschedulable", "after"), [
    ({}, None, (None, None)),
    ({}, True, (None, True)),  # a person's will
    ({drain.MARK: "true"}, True, (None, None))])  # what a drain that was killed left
def test_a_node_is_as_open_afterwards_as_a_person_had_it(tmp_path, monkeypatch, marks, unschedulable, after):
    node = {"metadata": {"annotations": marks}, "spec": {"unschedulable": unschedulable}}

    class Client:
        def __init__(self, config, user_agent):
            pass

        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            pass

        async def get(self, resource, name):
            return node

        async def patch(self, resource, name, patch):
            node.update(merge_patch(node, patch))

        async def list(self, resource, fields):
            assert node["spec"]["unschedulable"]
            return [], "1"

    async def body():
        async with drain.drained(Paths(tmp_path), "lab-2", print, 60.0) as gone:
            assert gone == 0 and (drain.MARK in node["metadata"]["annotations"]) == (after[1] is None)
    monkeypatch.setattr(drain, "load", lambda path: None)
    monkeypatch.setattr(drain, "Client", Client)
    asyncio.run(body())
    assert (node["metadata"]["annotations"].get(drain.MARK), node["spec"].get("unschedulable")) == after


def test_a_budget_is_named_and_waited_for():
    async def body():
        clock, server, said = FakeClock(), Server("a", "b"), []
        work = asyncio.create_task(drain._empty(server, "lab-2", said.append, 60.0, clock))
        await settle()
        await clock.advance(10.0)
        why = "The disruption budget web needs 2 healthy pods and has 2 currently"
        assert said == [f"waiting for default/{name}: {why}" for name in "ab"], "once each"
        server.allowed = 1
        await clock.advance(10.0)
        assert [p["metadata"]["name"] for p in server.pods] == ["b"] and not work.done()
        server.allowed = 1
        await clock.advance(1.0)
        assert await work == 2 and len(said) == 2
    asyncio.run(body())


def test_patience_ends():
    async def body():
        clock = FakeClock()
        work = asyncio.create_task(drain._empty(Server("a"), "lab-2", lambda line: None, 60.0, clock))
        await settle()
        await clock.advance(61.0)
        with pytest.raises(Finding) as found:
            await work
        assert found.value.fact == "1 pods did not leave lab-2 within 60 s"
        assert "default/a: The disruption budget web" in found.value.because and "--drain-timeout" in found.value.fix
    asyncio.run(body())
