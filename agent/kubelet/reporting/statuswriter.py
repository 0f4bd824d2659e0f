"""Brings one pod's status to the API: the newest wins, one patch in flight, repeated while the API is away.

Owns what the API is known to have. Promises that the last status offered arrives, at once when a container has begun
or ended, that nothing is sent when nothing changed, and that `settled` returns only when the API has the newest. Called
by `worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from agent.kubelet.reporting.status import patch, rebase, urgent
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.machinery.resources import named

log = logging.getLogger(__name__)
LINGER_SECONDS = 0.3  # a status that tells of preparations only may be overtaken by that of the running pod
RETRY_FIRST, RETRY_LIMIT = 0.2, 10.0  # seconds between attempts while the API is away
ANOTHER_POD = "UID in precondition"  # the conflict of a patch for a pod whose name another one has now
PODS = named("pods")


class StatusWriter:
    def __init__(self, client: Client, clock: Clock, pod: dict[str, Any],
                 spawn: Callable[[Coroutine[Any, Any, None], str], Any]) -> None:
        self._client, self._clock, self._spawn = client, clock, spawn
        self._meta = pod["metadata"]
        self.known: dict[str, Any] = {}
        self._revision = -1
        self._wanted: dict[str, Any] | None = None
        self._idle, self._haste = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._lost = False
        self.learn(pod)

    def learn(self, pod: dict[str, Any]) -> None:
        """The API told us of the pod; older news than what we know is ignored."""
        text = pod["metadata"].get("resourceVersion") or ""
        revision = int(text) if text.isdigit() else self._revision
        if revision >= self._revision:
            self._revision, self.known = revision, pod.get("status") or {}

    @property
    def uid(self) -> str:
        return str(self._meta["uid"])

    @property
    def current(self) -> dict[str, Any]:
        """The status the API has or is about to have."""
        return self.known if self._idle.is_set() or self._wanted is None else rebase(self._wanted, self.known)

    def offer(self, status: dict[str, Any]) -> None:
        """This is the status now."""
        self._wanted = status
        if urgent(self.known, status):
            self._haste.set()
        if self._idle.is_set() and not self._lost and self._changes(status) is not None:
            self._idle.clear()
            self._spawn(self._send(), "status")

    def _changes(self, status: dict[str, Any]) -> dict[str, Any] | None:
        """The patch that brings `status`; what others wrote since it was computed stays."""
        return patch(self._meta["uid"], self.known, rebase(status, self.known))

    async def settled(self) -> None:
        """Wait until the API has what was offered, or the pod is gone."""
        self._haste.set()
        await self._idle.wait()

    async def _send(self) -> None:
        delay = RETRY_FIRST
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._haste.wait()
            while self._wanted is not None:
                sent = self._wanted
                body = self._changes(sent)
                if body is None:
                    return
                try:
                    answer = await self._client.patch(PODS, self._meta["name"], body, self._meta.get("namespace", ""),
                                                      subresource="status")
                except NotFound:
                    self._lost = True
                    return
                except ApiError as error:
                    if isinstance(error, Conflict) and ANOTHER_POD in error.message:
                        self._lost = True
                        return
                    log.log(logging.WARNING if delay == RETRY_FIRST else logging.DEBUG,
                            "cannot write the status of pod %s: %s", self._meta["name"], error.message)
                    await self._clock.sleep(self._clock.jitter(delay))
                    delay = min(delay * 2, RETRY_LIMIT)
                    continue
                self.learn(answer)
                if self._wanted is sent:
                    return  # what differs now was not accepted; sending it again would not help
        finally:
            self._haste.clear()
            self._idle.set()
