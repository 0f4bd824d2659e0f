"""WATCH: a stream of events, with selectors, shapes, initial events and bookmarks.

Owns the translation of the cache's events into what one client asked to see: an object that starts or stops matching a
selector is ADDED or DELETED for it. It promises every matching change after the starting revision exactly once and in
order, one send per batch of events, and an end that clients resume from (bookmark before a time-out). A client too slow
to take what happens is cut, never waited for without bound. Called by the pipeline.

Upstream: k8s.io/apiserver/pkg/endpoints/handlers/watch.go, storage/cacher.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import views
from controlplane.apiserver.reading import listoptions, representation
from controlplane.apiserver.reading.lists import Match, collection_prefix, reach, select
from controlplane.apiserver.reading.representation import Form
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Stream, Writer
from controlplane.machinery.errors import ApiError, Expired
from controlplane.machinery.resources import Resource
from controlplane.store.item import Event, Item
from controlplane.store.log import Compacted
from controlplane.store.watch import Closed, Lagged, Watch

BOOKMARK_SECONDS = 60.0  # how stale a client's resume point may grow on a quiet resource
MIN_TIMEOUT = 1800.0  # seconds a watch lives when the client names no time-out, up to twice this: reconnects spread
BOOKMARK_BEFORE_END = 2.0  # seconds before its end a watch tells the client where to resume
SEND_SECONDS = 30.0  # a client that takes nothing for this long is gone
BATCH_BYTES = 1 << 20  # of one send: bounds the memory of replaying a large collection
INITIAL_END = {"k8s.io/initial-events-end": "true"}


@dataclass(frozen=True, slots=True)
class Start:
    """How a watch begins: `revision` 0 = with the current state as ADDED events; `marked` = ended by a bookmark."""

    revision: int
    replay: bool
    marked: bool
    bookmarks: bool


def start_of(request: Request, resource: Resource) -> Start:
    """The start a request asks for. Raises Invalid. Pure."""
    query = request.query
    listoptions.check(query, watch=True)
    bookmarks = query.flag("allowWatchBookmarks")
    revision = listoptions.revision_to_watch(query.get("resourceVersion"), resource)
    replay = query.flag("sendInitialEvents") if "sendInitialEvents" in query else revision == 0
    return Start(revision, replay, replay and bookmarks, bookmarks)


class Lens:
    """One client's view of events: its selector and its shape. Pure, but for the column definitions sent once."""

    def __init__(self, request: Request, resource: Resource, form: Form, match: Match | None) -> None:
        self._request = request
        self._resource = resource
        self._form = form
        self._match = match
        self._columns_sent = False

    @property
    def transparent(self) -> bool:
        return self._match is None and not self._form.shape

    @property
    def selecting(self) -> bool:
        return self._match is not None

    def lines(self, events: Sequence[Event], now: float) -> list[bytes]:
        """The lines the client sees of these events."""
        if self.transparent:
            return [event.data for event in events]
        found = (self._line(event, now) for event in events)
        return [line for line in found if line is not None]

    def _line(self, event: Event, now: float) -> bytes | None:
        kind, item = event.kind, event.item
        if self._match is None:
            return self._encode(kind, item.obj, now)
        before = event.previous is not None and self._match(event.previous)
        if kind == "DELETED":
            return self._deleted(event, now) if before else None
        after = self._match(item)
        if after and before == (kind == "MODIFIED") and not self._form.shape:
            return event.data
        if after:
            return self._encode("MODIFIED" if before else "ADDED", item.obj, now)
        return self._deleted(event, now) if before else None

    def _deleted(self, event: Event, now: float) -> bytes:
        """DELETED with the last state that matched, at the revision of the change."""
        if event.kind == "DELETED":
            return event.data if not self._form.shape else self._encode("DELETED", event.item.obj, now)
        last = event.previous.obj if event.previous is not None else event.item.obj
        moved = {**last, "metadata": {**last["metadata"], "resourceVersion": str(event.revision)}}
        return self._encode("DELETED", moved, now)

    def initial(self, item: Item, now: float) -> bytes | None:
        """The line that replays an existing object."""
        if self._match is not None and not self._match(item):
            return None
        if not self._form.shape:
            return b'{"type":"ADDED","object":%b}\n' % item.data
        return self._encode("ADDED", item.obj, now)

    def _encode(self, kind: str, obj: dict[str, Any], now: float) -> bytes:
        if self._form.shape == "Table":
            shown = representation.table(self._request, self._resource, [obj], now, self._form,
                                         {"resourceVersion": obj["metadata"].get("resourceVersion", "")})
            if self._columns_sent:
                shown["columnDefinitions"] = None
            self._columns_sent = True
        else:
            shown = representation.partial(obj, self._form.version) if self._form.shape else obj
        return orjson.dumps({"type": kind, "object": shown}) + b"\n"

    def bookmark(self, revision: int, annotations: dict[str, str] | None = None) -> bytes:
        metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        obj: dict[str, Any] = {"kind": self._resource.kind, "apiVersion": self._resource.api_version,
                               "metadata": metadata}
        if self._form.shape == "Table":
            row = {"cells": [], "object": representation.partial(obj, self._form.version)}
            obj = {"kind": "Table", "apiVersion": self._form.version, "metadata": {"resourceVersion": str(revision)},
                   "columnDefinitions": None, "rows": [row] if annotations else []}
        elif self._form.shape:
            obj = {**obj, "kind": "PartialObjectMetadata", "apiVersion": self._form.version}
        return orjson.dumps({"type": "BOOKMARK", "object": obj}) + b"\n"


def error_line(error: ApiError) -> bytes:
    return orjson.dumps({"type": "ERROR", "object": error.status()}) + b"\n"


async def _send(writer: Writer, lines: Sequence[bytes]) -> None:
    """One write per batch, bounded in size and in time. Raises ConnectionResetError."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size >= BATCH_BYTES:
            await _write(writer, b"".join(batch))
            batch, size = [], 0
    if batch:
        await _write(writer, b"".join(batch))


async def _write(writer: Writer, data: bytes) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await writer.write(data)
    except TimeoutError:
        raise ConnectionResetError("the client takes nothing") from None


class Watches:
    """The verb watch. `close()` ends every stream cleanly."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: set[Watch] = set()
        self.users: Counter[str] = Counter()  # open watches by the name of who asked

    def close(self, prefix: str = "") -> None:
        """End every stream of what lies under `prefix`: of everything, or of a kind that is no longer what it was."""
        for watch in list(self._open):
            if watch.prefix.startswith(prefix):
                watch.close()

    async def watch(self, request: Request, resource: Resource) -> Stream:
        """A stream of events. Raises what a wrong query deserves, before anything is sent."""
        form = representation.form_of(request)
        if form.media != representation.JSON:
            raise representation.not_acceptable()
        start = start_of(request, resource)
        selection = select(request, resource)
        if start.revision and start.replay:
            await reach(self._context, start.revision)
        seconds = request.query.integer("timeoutSeconds") or self._context.clock.jitter(MIN_TIMEOUT, 1.0)
        match = selection.match
        if request.name:  # the legacy path of a single object
            match = _named(request.name, match)
        lens = Lens(request, resource, form, match)
        prefix = collection_prefix(resource, request.namespace)
        user = request.user.name if request.user else ""

        async def run(writer: Writer) -> None:
            self.users[user] += 1
            try:
                await self._run(writer, resource, lens, prefix, start, float(seconds))
            finally:
                self.users[user] -= 1
                if not self.users[user]:
                    del self.users[user]

        return Stream(run, headers=representation.warning_headers(request))

    async def _run(self, writer: Writer, resource: Resource, lens: Lens, prefix: str, start: Start,
                   seconds: float) -> None:
        cache = self._context.cache
        since = cache.revision if start.replay or not start.revision else start.revision
        try:
            watch = cache.watch(prefix, since)
        except Compacted as error:
            await _send(writer, [_too_old(start.revision, error.floor)])
            return
        self._open.add(watch)
        try:
            with watch:
                if start.replay:
                    now = self._context.clock.now()
                    items: Sequence[Item] = cache.list(prefix)
                    if resource.converts:
                        items = await views.all_shown(resource, items)
                    existing = [line for item in items if (line := lens.initial(item, now)) is not None]
                    if start.marked:
                        existing.append(lens.bookmark(since, INITIAL_END))
                    await _send(writer, existing)
                await self._follow(writer, resource, lens, watch, start, seconds)
        except Compacted as error:
            await _send(writer, [_too_old(start.revision, error.floor)])
        except ApiError as error:  # an object could not be converted
            await _send(writer, [error_line(error)])
        finally:
            self._open.discard(watch)

    async def _follow(self, writer: Writer, resource: Resource, lens: Lens, watch: Watch, start: Start,
                      seconds: float) -> None:
        """Send events until the time is up, the server stops (`Closed`) or the client is cut."""
        clock = self._context.clock
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        last = max(end - BOOKMARK_BEFORE_END, loop.time() + (end - loop.time()) / 2)
        mark = loop.time() + clock.jitter(BOOKMARK_SECONDS, 0.2)
        while True:
            until = min(end, mark, last) if start.bookmarks else end
            try:
                async with asyncio.timeout_at(until):
                    events = await watch.take()
            except TimeoutError:
                if loop.time() >= end:
                    return
                if watch.pending:
                    continue  # an event came together with the time-out: it goes first
                await _send(writer, [lens.bookmark(self._resume_point(watch))])
                mark = loop.time() + clock.jitter(BOOKMARK_SECONDS, 0.2)
                last = end if loop.time() >= last else last
                continue
            except Closed:
                return
            except Lagged:
                raise ConnectionResetError("the client is too slow") from None
            if resource.converts:
                events = list(await views.events_shown(resource, events, lens.selecting))
            if lines := lens.lines(events, clock.now()):
                await _send(writer, lines)

    def _resume_point(self, watch: Watch) -> int:
        """A revision up to which this client has seen everything: nothing is queued when this is asked."""
        return max(watch.revision, self._context.cache.revision)


def _named(name: str, match: Match | None) -> Match:
    return lambda item: item.key.endswith("/" + name) and (match is None or match(item))


def _too_old(asked: int, floor: int) -> bytes:
    return error_line(Expired(f"too old resource version: {asked} ({floor})"))
