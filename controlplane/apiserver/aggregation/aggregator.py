"""Aggregation as the server sees it: which requests go elsewhere, what runs beside, what documents must know.

Owns nothing itself but the order in which its parts start. Called by the server, the pipeline, discovery and OpenAPI.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.apiserver.aggregation.availability import ANSWER_SECONDS, USER, Checks
from controlplane.apiserver.aggregation.local import Local
from controlplane.apiserver.aggregation.proxy import Proxy, target_of
from controlplane.apiserver.aggregation.remotes import Remote, Remotes
from controlplane.machinery.errors import ApiError

if TYPE_CHECKING:
    from controlplane.apiserver.context import Context
    from controlplane.apiserver.request import Request
    from controlplane.apiserver.response import Answer


class Aggregator:
    """`await load()` before the server listens, then `run()`; `close` at the end."""

    def __init__(self, context: Context) -> None:
        self.remotes = Remotes(context.cache)
        self.proxy = Proxy(context)
        self._local = Local(context)
        self._checks = Checks(context, self.remotes, self.proxy)

    async def load(self) -> None:
        """Know the other servers, and list this one's group-versions. Raises Finding."""
        self.remotes.load()
        await self._local.settle()

    async def run(self) -> None:
        """Follow both until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._local.run(), name="local APIServices")
            group.create_task(self._checks.run(), name="availability of APIServices")

    async def close(self) -> None:
        await self.proxy.close()

    async def swaggers(self) -> list[tuple[str, bytes]]:
        """Root path and OpenAPI v2 document of every available server that gives one."""
        remotes = [remote for remote in self.remotes if remote.available]
        answers = await asyncio.gather(*(self._swagger(remote) for remote in remotes))
        return [(remote.path, body) for remote, body in zip(remotes, answers, strict=True) if body]

    async def _swagger(self, remote: Remote) -> bytes:
        try:
            answer, body = await self.proxy.ask(remote, "/openapi/v2", USER, ANSWER_SECONDS,
                                                {"Accept": "application/json"})
        except (ApiError, TimeoutError):
            return b""
        return body if answer.status == 200 and body.startswith(b"{") else b""

    async def pass_on(self, request: Request, remote: Remote, target: str = "") -> Answer:
        """What the server behind answers to a request, under its own path when no other `target` is given."""
        return await self.proxy.pass_on(request, remote, target or target_of(request))
