"""Which kinds other API servers behind this one serve, as resources a client can use.

Owns the answers of discovery for APIServices that name a Service. `everything` asks once; `Aggregated` follows: it asks
again when an APIService changes and, while there are any, at upstream's pace, for no server tells of a new kind. One
that does not answer keeps the kinds it last told: nobody can say that they are gone. A subscriber hears of every kind
once when it comes and once when it goes, in the version its group prefers. Called by the garbage collector and the
namespace controller.

Upstream: the discovery client, k8s.io/client-go/discovery; pkg/controller/garbagecollector (GetDeletableResources).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from controlplane.client.informer import Informers
from controlplane.client.queue import first_of
from controlplane.client.rest import Client, Unreachable
from controlplane.machinery import apiservices
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource, named

API_SERVICES = named("apiservices.apiregistration.k8s.io")
AGAIN_SECONDS = 30.0  # between two questions what the servers serve; upstream's resync
Obj = dict[str, Any]
Found = dict[tuple[str, str], list[Resource]]  # by group and version


def in_order(services: Iterable[Obj]) -> list[tuple[str, str]]:
    """Group and version of those another server is asked for, a group's preferred version first. Pure."""
    remote = [one["spec"] for one in services if apiservices.remote(one)]
    remote.sort(key=lambda spec: (spec["group"], -(spec.get("versionPriority") or 0), spec["version"]))
    return [(spec["group"], spec["version"]) for spec in remote]


def preferred(found: Found, order: list[tuple[str, str]]) -> list[Resource]:
    """One `Resource` per kind, of the first version that has it. Pure."""
    served: dict[str, Resource] = {}
    for version in order:
        for resource in found.get(version, ()):
            served.setdefault(resource.name, resource)
    return list(served.values())


async def everything(client: Client) -> tuple[list[Resource], list[str]]:
    """The kinds of all servers, and the group-versions nobody answers for now."""
    services, _ = await client.list(API_SERVICES)
    order = in_order(services)
    answers = {version: await _listed(client, *version) for version in order}
    failed = [f"{group}/{version}" for (group, version), answer in answers.items() if answer is None]
    return preferred({version: answer or [] for version, answer in answers.items()}, order), failed


async def _listed(client: Client, group: str, version: str) -> list[Resource] | None:
    """What a group-version has; None when nobody answers for it now."""
    try:
        answer = orjson.loads(await client.raw("GET", f"/apis/{group}/{version}"))
        return [Resource(group, version, one["name"], one["kind"], namespaced=bool(one.get("namespaced")),
                         verbs=tuple(one.get("verbs") or ()), custom=True)
                for one in answer["resources"] if "/" not in one["name"]]
    except (ApiError, Unreachable, ValueError, KeyError, TypeError):
        return None


class Aggregated:
    """The kinds of other servers, as far as they ever answered while `run()` runs."""

    def __init__(self, informers: Informers) -> None:
        self.informer = informers.of(API_SERVICES)
        self._client, self._clock = informers.client, informers.clock
        self._found: Found = {}
        self._served: set[Resource] = set()
        self._changed = asyncio.Event()

    async def run(self, tell: Callable[[Resource, bool], None]) -> None:
        """Call `tell(resource, served)` as kinds come and go, until cancelled."""
        self.informer.subscribe(lambda *_: self._changed.set())
        while True:
            self._changed.clear()
            order = in_order(self.informer.items())
            await self._ask(order)
            served = set(preferred(self._found, order))
            for resource in self._served - served:
                tell(resource, False)
            for resource in served - self._served:
                tell(resource, True)
            self._served = served
            again = [self._clock.sleep(AGAIN_SECONDS)] if order else []
            await first_of(self._changed.wait(), *again)

    async def _ask(self, order: list[tuple[str, str]]) -> None:
        found: Found = {}
        for group, version in order:
            now = await _listed(self._client, group, version)
            found[group, version] = self._found.get((group, version), []) if now is None else now
        self._found = found
