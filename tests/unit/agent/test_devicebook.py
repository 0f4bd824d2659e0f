"""Lending of devices: never one to two, what ends is used again, and the book outlives its agent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kubelet.admit import Place, judge
from agent.kubelet.cri.runtime import injects_devices
from agent.kubelet.devices import manager as manager_module
from agent.kubelet.devices.book import Book, Device, Grant, Refused
from agent.kubelet.devices.manager import DeviceManager
from agent.kubelet.devices.podresources import PodResources
from agent.kubelet.host import nodestatus
from controlplane.machinery.clock import FakeClock
from cri_proto.messages import deviceplugin as api
from tests.unit.agent.pods import pod

RESOURCE = "example.com/lab"


def wants(name: str, count: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "resources": {"limits": {RESOURCE: str(count)}}, **more}


@given(st.sets(st.text("abc", min_size=1, max_size=2)), st.sets(st.text("abc", min_size=1, max_size=2)),
       st.lists(st.integers(1, 3), max_size=5), st.lists(st.text("abc", min_size=1, max_size=2), max_size=3))
def test_nobody_gets_what_another_has_or_what_is_sick(fine: set[str], sick: set[str], counts: list[int],
                                                      liked: list[str]) -> None:
    book = Book({RESOURCE: {id: Device(id not in sick) for id in fine | sick}})
    held: list[str] = []
    for number, count in enumerate(counts):
        try:
            again, fresh = book.choose(RESOURCE, count, preferred=liked)
        except Refused:
            assert len(fine - sick - set(held)) < count
            continue
        assert not again and len(fresh) == count
        held += fresh
        book.given[str(number)] = {"c": {RESOURCE: Grant(fresh)}}
    assert len(set(held)) == len(held) and set(held) <= fine - sick
    kept = Book.decode(book.encode())
    assert kept.given == book.given and kept.amounts()[RESOURCE] == (len(fine | sick), 0)


def test_later_containers_take_over_what_init_containers_had(tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []

    async def allocate(request: Any, timeout: float) -> Any:
        calls.append(tuple(request.container_requests[0].devices_ids))
        return api.AllocateResponse(container_responses=[api.ContainerAllocateResponse()])

    async def body() -> None:
        manager = DeviceManager(tmp_path / "book", FakeClock(), lambda uids: None, cdi=False)
        manager.book.devices[RESOURCE] = {id: Device(True) for id in "abcd"}
        manager._endpoints[RESOURCE] = SimpleNamespace(  # type: ignore[assignment]
            plugin=SimpleNamespace(devices=SimpleNamespace(Allocate=allocate)), options=api.DevicePluginOptions())
        made = pod(wants("main", 2), wants("more", 1), init=(wants("first", 3), wants("side", 1,
                                                                                     restartPolicy="Always")))
        assert await manager.admit(made, lambda uid: True) is None
        assert calls == [("a", "b", "c"), ("a",), ("b", "c"), ("d",)]
        again = DeviceManager(tmp_path / "book", FakeClock(), lambda uids: None, cdi=False)
        assert again.book.given == manager.book.given and again.book.amounts() == {RESOURCE: (4, 0)}
        other = pod(wants("c", 1), uid="other")
        assert await manager.admit(other, lambda uid: True) == (
            "UnexpectedAdmissionError", "Allocate failed due to requested number of devices unavailable for "
            f"{RESOURCE}. Requested: 1, Available: 0, which is unexpected")
        assert await manager.admit(other, lambda uid: uid == "other") is None
    asyncio.run(body())


def test_a_plugin_that_goes_is_forgotten_unless_another_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[asyncio.Event] = []

    class Plugin:
        """Lists one device, until it is told to end."""

        def __init__(self, path: Path) -> None:
            self.devices = self

        async def __aenter__(self) -> Plugin:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def ListAndWatch(self, request: Any, wait_for_ready: bool) -> Any:  # noqa: N802
            ends.append(asyncio.Event())
            yield api.ListAndWatchResponse(devices=[api.Device(ID="a", health="Healthy")])
            await ends[-1].wait()

    async def body() -> None:
        clock, told = FakeClock(), asyncio.Event()
        manager = DeviceManager(tmp_path / "book", clock, lambda uids: told.set(), cdi=False)

        async def counted(amounts: tuple[int, int]) -> None:
            async with asyncio.timeout(60):
                while manager.book.amounts().get(RESOURCE) != amounts:
                    told.clear()
                    await told.wait()
        async with asyncio.TaskGroup() as group:
            for wait in (200, 301):
                task = group.create_task(manager.follow(RESOURCE, "lab.sock", api.DevicePluginOptions()))
                await counted((1, 1))
                ends[-1].set()
                await counted((1, 0))
                while not manager._gone:  # noqa: ASYNC110 - the next turn of the loop
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                await clock.advance(wait)
                if wait == 200:
                    await counted((1, 0))
            await task
            assert manager.book.amounts() == {RESOURCE: (0, 0)}
    monkeypatch.setattr(manager_module, "Plugin", Plugin)
    asyncio.run(body())


def test_monitoring_is_told_of_cpus_and_devices() -> None:
    class Cpus:
        assignable = frozenset({0, 2})

        def own(self, uid: str, name: str) -> frozenset[int]:
            return frozenset({2}) if (uid, name) == ("u", "c") else frozenset()

    devices = SimpleNamespace(book=Book({RESOURCE: {"a": Device(True, (1,)), "b": Device(False)}},
                                        {"u": {"c": {RESOURCE: Grant(("a",))}}}))
    context: Any = SimpleNamespace(cpus=Cpus(), devices=SimpleNamespace(lent=devices), node=SimpleNamespace(
        claims_file=lambda uid: Path("/nowhere")))
    ended = pod(uid="gone") | {"status": {"phase": "Failed"}}
    asked = PodResources(context, lambda: [pod("c", "d"), ended])

    async def body() -> None:
        listed = (await asked.List(None, None)).pod_resources
        assert [(p.name, [(c.name, list(c.cpu_ids)) for c in p.containers]) for p in listed] == [
            ("p", [("c", [2]), ("d", [])])]
        own = listed[0].containers[0].devices[0]
        assert (own.resource_name, list(own.device_ids), own.topology.nodes[0].ID) == (RESOURCE, ["a"], 1)
        free = await asked.GetAllocatableResources(None, None)
        assert list(free.cpu_ids) == [0, 2] and [list(d.device_ids) for d in free.devices] == [["a"]]
    asyncio.run(body())


def test_amounts_are_quantities() -> None:
    assert Book({RESOURCE: {}}).asked(wants("c", 0) | {"resources": {"limits": {RESOURCE: "1k", "cpu": "1"}}}) == {
        RESOURCE: 1000}


def test_the_node_counts_them_and_leaves_the_judgement_to_their_plugin() -> None:
    host = nodestatus.Host("n1", ("10.0.0.1",), 2, 1 << 30, 1 << 30)
    told = nodestatus.status(host, nodestatus.Health(devices=((RESOURCE, 3, 2),)), "now", {})
    assert (told["capacity"][RESOURCE], told["allocatable"][RESOURCE]) == ("3", "2")
    made = pod(wants("c", 5))
    place = Place("n1", allocatable=told["allocatable"])
    refused = judge(made, [], Place("n1", allocatable=place.allocatable | {"cpu": "2"}))
    assert refused is not None and refused[0] == f"OutOf{RESOURCE}"
    assert judge(made, [], Place("n1", allocatable=place.allocatable, devices=frozenset({RESOURCE}))) is None


@pytest.mark.parametrize(("config", "able"), [
    ('{"containerd": {}}', False), ('{"containerd": {}, "enableCDI": true}', True), ("", True)])
def test_whether_a_runtime_knows_cdi_devices_is_asked(config: str, able: bool) -> None:
    assert injects_devices(config) is able
