"""The Lease: one leader, a dead one is replaced, a lost one stops."""

import asyncio

import pytest

from controlplane.client import leader
from controlplane.client.leader import LEASE_SECONDS, Elector, Lost, is_dead, own_identity
from controlplane.machinery.clock import FakeClock
from tests.unit.client.fakeserver import answered, serving, until


async def advance(client, seconds, until=lambda: False):
    """Move on second by second, each when all requests of the last one have their answer; whether it came true."""
    for _ in range(seconds):
        if until():
            return True
        await client.clock.advance(1)
        await answered(client)
    return until()


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
            await advance(client, LEASE_SECONDS * 2)
            assert leading == ["one"]
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            released = clock.monotonic()
            assert await advance(client, LEASE_SECONDS * 3, lambda: leading == ["one", "two"])
            assert clock.monotonic() - released < LEASE_SECONDS  # it was given back
            path = next(p for p in server.objects if "/leases/" in p)
            assert server.objects[path]["spec"]["leaseTransitions"] == 1
            stolen = {**server.objects[path], "spec": {**server.objects[path]["spec"], "holderIdentity": "three"}}
            await server.put(path, stolen)
            assert await advance(client, LEASE_SECONDS * 3, second.done)
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
