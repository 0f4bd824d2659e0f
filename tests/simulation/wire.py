"""A client whose wire is a function call, and the faults that happen on it.

Owns the way from `Client` into the API server's pipeline without sockets, so that everything but the transport is the
real thing; and `Faults`, which lose answers, delay and refuse writes and cut watches, all by one seed. A fault is one a
real network or a busy neighbour could make. Called by `run`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import orjson

from controlplane.apiserver import request
from controlplane.apiserver.server import Server
from controlplane.client.config import ClientConfig
from controlplane.client.rest import Client, Unreachable
from controlplane.machinery import selectors
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import Conflict, Expired, from_status
from controlplane.machinery.resources import Resource
from controlplane.store.cache import prefix_of
from controlplane.store.log import Compacted
from controlplane.store.watch import Closed, Lagged

UNSENT, UNANSWERED, SLOW, REFUSED = 0.03, 0.03, 0.1, 0.06  # shares of writes that are met by each fault
SLOW_SECONDS = 5.0  # at most
REQUEST_SECONDS, EVENT_SECONDS = 0.02, 0.1  # at most, for each way: what is told is always a little old
CUT = 0.015  # share of watch events after which the watch ends
PATIENCE_SECONDS, PATIENCE_TRIES = 1.0, 10  # as the real client, when the server asks to come back


class Faults:
    """`on` can be switched at any time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.on = False
        self.made = 0

    async def delay(self, most: float) -> None:
        await asyncio.sleep(self.random.random() * most)

    def happens(self, share: float) -> bool:
        found = self.on and self.random.random() < share
        self.made += found
        return found


class DirectClient(Client):
    def __init__(self, server: Server, clock: Clock, faults: Faults | None = None,
                 user_agent: str = "simulated") -> None:
        super().__init__(ClientConfig(server="http://simulated"), clock=clock, user_agent=user_agent)
        self._server, self._faults = server, faults
        self._connection: dict[str, Any] = {}

    async def _send(self, method: str, target: str, body: Any, headers: dict[str, str] | None) -> bytes:
        writes = method != "GET" and self._faults is not None and not target.endswith("/events")
        if writes and self._faults is not None:
            if self._faults.happens(UNSENT):
                raise Unreachable(f"{method} simulated: the connection was cut")
            if method in ("PUT", "PATCH") and self._faults.happens(REFUSED):
                raise Conflict("Operation cannot be fulfilled: the object has been modified")
            if self._faults.happens(SLOW):
                await self._faults.delay(SLOW_SECONDS)
        answer = await self._ask(method, target, body, headers)
        if writes and self._faults is not None and self._faults.happens(UNANSWERED):
            raise Unreachable(f"{method} simulated: the answer was lost")
        return answer

    async def _ask(self, method: str, target: str, body: Any, headers: dict[str, str] | None) -> bytes:
        sent = {"Accept": "application/json", "User-Agent": self.user_agent} | (headers or {})
        if body is not None and not isinstance(body, bytes | str):
            body = orjson.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        if self._faults is not None:
            await self._faults.delay(REQUEST_SECONDS)
        for attempt in range(1, PATIENCE_TRIES + 1):
            made = request.build(method, target, sent, self._server.context.registry, None, self._connection)
            made._body = body.encode() if isinstance(body, str) else body or b""
            answer: Any = await self._server.pipeline.serve(made)
            if answer.status < 300:
                return bytes(answer.body)
            error = from_status(orjson.loads(answer.body), answer.status)
            if answer.status != 429 or "eviction" in target or attempt == PATIENCE_TRIES:
                raise error
            await self.clock.sleep(PATIENCE_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    async def watch(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "",
                    revision: str = "", *, metadata: bool = False) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Straight from the watch cache. An object that stops matching is told as deleted, as the server does it."""
        chosen = selectors.parse_labels(labels)
        tested = selectors.field_matcher(resource, selectors.parse_fields(fields))

        def matches(obj: dict[str, Any]) -> bool:
            return chosen.matches(obj["metadata"].get("labels")) and (not fields or tested(obj))
        try:
            with self._server.cache.watch(prefix_of(resource.name, namespace), int(revision or 0) or None) as watch:
                async for event in watch:
                    if self._faults is not None:
                        await self._faults.delay(EVENT_SECONDS)
                    if self._faults is not None and self._faults.happens(CUT):
                        if self._faults.random.random() < 0.5:
                            raise Unreachable("GET simulated: the watch was cut")
                        return
                    line = orjson.loads(event.data)
                    if not matches(line["object"]):
                        if event.previous is None or not matches(event.previous.obj):
                            continue
                        line["type"] = "DELETED"
                    yield line["type"], line["object"]
        except (Compacted, Lagged) as error:
            raise Expired("too old resource version") from error
        except Closed:
            return
