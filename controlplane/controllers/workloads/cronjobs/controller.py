"""CronJobs: start a Job whenever it is time.

Runs `runs`' plans. Promises that a scheduled time is served once, also when we die between the Job and the status:
the Job's name is its time, and one that is there already is taken for the one we made. Sleeps until the next time that
is due. Called by `manager`. Upstream: pkg/controller/cronjob.
"""

from __future__ import annotations

import os
from datetime import UTC, tzinfo
from functools import lru_cache
from typing import Any

from controlplane.controllers.runtime import (
    STALE_SECONDS,
    Context,
    Controller,
    by_controller,
    delete_quietly,
    set_status,
)
from controlplane.controllers.workloads.cronjobs import runs
from controlplane.machinery import objects
from controlplane.machinery.errors import AlreadyExists, ApiError
from controlplane.machinery.resources import named

ZONES = 64  # time zones remembered: clusters use a handful

Obj = dict[str, Any]
Key = tuple[str, str]


@lru_cache(ZONES)
def zone_of(name: str) -> tzinfo | None:
    """The time zone, "" for the host's; None when there is no such."""
    import zoneinfo  # here: most clusters have no CronJob
    if not name:
        name = os.environ.get("TZ", "").removeprefix(":")
        if not name:
            try:
                with open("/etc/localtime", "rb") as file:
                    return zoneinfo.ZoneInfo.from_file(file)
            except (OSError, ValueError):
                return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return UTC if name == "UTC" else None


class CronJobs(Controller):
    name = "cronjob-controller"

    def __init__(self, context: Context) -> None:
        self.crons = context.informer(named("cronjobs.batch"))
        self.jobs = context.informer(named("jobs.batch"), controller=by_controller)
        super().__init__(context, self.crons, self.jobs)
        self.crons.subscribe(self._cron_changed)
        self.jobs.subscribe(self._job_changed)

    def _cron_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self.pending.forget(objects.key(new))
            self.pending.forget(("status", objects.key(new)))
        else:
            self.queue.add(objects.key(new))

    def _job_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        owner = objects.controller_of(new)
        if owner is not None and owner.get("kind") == "CronJob":
            self.queue.add((objects.namespace(new), owner["name"]))

    async def reconcile(self, key: Key) -> float | None:
        cron = self.crons.get(*key)
        if cron is None:
            return None
        if not (self.pending.settled(key, self.jobs) and self.pending.settled(("status", key), self.crons)):
            return STALE_SECONDS
        children = self.jobs.by("controller", objects.uid(cron))
        plan = runs.observe(cron, children)
        if not objects.deleting(cron) and not objects.get(cron, "spec.suspend"):
            self._decide(cron, children, plan)
        error = await self._apply(key, cron, plan)
        for event in plan.events:
            self.recorder.event(cron, *event)
        written = await set_status(self.client, self.crons.resource, cron, plan.status)
        self.pending.wrote(("status", key), written)
        if error is not None:
            raise error
        return plan.wake

    def _decide(self, cron: Obj, children: list[Obj], plan: runs.Plan) -> None:
        from controlplane.machinery import cron as grammar
        text, place = objects.get(cron, "spec.schedule", ""), objects.get(cron, "spec.timeZone", "")
        zone = zone_of(place)
        if zone is None:
            plan.events.append(("Warning", "UnknownTimeZone", f"invalid timeZone: {place}: unknown time zone {place}"))
            return
        try:
            schedule = grammar.parse(text)
        except ValueError as error:
            plan.events.append(("Warning", "UnparseableSchedule", f"unparseable schedule: {text} : {error}"))
            return
        runs.decide(cron, children, schedule, zone, self.clock.now(), plan)

    async def _apply(self, key: Key, cron: Obj, plan: runs.Plan) -> ApiError | None:
        """The error that kept the new Job from being made."""
        for job in (*plan.forget, *plan.replace):
            if await delete_quietly(self.client, self.jobs.resource, job, propagation="Background"):
                plan.events.append(("Normal", "SuccessfulDelete", f"Deleted job {objects.name(job)}"))
            self.pending.deleted(key, job)
        if plan.create is None:
            return None
        try:
            made = await self._create(cron, plan.create)
        except ApiError as error:
            plan.events.append(("Warning", "FailedCreate", f"Error creating job: {error.message}"))
            return error
        self.pending.wrote(key, made)
        plan.events.append(("Normal", "SuccessfulCreate", f"Created job {objects.name(made)}"))
        runs.started(plan.status, made, plan.due)
        return None

    async def _create(self, cron: Obj, job: Obj) -> Obj:
        try:
            return await self.client.create(self.jobs.resource, job)
        except AlreadyExists:
            found = await self.client.get(self.jobs.resource, objects.name(job), objects.namespace(job))
            if (objects.controller_of(found) or {}).get("uid") != objects.uid(cron):
                raise
            return found
