"""A worker decides by looks that are newer than its own work, whatever the runtime takes to answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.kubelet import plan
from agent.kubelet.cri.runtime import Unreachable
from agent.kubelet.devices.devices import Devices
from agent.kubelet.model import ObservedPod, RuntimeEvent
from agent.kubelet.specs import Node
from agent.kubelet.worker import RELEASE, Worker
from controlplane.machinery.clock import SYSTEM, Clock
from tests.unit.agent.pods import box, down, pod, seen, up


class SlowRuntime:
    """Says what was true when it was asked, and answers when `gate` lets it."""

    def __init__(self) -> None:
        self.now = seen(box(), up("c", state="created"))
        self.gate, self.asked = asyncio.Event(), asyncio.Event()
        self.looks = 0

    async def observe(self, uid: str) -> dict[str, ObservedPod]:
        self.looks += 1
        told = self.now
        self.asked.set()
        await self.gate.wait()
        return {uid: told}


class Client:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    async def patch(self, resource: Any, name: str, body: dict[str, Any], *rest: Any, **more: Any) -> dict[str, Any]:
        self.told.append(body["status"])
        return pod("c") | {"status": body["status"]}


class Steps:
    """Starts end when `done` says so; what was asked for is kept."""

    def __init__(self, runtime: SlowRuntime) -> None:
        self.runtime, self.started, self.removed = runtime, list[str](), list[str]()
        self.done, self.renew_at, self.images, self.making = asyncio.Event(), 0.0, dict[str, str](), set[str]()

    async def start(self, action: plan.StartContainer) -> None:
        self.started.append(action.name)
        await self.done.wait()
        self.runtime.now = seen(box(), up("c"))

    async def remove_container(self, id: str) -> None:
        self.removed.append(id)

    def drop(self) -> None:
        pass

    def look(self, observed: ObservedPod) -> None:
        pass


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for has no event; each turn lets all others run
        await asyncio.sleep(0)


def context(folder: Path, runtime: SlowRuntime, client: Client) -> Any:
    node = Node("n1", ("10.0.0.1",), folder, folder)
    return SimpleNamespace(node=node, runtime=runtime, client=client, clock=SYSTEM, checks=None, ends=Counter(),
                           devices=Devices(node, client, SYSTEM), probing=asyncio.Semaphore(1),  # type: ignore[arg-type]
                           others=lambda uid: [], place=lambda: None, tell=lambda *arguments: None)


def test_a_container_that_was_being_started_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    async def body() -> None:
        runtime = SlowRuntime()
        worker = Worker(context(tmp_path, runtime, Client()), pod("c"), seen(box()))
        steps = Steps(runtime)
        worker.steps = steps  # type: ignore[assignment]
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(10):
            await until(lambda: bool(steps.started))
            worker.look()  # an event: the runtime is asked, and says "created"
            await runtime.asked.wait()
            steps.done.set()  # the start ends before the answer is there
            await until(lambda: "c" not in worker._tasks)
            runtime.gate.set()
            await until(lambda: [c.state for c in worker.seen.containers] == ["running"]
                        and not worker._tasks)
        assert steps.started == ["c"] and not steps.removed and runtime.looks == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    asyncio.run(body())


def test_a_container_is_not_called_running_before_its_hook_has_run(tmp_path: Path) -> None:
    async def body() -> None:
        runtime, client, hooked = SlowRuntime(), Client(), pod("c")
        runtime.now = seen(box(), up("c"))
        runtime.gate.set()
        hooked["spec"]["containers"][0]["lifecycle"] = {"postStart": {"exec": {"command": ["true"]}}}
        worker = Worker(context(tmp_path, runtime, client), hooked, seen(box()))
        steps = Steps(runtime)
        worker.steps = steps  # type: ignore[assignment]
        running = asyncio.create_task(worker.run())

        def states() -> list[str]:
            return [next(iter(s["state"])) for told in client.told for s in told.get("containerStatuses") or ()]
        async with asyncio.timeout(10):
            await until(lambda: bool(steps.started))
            worker.hear(RuntimeEvent(worker.uid, "oom"))  # of some other process: the runtime is asked
            await until(lambda: bool(worker.seen.containers))
            assert "running" not in states()
            steps.done.set()
            await until(lambda: "running" in states())
            worker._tasks[plan.SANDBOX] = running  # its sandbox is being ended: that call's return tells
            looks = runtime.looks
            worker.hear(RuntimeEvent(worker.uid, "changed"))
            assert not worker._look and runtime.looks == looks
            del worker._tasks[plan.SANDBOX]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    asyncio.run(body())


@pytest.mark.parametrize("making", [True, False])
def test_a_start_is_given_up_unless_the_runtime_is_at_it(tmp_path: Path, making: bool) -> None:
    async def body() -> None:
        runtime = SlowRuntime()
        worker = Worker(context(tmp_path, runtime, Client()), pod("c"), seen(box()))
        steps = Steps(runtime)
        worker.steps = steps  # type: ignore[assignment]
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(10):
            await until(lambda: bool(steps.started))
            start = worker._tasks["c"]
            steps.making = {"c"} if making else set()
            worker.update(pod("c", deletionTimestamp="2023-11-14T22:13:20Z", deletionGracePeriodSeconds=1))
            await until(lambda: bool(worker._ending_since))
            assert bool(start.cancelling()) is not making
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    asyncio.run(body())


@pytest.mark.parametrize("away", ["observe", "stop_container", "remove_sandbox"])
def test_what_holds_up_a_deletion_is_in_the_pods_events(tmp_path: Path, away: str) -> None:
    """Whatever the runtime does not do: look, stop a container, remove the sandbox."""
    events: list[tuple[str, ...]] = []

    async def fails(*arguments: Any) -> Any:
        raise Unreachable("connection refused")

    async def body() -> None:
        runtime = SlowRuntime()
        runtime.gate.set()
        runtime.now = seen(box(), up("c")) if away == "stop_container" else seen(box(), down("c"))
        setattr(runtime, away, fails)
        around = context(tmp_path, runtime, Client())
        around.tell = lambda pod, *told: events.append(told)
        leaving = pod("c", deletionTimestamp="2023-11-14T22:13:20Z", deletionGracePeriodSeconds=1)
        worker = Worker(around, leaving, runtime.now)
        worker.look()
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(10):
            await until(lambda: ("Warning", "FailedKillPod", "error killing pod: connection refused") in events)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    asyncio.run(body())


def test_who_waits_for_a_pods_end_hears_of_it_without_looking(tmp_path: Path) -> None:
    """First that nothing of it runs, then that its volumes are given back: no clock has to tick for it."""
    class Still(Clock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    async def body() -> None:
        runtime, ends, unmounted = SlowRuntime(), asyncio.Event(), asyncio.Event()
        runtime.gate.set()
        runtime.now = seen(box(), up("c"))

        async def stop_container(id: str, grace: float) -> None:
            await ends.wait()
            runtime.now = seen(box(), down("c"))

        async def stop_sandbox(id: str) -> None:
            runtime.now = seen(box(ready=False), down("c"))

        async def tear_down(uid: str, *, whole: bool) -> None:
            await unmounted.wait()
        runtime.stop_container, runtime.stop_sandbox = stop_container, stop_sandbox  # type: ignore[attr-defined]
        around = context(tmp_path, runtime, Client())
        around.clock, around.volumes = Still(), SimpleNamespace(release=lambda uid: None, tear_down=tear_down)
        worker = Worker(around, pod("c"), runtime.now)
        running = asyncio.create_task(worker.run())
        stopped, emptied = asyncio.create_task(worker.stopped()), asyncio.create_task(worker.emptied())
        worker.doom("Preempting", "")
        async with asyncio.timeout(10):
            await until(lambda: bool(worker._kills))
            assert not stopped.done()
            ends.set()
            await stopped
            await until(lambda: RELEASE in worker._tasks)
            assert not emptied.done()
            unmounted.set()
            await emptied
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    asyncio.run(body())
