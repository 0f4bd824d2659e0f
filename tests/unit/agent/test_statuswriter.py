"""The last status offered arrives, also one that is offered while another is on its way."""

import asyncio

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
