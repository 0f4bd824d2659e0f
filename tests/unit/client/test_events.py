"""Events: repeats are counted, floods are bounded, nothing ever raises."""

import asyncio

from controlplane.client import events
from controlplane.client.events import BURST, COMBINED, Correlator, Recorder
from tests.unit.client.fakeserver import serving, status
from tests.unit.client.test_rest import pod


def told(server):
    return [o for path, o in server.objects.items() if "/events/" in path]


def test_repeats_raise_the_count():
    async def main():
        async with serving() as (server, client):
            recorder = Recorder(client, "tester", "node-1")
            task = asyncio.create_task(recorder.run())
            for _ in range(3):
                recorder.event(pod("x"), "Warning", "Failed", "no such thing", {"why": "it is gone"})
            await recorder.drained()
            (event,) = told(server)
            assert event["metadata"]["annotations"] == {"why": "it is gone"}
            assert event["count"] == 3 and event["metadata"]["namespace"] == "a"
            assert event["source"] == {"component": "tester", "host": "node-1"}
            await server.put(next(p for p in server.objects if "/events/" in p), event, "DELETED")
            recorder.event(pod("x"), "Warning", "Failed", "no such thing")
            server.failures = []
            await recorder.drained()
            assert told(server)[0]["count"] == 1
            server.failures = [status(403, "Forbidden", "namespace is being terminated")]
            recorder.event(pod("x"), "Normal", "Other", "y")
            recorder.event(None, "Normal", "Broken", "z")
            await recorder.drained()
            assert recorder.dropped == 2 and not task.done()
            task.cancel()
    asyncio.run(main())


def test_a_full_queue_drops_and_counts(monkeypatch):
    async def main():
        async with serving() as (_, client):
            recorder = Recorder(client, "tester")
            for number in range(events.QUEUE_LIMIT + 5):
                recorder.event(pod("x"), "Normal", "R", str(number))
            assert recorder.dropped == 5
    asyncio.run(main())


def test_floods_are_muted_and_combined():
    correlator = Correlator()
    assert sum(correlator.allow("uid", 0.0) for _ in range(100)) == BURST
    assert not correlator.allow("uid", 100.0) and correlator.allow("uid", 700.0)
    wordings = [correlator.wording(("uid", "R"), f"message {n}", 0.0) for n in range(12)]
    assert wordings[9] == ("message 9", "message 9")
    assert wordings[10] == (COMBINED, COMBINED + "message 10") and wordings[11][0] == COMBINED
