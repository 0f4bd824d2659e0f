"""Few starts at once: containers first, whoever hangs gives way, and whoever gives up leaves no gap."""

from __future__ import annotations

import asyncio

from agent.kubelet.cri.turns import CONTAINER, LEAST, PATIENCE_SECONDS, SANDBOX, Turns
from controlplane.machinery.clock import FakeClock


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Starts:
    """Starts that end when they are let go, in the order in which they got their turn."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.turns = Turns(self.clock, 1)
        self.began: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def ask(self, name: str, kind: int = SANDBOX) -> None:
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name, kind))

    async def _work(self, name: str, kind: int) -> None:
        async with self.turns.turn(kind):
            self.began.append(name)
            await self.ends[name].wait()

    async def all(self) -> None:
        for end in self.ends.values():
            end.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


def test_containers_go_before_sandboxes_and_a_start_that_hangs_gives_way() -> None:
    async def body() -> None:
        starts = Starts()
        first = [f"s{n}" for n in range(LEAST)]
        for name in first:
            starts.ask(name)
        starts.ask("later")
        starts.ask("given up", CONTAINER)
        starts.ask("container", CONTAINER)
        await settle()
        assert starts.began == first
        starts.tasks["given up"].cancel()
        starts.ends["s0"].set()
        await settle()
        assert starts.began == [*first, "container"]
        await starts.clock.advance(PATIENCE_SECONDS)  # nobody ends, and yet the next one's turn comes
        await settle()
        assert starts.began == [*first, "container", "later"]
        await starts.all()
        again = [f"t{n}" for n in range(LEAST + 1)]  # as many turns as before, neither more nor fewer
        for name in again:
            starts.ask(name)
        await settle()
        assert starts.began[-LEAST:] == again[:LEAST]
        await starts.all()
    asyncio.run(body())


def test_a_turn_given_to_one_who_gives_up_in_that_moment_is_not_lost() -> None:
    async def body() -> None:
        starts = Starts()
        for n in range(LEAST):
            starts.ask(f"s{n}")
        starts.ask("unlucky")
        starts.ask("next")
        await settle()
        starts.ends["s0"].set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        starts.tasks["unlucky"].cancel()
        await settle()
        assert "next" in starts.began
        await starts.all()
    asyncio.run(body())
