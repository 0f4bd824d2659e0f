"""The last status offered arrives, also one that is offered while another is on its way."""

import asyncio

from agent.kubelet.reporting import statuswriter
from agent.kubelet.reporting.status import urgent
from agent.kubelet.reporting.statuswriter import StatusWriter
from controlplane.machinery.clock import FakeClock


class Api:
    """Takes patches; holds the first until it is let go."""

    def __init__(self):
        self.statuses = []
        self.arrived, self.go = asyncio.Event(), asyncio.Event()

    async def patch(self, resource, name, body, namespace, subresource):
        self.statuses.append(body["status"])
        self.arrived.set()
        await self.go.wait()
        return {"metadata": {"resourceVersion": str(10 + len(self.statuses))}, "status": dict(body["status"])}


def test_preparations_wait_for_the_running_pod_and_nothing_else_waits(monkeypatch):
    monkeypatch.setattr(statuswriter, "LINGER_SECONDS", 60.0)

    def status(state, phase="Pending", **more):
        return {"phase": phase, "containerStatuses": [{"name": "c", "ready": False, "state": {state: {}}}], **more}
    assert not urgent({}, status("waiting")) and not urgent(status("waiting"), status("waiting", podIP="10.0.0.1"))
    assert urgent(status("waiting"), status("running")) and urgent(status("running"), status("terminated"))
    assert urgent(status("running"), status("running", "Running"))

    async def main():
        api = Api()
        api.go.set()
        async with asyncio.TaskGroup() as group:
            pod = {"metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "1"}}
            writer = StatusWriter(api, FakeClock(), pod, lambda work, name: group.create_task(work, name=name))
            writer.offer(status("waiting"))
            await asyncio.sleep(0)
            writer.offer(status("waiting", podIP="10.0.0.1"))
            await asyncio.sleep(0)
            assert not api.statuses
            writer.offer(status("running", "Running", podIP="10.0.0.1"))
            async with asyncio.timeout(5):
                await api.arrived.wait()
        assert [s["phase"] for s in api.statuses] == ["Running"]
    asyncio.run(main())


def test_a_status_offered_meanwhile_is_sent_too():
    async def main():
        api = Api()
        async with asyncio.TaskGroup() as group:
            pod = {"metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "1"}}
            writer = StatusWriter(api, FakeClock(), pod, lambda work, name: group.create_task(work, name=name))
            writer.offer({"phase": "Pending"})
            await api.arrived.wait()
            writer.offer({"phase": "Running"})
            api.go.set()
            async with asyncio.timeout(5):
                await writer.settled()
        assert api.statuses[-1]["phase"] == "Running"
    asyncio.run(main())


def test_what_others_write_while_a_status_waits_stays(monkeypatch):
    """A node that comes back hears of its pods' evictions while it has a status of them in hand."""
    monkeypatch.setattr(statuswriter, "LINGER_SECONDS", 60.0)
    ready, target = {"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "True", "reason": "X"}
    claims = [{"name": "c", "resourceClaimName": "c-1"}]

    async def main():
        api = Api()
        api.go.set()
        async with asyncio.TaskGroup() as group:
            pod = {"metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "1"}}
            writer = StatusWriter(api, FakeClock(), pod, lambda work, name: group.create_task(work, name=name))
            writer.offer({"phase": "Running", "conditions": [ready]})
            writer.learn({"metadata": {"resourceVersion": "2"},
                          "status": {"conditions": [{**ready, "status": "False"}, target],
                                     "resourceClaimStatuses": claims}})
            assert writer.current["conditions"] == [ready, target]
            assert writer.current["resourceClaimStatuses"] == claims
            async with asyncio.timeout(5):
                await writer.settled()
        assert [s["conditions"] for s in api.statuses] == [[ready]], "told is only what is ours"
        assert "resourceClaimStatuses" not in api.statuses[0]
    asyncio.run(main())
