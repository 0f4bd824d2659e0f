"""Keys: never twice at once, never forgotten, slower with each failure."""

import asyncio
import itertools

from controlplane.client.queue import BACKOFF_LIMIT, WorkQueue
from controlplane.machinery.clock import FakeClock, settle


async def started(queue, handler, workers=3):
    task = asyncio.create_task(queue.run(handler, workers))
    await settle()
    return task


async def stop(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_one_at_a_time_per_key_and_again_when_dirty():
    async def main():
        running, log, gate = set(), [], asyncio.Event()

        async def handler(key):
            assert key not in running
            running.add(key)
            log.append(key)
            await gate.wait()
            running.discard(key)
        queue = WorkQueue(FakeClock())
        task = await started(queue, handler)
        for key in ("a", "a", "b"):
            queue.add(key)
        await settle()
        queue.add("a")
        queue.add("a")
        await settle()
        assert log == ["a", "b"]
        gate.set()
        await settle()
        assert log == ["a", "b", "a"] and queue.idle
        await stop(task)
    asyncio.run(main())


def test_back_off_grows_to_its_limit_and_ends_with_success():
    async def main():
        clock, tries, well = FakeClock(), [], False

        async def handler(key):
            tries.append(clock.monotonic())
            if not well:
                raise ValueError("not yet")
        queue = WorkQueue(clock)
        queue.add("k")
        task = await started(queue, handler)
        await clock.advance(600)
        gaps = [b - a for a, b in itertools.pairwise(tries)]
        assert gaps[0] < 0.02 and max(gaps) <= BACKOFF_LIMIT * 1.1 and gaps[-1] >= BACKOFF_LIMIT
        well = True
        await clock.advance(BACKOFF_LIMIT * 1.1)
        assert queue.failures("k") == 0
        count = len(tries)
        await clock.advance(1000)
        assert len(tries) == count
        await stop(task)
    asyncio.run(main())


def test_the_earliest_deadline_counts():
    async def main():
        clock, done = FakeClock(), []

        async def handler(key):
            done.append((key, clock.monotonic() - start))
            return 5.0 if key == "again" and clock.monotonic() - start < 10 else None
        start = clock.monotonic()
        queue = WorkQueue(clock)
        task = await started(queue, handler)
        queue.add_after("late", 100)
        await settle()
        queue.add_after("late", 10)
        queue.add_after("late", 50)
        queue.add("again")
        await settle()
        await clock.advance(200)
        assert sorted(done) == [("again", 0), ("again", 5), ("again", 10), ("late", 10)]
        await stop(task)
    asyncio.run(main())
