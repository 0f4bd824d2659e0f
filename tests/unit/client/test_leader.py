"""The Lease: one leader, a dead one is replaced, a lost one stops."""

import asyncio

import pytest

from controlplane.client import leader
from controlplane.client.leader import LEASE_SECONDS, Elector, Lost, is_dead, own_identity
from controlplane.machinery.clock import FakeClock
from tests.unit.client.fakeserver import serving, until


async def advance_until(clock, condition, limit=200):
    for _ in range(limit):
        if condition():
            return
        await clock.advance(1)
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_second_candidate_waits_for_the_lease_to_run_out():
    async def main():
        clock = FakeClock()
        async with serving(clock) as (server, client):
            leading = []

            async def work(name):
                leading.append(name)
                await asyncio.Event().wait()
            first = asyncio.create_task(Elector(client, "l", identity="one").lead(lambda: work("one")))
            await until(lambda: leading == ["one"])
            second = asyncio.create_task(Elector(client, "l", identity="two").lead(lambda: work("two")))
            for _ in range(LEASE_SECONDS * 2):
                await clock.advance(1)
                await asyncio.sleep(0.003)
            assert leading == ["one"]
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            released = clock.monotonic()
            await advance_until(clock, lambda: leading == ["one", "two"])
            assert clock.monotonic() - released < LEASE_SECONDS  # it was given back
            path = next(p for p in server.objects if "/leases/" in p)
            assert server.objects[path]["spec"]["leaseTransitions"] == 1
            stolen = {**server.objects[path], "spec": {**server.objects[path]["spec"], "holderIdentity": "three"}}
            await server.put(path, stolen)
            await advance_until(clock, second.done)
            with pytest.raises(Lost):
                await second
    asyncio.run(main())


def test_a_killed_predecessor_is_seen_to_be_dead():
    mine = own_identity()
    host, space, pid, _ = mine.rsplit("_", 3)
    assert not is_dead(mine, mine)
    assert is_dead(f"{host}_{space}_{pid}_1", mine)  # the pid lives, but it is another process
    assert not is_dead(f"elsewhere_{space}_{pid}_1", mine) and not is_dead("somebody", mine)
    assert leader.RENEW_DEADLINE_SECONDS + leader.ATTEMPT_SECONDS < LEASE_SECONDS
