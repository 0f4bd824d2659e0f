"""Mirror pods: the images in the API of the pods this node runs from files.

Owns their creation and removal; their status is written by each pod's worker. Promises one mirror per static pod, made
again when somebody deletes it, replaced when its manifest changes, and removed when the manifest is. Waits, without
delaying any pod, while the API is away. Called by `kubelet`.

Upstream: pkg/kubelet/pod/mirror_client.go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from agent.kubelet.staticpods import HASH, MIRROR
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import AlreadyExists, ApiError, Conflict, NotFound
from controlplane.machinery.resources import named

log = logging.getLogger(__name__)
RETRY_FIRST, RETRY_LIMIT = 0.5, 30.0  # seconds between attempts while the API is away or refuses
PODS = named("pods")
Key = tuple[str, str]


def image_of(pod: dict[str, Any], owner: dict[str, Any] | None) -> dict[str, Any]:
    """The object to create: the pod with the mark of a mirror, owned by its node."""
    meta = {k: v for k, v in pod["metadata"].items() if k in ("name", "namespace", "labels")}
    meta["annotations"] = {**pod["metadata"]["annotations"], MIRROR: pod["metadata"]["annotations"][HASH]}
    if owner is not None:
        meta["ownerReferences"] = [owner]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod["spec"]}


class Mirrors:
    """`owner()` gives the owner reference of this node, or None while it is not registered."""

    def __init__(self, client: Client, clock: Clock, owner: Callable[[], dict[str, Any] | None]) -> None:
        self._client, self._clock, self._owner = client, clock, owner
        self._wanted: dict[Key, dict[str, Any]] = {}
        self._there: dict[Key, dict[str, Any]] = {}
        self._wake = asyncio.Event()

    def want(self, pods: list[dict[str, Any]]) -> None:
        """These static pods are to be seen in the API."""
        self._wanted = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in pods}
        self._wake.set()

    def told(self, kind: str, image: dict[str, Any]) -> None:
        """The API's news of a mirror pod."""
        key = (image["metadata"]["namespace"], image["metadata"]["name"])
        if kind == "DELETED":
            self._there.pop(key, None)
        else:
            self._there[key] = image
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. The pods are known to the caller's informer, which must have synced."""
        delay = RETRY_FIRST
        while True:
            self._wake.clear()
            try:
                for key in {*self._wanted, *self._there}:
                    await self._bring(key)
                delay = RETRY_FIRST
                await self._wake.wait()
            except ApiError as error:
                log.log(logging.WARNING if delay == RETRY_FIRST else logging.DEBUG,
                        "cannot show a static pod in the API: %s", error.message)
                await self._clock.sleep(self._clock.jitter(delay))
                delay = min(delay * 2, RETRY_LIMIT)

    async def _bring(self, key: Key) -> None:
        wanted, there = self._wanted.get(key), self._there.get(key)
        if there is not None:
            meta = there["metadata"]
            if wanted is not None and meta["annotations"].get(MIRROR) == wanted["metadata"]["annotations"][HASH] \
                    and not meta.get("deletionTimestamp"):
                return
            try:
                await self._client.delete(PODS, key[1], key[0], grace=0, uid=meta["uid"])
            except (NotFound, Conflict):
                pass
            self._there.pop(key, None)
        if wanted is not None:
            try:
                self._there[key] = await self._client.create(PODS, image_of(wanted, self._owner()), key[0])
            except AlreadyExists:
                pass  # the informer will tell of it
