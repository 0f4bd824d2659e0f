import asyncio

from controlplane.apiserver.expiry import TTL, last_seen
from controlplane.machinery.clock import FakeClock, rfc3339, settle
from tests.unit.apiserver.harness import serving

EVENTS = "/api/v1/namespaces/default/events"


def event(name, when):
    return {"metadata": {"name": name, "namespace": "default"}, "lastTimestamp": rfc3339(when), "reason": "R",
            "type": "Normal", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}}


def test_an_event_that_happens_again_lives_on():
    old = {"metadata": {"creationTimestamp": rfc3339(100)}, "lastTimestamp": rfc3339(900), "eventTime": None}
    assert last_seen(old) == 900
    assert last_seen({**old, "lastTimestamp": "nonsense"}) == 100


def test_events_go_after_an_hour_and_an_idle_cluster_sleeps():
    async def main():
        clock = FakeClock()
        async with serving(clock=clock) as api:
            await settle()
            assert len(clock._sleepers) <= 1  # the store's, at most: nothing of ours waits for a time
            await api.made(EVENTS, event("a", clock.now()))
            await api.made(EVENTS, event("b", clock.now() + 1800))
            await settle()
            await clock.advance(TTL - 10)
            assert len((await api.call("GET", EVENTS))[1]["items"]) == 2
            await clock.advance(70)
            left = (await api.call("GET", EVENTS))[1]["items"]
            assert [e["metadata"]["name"] for e in left] == ["b"]
    asyncio.run(main())


def test_the_kubernetes_service_comes_back():
    async def main():
        async with serving() as api:
            path = "/api/v1/namespaces/default/services"
            async with api.watching(path + "?watch=1&fieldSelector=metadata.name%3Dkubernetes") as seen:
                assert (await seen.next())[0] == "ADDED"
                await api.call("DELETE", path + "/kubernetes")
                assert [kind for kind, _ in await seen.take(2)] == ["DELETED", "ADDED"]
            status, error = await api.call("POST", path, {"metadata": {"name": "t"}, "spec": {
                "clusterIP": "10.96.0.1", "ports": [{"port": 1}]}})
            assert status == 422 and "already allocated" in error["message"], error
    asyncio.run(main())
