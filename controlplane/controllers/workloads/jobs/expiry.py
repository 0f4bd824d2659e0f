"""Finished Jobs go when their time is over.

Owns `spec.ttlSecondsAfterFinished`. Promises to ask the server once more before it deletes, since the time may have
been changed. Sleeps until the next Job is due. Called by `manager`. Upstream: pkg/controller/ttlafterfinished.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import Context, Controller, delete_quietly
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import named

Obj = dict[str, Any]


def due(job: Obj) -> float | None:
    """When (wall seconds) the finished Job shall go; None: not by itself."""
    patience = objects.get(job, "spec.ttlSecondsAfterFinished")
    ends = [one["lastTransitionTime"] for kind in ("Complete", "Failed")
            if objects.holds(job, kind) and (one := objects.condition(job, kind) or {}).get("lastTransitionTime")]
    if patience is None or not ends or objects.deleting(job):
        return None
    return parse_rfc3339(ends[0]) + patience


class FinishedJobs(Controller):
    name = "ttl-after-finished-controller"
    workers = 1

    def __init__(self, context: Context) -> None:
        self.jobs = context.informer(named("jobs.batch"))
        super().__init__(context, self.jobs)
        self.jobs.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and due(new) is not None:
            self.queue.add(objects.key(new))

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        job = self.jobs.get(*key)
        when = due(job) if job is not None else None
        if job is None or when is None:
            return None
        if when > self.clock.now():
            return when - self.clock.now()
        try:
            live = await self.client.get(self.jobs.resource, key[1], key[0])
        except NotFound:
            return None
        when = due(live)
        if when is not None and when <= self.clock.now() and objects.uid(live) == objects.uid(job):
            await delete_quietly(self.client, self.jobs.resource, live, propagation="Foreground",
                                 revision=objects.revision(live))
        return None
