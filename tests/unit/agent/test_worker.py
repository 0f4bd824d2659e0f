"""A worker decides by looks that are newer than its own work, whatever the runtime takes to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent.kubelet import plan
from agent.kubelet.model import ObservedPod
from agent.kubelet.specs import Node
from agent.kubelet.worker import Worker
from controlplane.machinery.clock import SYSTEM
from tests.unit.agent.pods import box, pod, seen, up


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
    async def patch(self, resource: Any, name: str, body: dict[str, Any], *rest: Any, **more: Any) -> dict[str, Any]:
        return pod("c") | {"status": body["status"]}


class Steps:
    """Starts end when `done` says so; what was asked for is kept."""

    def __init__(self, runtime: SlowRuntime) -> None:
        self.runtime, self.started, self.removed = runtime, list[str](), list[str]()
        self.done, self.renew_at = asyncio.Event(), 0.0

    async def start(self, action: plan.StartContainer) -> None:
        self.started.append(action.name)
        await self.done.wait()
        self.runtime.now = seen(box(), up("c"))

    async def remove_container(self, id: str) -> None:
        self.removed.append(id)

    def drop(self) -> None:
        pass


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for has no event; each turn lets all others run
        await asyncio.sleep(0)


def test_a_container_that_was_being_started_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    async def body() -> None:
        runtime = SlowRuntime()
        context = SimpleNamespace(
            node=Node("n1", ("10.0.0.1",), tmp_path, tmp_path), runtime=runtime, client=Client(), clock=SYSTEM,
            checks=None, probing=asyncio.Semaphore(1), others=lambda uid: [], place=lambda: None,
            tell=lambda *arguments: None)
        worker = Worker(context, pod("c"), seen(box()))  # type: ignore[arg-type]
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
