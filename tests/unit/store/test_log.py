"""One suite for every log: whatever keeps it, it promises the same."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from controlplane.store.log import Change, Compacted, Entry, Log, Stale
from controlplane.store.memory import MemoryLog
from controlplane.store.sqlite import SqliteLog


@pytest.fixture(params=["memory", "sqlite"])
def make(request, tmp_path) -> Callable[[], Log]:
    return MemoryLog if request.param == "memory" else lambda: SqliteLog(tmp_path / "store" / "log.db")


def run(make: Callable[[], Log], scenario: Callable[[Log, list[Change]], Awaitable[None]]) -> None:
    async def main() -> None:
        seen: list[Change] = []
        log = make()
        await log.open(seen.extend)
        try:
            await asyncio.wait_for(scenario(log, seen), 20)
        finally:
            await log.close()
    asyncio.run(main())


def test_writes_are_numbered_checked_and_followed_before_they_are_answered(make):
    async def scenario(log, seen):
        first = await log.write("pods/a", b"1", 0)
        assert first == Change(1, "pods/a", b"1", None) and seen == [first] and log.revision == 1
        second = await log.write("pods/a", b"2", 1)
        assert second.previous == first.entry and second.entry == Entry("pods/a", b"2", 2, 1)
        for value, expect in ((b"3", 0), (b"3", 1), (None, 1)):
            with pytest.raises(Stale) as stale:
                await log.write("pods/a", value, expect)
            assert stale.value.current == second.entry
        assert (await log.write("pods/a", b"3", None)).revision == 3
        gone = await log.write("pods/a", None, 3)
        assert gone.value is None and gone.entry is None and gone.previous.value == b"3"
        with pytest.raises(Stale) as stale:
            await log.write("pods/a", None, None)
        assert stale.value.current is None
        again = await log.write("pods/a", b"4", 0)
        assert again.entry.created == again.revision == 5
        assert [change.revision for change in seen] == [1, 2, 3, 4, 5]
    run(make, scenario)


def test_of_many_writers_at_once_exactly_one_wins_each_revision(make):
    async def scenario(log, seen):
        async def increment() -> int:
            lost = 0
            while True:
                current = next((c.entry for c in reversed(seen) if c.key == "n/x"), None)
                value = str(int(current.value) + 1 if current else 1).encode()
                try:
                    await log.write("n/x", value, current.revision if current else 0)
                    return lost
                except Stale:
                    lost += 1
        await asyncio.gather(*(increment() for _ in range(20)))
        assert seen[-1].value == b"20" and [c.revision for c in seen] == list(range(1, 21))
    run(make, scenario)


def test_a_cancelled_writer_does_not_disturb_the_order(make):
    async def scenario(log, seen):
        tasks = [asyncio.ensure_future(log.write(f"n/{i}", b"x", 0)) for i in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        last = await log.write("n/last", b"x", 0)
        assert seen[-1] == last and [c.revision for c in seen] == list(range(1, last.revision + 1))
    run(make, scenario)


def test_history_can_be_read_until_it_is_compacted(make):
    async def scenario(log, seen):
        await log.write("pods/a", b"1", 0)
        await log.write("pods/b", b"1", 0)
        await log.write("nodes/n", b"1", 0)
        await log.write("pods/a", b"2", None)
        await log.write("pods/b", None, None)
        await log.write("pods/c", b"1", 0)
        assert [(e.key, e.value, e.revision, e.created) for e in await log.at("pods/", 4)] == [
            ("pods/a", b"2", 4, 1), ("pods/b", b"1", 2, 2)]
        assert [e.key for e in await log.at("", 3)] == ["nodes/n", "pods/a", "pods/b"]
        assert await log.since("pods/", 1) == [c for c in seen if c.revision > 1 and c.key.startswith("pods/")]
        await log.compact(4)
        assert log.compacted == 4
        assert [e.value for e in await log.at("pods/", 4)] == [b"2", b"1"]
        assert await log.since("", 4) == seen[4:]
        for read in (log.at, log.since):
            with pytest.raises(Compacted) as gone:
                await read("pods/", 3)
            assert gone.value.floor == 4
        await log.compact(6)
        assert [e.key for e in await log.at("", 6)] == ["nodes/n", "pods/a", "pods/c"]
        assert (await log.write("pods/a", b"3", 4)).previous == Entry("pods/a", b"2", 4, 1)
    run(make, scenario)


def test_keys_sort_and_match_as_bytes(make):
    async def scenario(log, seen):
        keys = ["p/a", "p/a-b", "p/a.b", "p/a/b", "p/ab", "p/é", "p/\U0001f600", "q/a"]
        for key in reversed(keys):
            await log.write(key, b"x", 0)
        assert [e.key for e in await log.at("p/", log.revision)] == sorted(keys[:-1])
        assert [e.key for e in await log.at("p/a", log.revision)] == sorted(keys[:5])
    run(make, scenario)
