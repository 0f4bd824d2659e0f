"""Events: what a component tells people about an object.

Owns the counting of repeats and the patience of the server's disk. Promises never to raise, block or grow: a repeat
raises `count` of the Event that exists, many events alike become one, an object that talks too much is muted for a
while, and what does not fit the queue is dropped and counted. Never decides anything by an Event. Called by the
controllers, the scheduler and the node agent; `run` must be running for anything to reach the server.

Upstream: k8s.io/client-go/tools/record (EventCorrelator).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from controlplane.client.rest import Client, Unreachable
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named

EVENTS = named("events")
log = logging.getLogger(__name__)

QUEUE_LIMIT = 1000  # events waiting for the server: minutes of a busy node; older news is worth more than newer
REMEMBERED = 4096  # distinct events whose counts are kept: upstream's cache size
BURST = 25  # events one object may emit at once,
REFILL_SECONDS = 300.0  # and then one more in this time: upstream's bounds
SIMILAR_LIMIT = 10  # events that differ in their message only, within
SIMILAR_SECONDS = 600.0  # this time, before they are combined into one
TRIES = 12  # sendings of one event while the server is away,
RETRY_SECONDS = 10.0  # this far apart: upstream's two minutes
MESSAGE_LIMIT = 1024  # bytes of a message the server accepts
COMBINED = "(combined from similar events): "

Obj = dict[str, Any]
Key = tuple[str, ...]
Notes = dict[str, str]  # annotations of an event


@dataclass(slots=True)
class _Told:
    """An Event on the server: its name and how often it has been told."""

    name: str
    count: int
    first: str


class Correlator:
    """Decides, without I/O, what becomes of an event: mute it, combine it, or count it. Time is monotonic seconds."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # uid -> (tokens, at)
        self._similar: OrderedDict[Key, tuple[float, set[str]]] = OrderedDict()  # -> (since, messages)

    def allow(self, source: str, now: float) -> bool:
        """Whether the object may speak once more."""
        tokens, at = self._buckets.pop(source, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) / REFILL_SECONDS)
        allowed = tokens >= 1
        _remember(self._buckets, source, (tokens - 1 if allowed else tokens, now))
        return allowed

    def wording(self, alike: Key, message: str, now: float) -> tuple[str, str]:
        """(what tells this event from others alike, the message to store)."""
        since, messages = self._similar.pop(alike, (now, set()))
        if now - since > SIMILAR_SECONDS:
            since, messages = now, set()
        combined = len(messages) >= SIMILAR_LIMIT and message not in messages
        if not combined:
            messages.add(message)
        _remember(self._similar, alike, (since, messages))
        return (COMBINED, COMBINED + message) if combined else (message, message)


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > REMEMBERED:
        cache.popitem(last=False)


class Recorder:
    """Sends events as `component` (on `host`, for the node agent). `dropped` counts what was not told."""

    def __init__(self, client: Client, component: str, host: str = "") -> None:
        self.client, self.component, self.host = client, component, host
        self.dropped = 0
        self._correlator = Correlator()
        self._queue: asyncio.Queue[tuple[Obj, str, str, str, float, Notes]] = asyncio.Queue(QUEUE_LIMIT)
        self._told: OrderedDict[Key, _Told] = OrderedDict()

    def event(self, obj: Obj, type: str, reason: str, message: str, annotations: Notes | None = None) -> None:
        """Tell `message` about `obj` (any object, or an ObjectReference); `type` is Normal or Warning."""
        try:
            self._queue.put_nowait((reference(obj), type, reason, clipped(message), self.client.clock.now(),
                                    annotations or {}))
        except asyncio.QueueFull:
            self.dropped += 1
        except Exception:  # an event must never harm what it tells about
            self.dropped += 1
            log.exception("no event could be made of %s", reason)

    async def run(self) -> None:
        """Send what is told until cancelled."""
        while True:
            about, type_, reason, message, when, notes = await self._queue.get()
            try:
                await self._tell(about, type_, reason, message, when, notes)
            except ApiError as error:
                self.dropped += 1
                log.debug("event %s dropped: %s", reason, error.message)
            except Exception:
                self.dropped += 1
                log.exception("event %s dropped", reason)
            finally:
                self._queue.task_done()

    async def drained(self) -> None:
        """Wait until everything told so far is sent or dropped."""
        await self._queue.join()

    async def _tell(self, about: Obj, type_: str, reason: str, message: str, when: float, notes: Notes) -> None:
        now = self.client.clock.monotonic()
        if not self._correlator.allow(about.get("uid") or about.get("name", ""), now):
            self.dropped += 1
            return
        alike = (about.get("uid", ""), about.get("name", ""), about.get("fieldPath", ""), type_, reason)
        distinct, message = self._correlator.wording(alike, message, now)
        for attempt in range(1, TRIES + 1):
            try:
                await self._send((*alike, distinct), about, type_, reason, clipped(message), when, notes)
                return
            except Unreachable:
                if attempt == TRIES:
                    raise
                await self.client.clock.sleep(self.client.clock.jitter(RETRY_SECONDS))

    async def _send(self, key: Key, about: Obj, type_: str, reason: str, message: str, when: float,
                    notes: Notes) -> None:
        stamp = rfc3339(when)
        namespace = about.get("namespace") or "default"
        told = self._told.get(key)
        if told is not None:
            try:
                patch = {"count": told.count + 1, "lastTimestamp": stamp, "message": message}
                await self.client.patch(EVENTS, told.name, patch, namespace)
                told.count += 1
                self._told.move_to_end(key)
                return
            except NotFound:
                pass  # it has expired: tell it anew
        name = f"{about.get('name', '')[:200]}.{self.client.clock.random.getrandbits(64):016x}"
        metadata = {"name": name, "namespace": namespace, **({"annotations": dict(notes)} if notes else {})}
        await self.client.create(EVENTS, {
            "apiVersion": "v1", "kind": "Event", "metadata": metadata,
            "involvedObject": about, "type": type_, "reason": reason, "message": message,
            "source": {"component": self.component} | ({"host": self.host} if self.host else {}),
            "firstTimestamp": stamp, "lastTimestamp": stamp, "count": 1, "eventTime": None,
            "reportingComponent": self.component, "reportingInstance": self.host}, namespace)
        _remember(self._told, key, _Told(name, 1, stamp))


def reference(obj: Obj) -> Obj:
    """The ObjectReference of an object; an ObjectReference is returned as it is."""
    metadata = obj.get("metadata")
    if metadata is None:
        return dict(obj)
    fields = {"kind": obj.get("kind"), "apiVersion": obj.get("apiVersion"), "namespace": metadata.get("namespace"),
              "name": metadata.get("name"), "uid": metadata.get("uid"),
              "resourceVersion": metadata.get("resourceVersion")}
    return {name: value for name, value in fields.items() if value}


def clipped(message: str) -> str:
    """The message within what the server accepts."""
    data = message.encode()
    return message if len(data) <= MESSAGE_LIMIT else data[:MESSAGE_LIMIT - 3].decode("utf-8", "ignore") + "..."
