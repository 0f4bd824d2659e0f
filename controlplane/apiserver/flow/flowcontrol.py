"""Seats for requests: the thin runner of `fairness` over the stored FlowSchemas and PriorityLevelConfigurations.

Owns the levels in use, the memory of which flow a request belongs to, and the waiting of whoever got no seat. Promises
that a request of an exempt flow passes at no cost, that any other takes one look-up as long as seats are free, that
nobody waits longer than `QUEUE_SECONDS`, and that a changed object counts from the answer to its write. Long-running
requests take no seat. Called by the pipeline; the defaults are made at start.

Upstream: k8s.io/apiserver/pkg/util/flowcontrol/apf_controller.go.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.flow import fairness, flowdefaults
from controlplane.apiserver.flow.fairness import Asked, Level
from controlplane.apiserver.request import Request
from controlplane.apiserver.writing import objectmeta
from controlplane.machinery import objects
from controlplane.machinery.errors import Finding, TooManyRequests
from controlplane.machinery.resources import BUILTIN
from controlplane.store.cache import key_of, prefix_of
from controlplane.store.item import Event
from controlplane.store.log import Stale

LOG = logging.getLogger("apiserver")
SEATS = 600  # ordinary requests at once; upstream's 400 readers and 200 writers
QUEUE_SECONDS = 15.0  # longest wait for a seat: a quarter of a request's time, upstream's rule
MAX_FLOWS = 4096  # remembered classifications, some 400 bytes each
RETRY_AFTER = 1  # seconds an overloaded server asks its clients to wait
SCHEMAS, LEVELS = (f"{plural}.flowcontrol.apiserver.k8s.io" for plural in ("flowschemas",
                                                                           "prioritylevelconfigurations"))
Object = dict[str, Any]


class Flow:
    """Where a kind of request belongs. `trace` holds the header lines that tell the client."""

    __slots__ = ("key", "level", "schema", "trace")

    def __init__(self, level: Level, schema: str, key: str, trace: bytes) -> None:
        self.level = level
        self.schema = schema
        self.key = key
        self.trace = trace


class FlowControl:
    """All levels of one server. Until it finds stored configuration, the built-in one counts."""

    def __init__(self, context: Context, seats: int = SEATS) -> None:
        self._context = context
        self._seats = seats
        self._flows: dict[tuple[Any, ...], Flow] = {}
        self._schemas: list[Object] = []
        self._levels: dict[str, Level] = {}
        self._stale = True
        for resource in (SCHEMAS, LEVELS):
            context.cache.observe(prefix_of(resource), self._changed)

    # --- configuration -----------------------------------------------------------------------------------------

    def _changed(self, _: Event) -> None:
        self._stale = True

    def _load(self) -> None:
        """Take the stored objects as they are now. Requests in flight keep the level they were seated in."""
        self._stale = False
        self._flows.clear()
        cache = self._context.cache
        stored = {resource: [item.obj for item in cache.list(prefix_of(resource))] for resource in (SCHEMAS, LEVELS)}
        self._schemas = sorted(_with(flowdefaults.schemas(), stored[SCHEMAS]).values(), key=fairness.precedence)
        levels = _with(flowdefaults.levels(), stored[LEVELS])
        seats = fairness.shares(levels.values(), self._seats)
        before, self._levels = self._levels, {}
        for name, obj in levels.items():
            made = Level(name, obj.get("spec") or {}, seats.get(name, 0))
            if name in before:
                made.executing = before[name].executing
                made.dispatched, made.rejected = before[name].dispatched, before[name].rejected
            self._levels[name] = made
        for level in before.values():  # they ask again, of the new levels
            for ticket in level.tickets():
                if not ticket.done():
                    ticket.set_result(None)

    def flow(self, request: Request) -> Flow:
        """The flow of an authenticated request."""
        if self._stale:
            self._load()
        user, where = request.user, request.target
        key = (user.name, user.groups, request.verb, where.group, where.plural, where.subresource,
               request.namespace if where.plural else request.path)
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.clear()
            flow = self._flows[key] = self._classify(request)
        return flow

    def _classify(self, request: Request) -> Flow:
        where, user = request.target, request.user
        plural = f"{where.plural}/{where.subresource}" if where.subresource else where.plural
        asked = Asked(user.name, tuple(user.groups), request.verb, where.group, plural,
                      request.namespace if plural else "", "" if plural else request.path)
        schema = fairness.choose(self._schemas, asked) or self._schemas[-1]
        named = (schema["spec"].get("priorityLevelConfiguration") or {}).get("name", "")
        level = self._levels.get(named) or self._levels["catch-all"]
        name = schema["metadata"]["name"]
        configuration = self._context.cache.get(key_of(LEVELS, "", level.name))
        trace = b"".join(b"X-Kubernetes-PF-%b-UID: %b\r\n" % (header, uid.encode()) for header, uid in (
            (b"FlowSchema", schema["metadata"].get("uid", "")),
            (b"PriorityLevel", configuration.obj["metadata"].get("uid", "") if configuration is not None else ""))
            if uid)
        return Flow(level, name, f"{name} {fairness.distinguisher(schema, asked)}", trace)

    # --- seats -------------------------------------------------------------------------------------------------

    async def enter(self, request: Request, flow: Flow) -> Level:
        """A seat in the level that is returned, which must be given back by `leave`. Raises TooManyRequests."""
        deadline = self._context.clock.monotonic() + QUEUE_SECONDS
        while True:
            level = flow.level
            if level.exempt:
                return level
            ticket: asyncio.Future[Level | None] = asyncio.get_running_loop().create_future()
            taken = level.arrive(flow.key, ticket, self._levels.values())
            if taken:
                return level
            if taken is False:
                raise _refused(level, "the queue is full" if level.waiting else "all seats are taken")
            if (seated := await self._wait(level, ticket, deadline)) is not None:
                return seated
            flow = self.flow(request)  # the configuration has changed

    async def _wait(self, level: Level, ticket: asyncio.Future[Level | None], deadline: float) -> Level | None:
        try:
            async with asyncio.timeout(deadline - self._context.clock.monotonic()):
                return await ticket
        except BaseException as error:
            if not level.drop(ticket) and ticket.done() and not ticket.cancelled() and ticket.result() is not None:
                self.leave(level)  # it got the seat in the same moment
            if isinstance(error, TimeoutError):
                raise _refused(level, f"no seat came free within {QUEUE_SECONDS:.0f} s") from None
            raise

    def leave(self, level: Level) -> None:
        """Give a seat back; it goes to whoever's turn it is."""
        if level.exempt:
            return
        level = self._levels.get(level.name, level)
        level.leave()
        if level.waiting:
            self._seat(level)
        elif any(other.waiting for other in self._levels.values()):  # whoever may borrow it
            for other in self._levels.values():
                self._seat(other)

    def _seat(self, level: Level) -> None:
        while (ticket := level.next_ticket(self._levels.values())) is not None:
            if ticket.done():
                level.leave()
            else:
                ticket.set_result(level)

    def levels(self) -> list[Level]:
        """The levels in use, for the metrics."""
        return list(self._levels.values())


def _with(defaults: list[Object], stored: list[Object]) -> dict[str, Object]:
    """The stored objects by name, with the mandatory ones in any case, and all defaults when there are none."""
    kept = [o for o in defaults if not stored or o["metadata"]["name"] in flowdefaults.MANDATORY]
    return {o["metadata"]["name"]: o for o in (*kept, *stored)}


def _refused(level: Level, why: str) -> TooManyRequests:
    LOG.info("refused a request of priority level %s: %s", level.name, why)
    return TooManyRequests("too many requests, please try again later.", {"retryAfterSeconds": RETRY_AFTER})


async def tell(context: Context) -> None:
    """Say in every FlowSchema whether its level exists, for ever. Ends by cancellation, or Closed with the cache."""
    cache, changed = context.cache, asyncio.Event()
    for resource in (SCHEMAS, LEVELS):
        cache.observe(prefix_of(resource), lambda _: changed.set())
    changed.set()
    while True:
        await changed.wait()
        changed.clear()
        names = {item.obj["metadata"]["name"] for item in cache.list(prefix_of(LEVELS))}
        for item in cache.list(prefix_of(SCHEMAS)):
            obj = objects.deep_copy(item.obj)
            level = (obj["spec"].get("priorityLevelConfiguration") or {}).get("name", "")
            said = dangling(obj, context.clock.timestamp(), level in names)
            if objects.set_condition(obj.setdefault("status", {}).setdefault("conditions", []), "Dangling",
                                     said["status"], said["reason"], said["message"], said["lastTransitionTime"]):
                with suppress(Stale, Finding):  # its writer's event follows; a full disk is told to the writers
                    await cache.write(item.key, obj, item.revision)


async def ensure(context: Context) -> None:
    """Store the default objects that are missing, and put back the mandatory ones. Raises Finding."""
    cache, now = context.cache, context.clock.timestamp()
    writes = []
    for right in (*flowdefaults.levels(), *flowdefaults.schemas()):
        resource = BUILTIN.of(right["apiVersion"], right["kind"])
        if resource is None:
            continue
        if right["kind"] == "FlowSchema":
            right["status"] = {"conditions": [dangling(right, now)]}
        key = key_of(resource.name, "", right["metadata"]["name"])
        item = cache.get(key)
        if item is None:
            right["metadata"]["generation"] = 1
            objectmeta.found(resource, right, context.clock.uid(), now)
            writes.append(cache.write(key, right, 0))
        elif right["metadata"]["name"] in flowdefaults.MANDATORY and item.obj.get("spec") != right["spec"]:
            writes.append(cache.write(key, {**item.obj, "spec": right["spec"]}, item.revision))
    async with asyncio.TaskGroup() as group:
        for write in writes:
            group.create_task(write)


def dangling(schema: Object, now: str, found: bool = True) -> Object:
    """The condition that tells whether a schema's level exists."""
    level = schema["spec"]["priorityLevelConfiguration"]["name"]
    text = "and it exists" if found else "but there is no such object"
    return {"type": "Dangling", "status": "False" if found else "True", "lastTransitionTime": now,
            "reason": "Found" if found else "NotFound",
            "message": f'This FlowSchema references the PriorityLevelConfiguration object named "{level}" {text}'}
