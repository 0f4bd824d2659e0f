"""Whether an API server behind this one can be used: its Service, its endpoints, and an answer to discovery.

`judge` is pure: what the objects alone say, in upstream's reasons and messages. `Checks` asks the server itself when
they are fine, writes the condition `Available`, and learns on the way what the server serves. It looks when the
Service, its endpoints or the APIService change, and in between because a server can fail without any of them. Idle
while there are no such servers. Run by the aggregator.

Upstream: k8s.io/kube-aggregator/pkg/controllers/status/remote.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import orjson

from controlplane.apiserver.aggregation.remotes import RESOURCE, Remote, Remotes
from controlplane.apiserver.authentication.user import User
from controlplane.apiserver.services import servicebackends
from controlplane.machinery import apiservices, objects
from controlplane.machinery.errors import ApiError, Finding
from controlplane.store.cache import key_of
from controlplane.store.log import Stale

if TYPE_CHECKING:
    from controlplane.apiserver.aggregation.proxy import Proxy
    from controlplane.apiserver.context import Context

LOG = logging.getLogger("apiserver")
AGAIN_SECONDS = 30.0  # between two looks at a server that answers; upstream's resync
FIRST_SECONDS = 1.0  # after a first failure, then twice that and so on up to AGAIN_SECONDS
ANSWER_SECONDS = 5.0  # for discovery; upstream's bound
MAX_KINDS = 2000  # entries of one group-version: upstream's largest has some 50
_TEXTS, _LISTS = ("name", "kind", "group", "version", "singularName"), ("verbs", "shortNames", "categories")
USER = User("system:kube-aggregator", groups=("system:masters",))
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The condition `Available`."""

    good: bool
    reason: str
    message: str


LOCAL = Verdict(True, "Local", "Local APIServices are always available")
PASSED = Verdict(True, "Passed", "all checks passed")


def judge(reference: tuple[str, str, int], service: Object | None, slices: list[Object]) -> Verdict | None:
    """What is wrong with the Service (namespace, name, port) of an APIService, None when its server can be asked."""
    namespace, name, port = reference
    about = f'service/{name} in "{namespace}"'
    if service is None:
        return Verdict(False, "ServiceNotFound", f"{about} is not present")
    spec = service.get("spec") or {}
    if spec.get("type", "ClusterIP") != "ClusterIP":
        return None
    declared = next((p for p in spec.get("ports") or () if p.get("port") == port), None)
    if declared is None:
        return Verdict(False, "ServicePortError", f"{about} is not listening on port {port}")
    if not slices:
        return Verdict(False, "EndpointsNotFound", f"cannot find endpointslices for {about}")
    if not servicebackends.endpoints(slices, declared.get("name") or ""):
        return Verdict(False, "MissingEndpoints", f"endpointslices for {about} have no addresses with port name "
                       f"\"{declared.get('name') or ''}\"")
    return None


def resources_of(body: bytes) -> list[Object] | None:
    """The well-formed entries of an APIResourceList, None when the answer is none: it becomes part of documents that
    every client reads. Pure."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    listed = found.get("resources") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return None
    return [entry for entry in listed[:MAX_KINDS] if isinstance(entry, dict) and entry.get("name") and entry.get("kind")
            and all(isinstance(entry.get(field) or "", str) for field in _TEXTS)
            and all(isinstance(entry.get(field) or [], list) and all(isinstance(v, str) for v in entry.get(field) or [])
                    for field in _LISTS)]


class Checks:
    """`run()` looks after all remotes until cancelled."""

    def __init__(self, context: Context, remotes: Remotes, proxy: Proxy) -> None:
        self._context, self._remotes, self._proxy = context, remotes, proxy

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            attended: WeakSet[Remote] = WeakSet()
            while True:
                self._remotes.came.clear()
                for remote in self._remotes:
                    if remote not in attended:
                        attended.add(remote)
                        group.create_task(self._attend(remote), name=f"availability of {remote.name}")
                await self._remotes.came.wait()

    async def _attend(self, remote: Remote) -> None:
        """Look after one server for as long as it is a remote one."""
        pause = FIRST_SECONDS
        while self._remotes.get(*remote.group_version) is remote:
            remote.look.clear()
            verdict = await self._check(remote)
            await self.tell(remote.name, verdict)
            if verdict.good:
                pause = FIRST_SECONDS
                await self._learn_openapi(remote)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS if verdict.good else pause):
                    await remote.look.wait()
            if not verdict.good:
                pause = min(2 * pause, AGAIN_SECONDS)

    async def _check(self, remote: Remote) -> Verdict:
        namespace, name, _ = remote.service
        cache = self._context.cache
        item = cache.get(key_of("services", namespace, name))
        fault = judge(remote.service, item.obj if item is not None else None,
                      servicebackends.slices_of(cache, namespace, name))
        if fault is not None:
            return fault
        url = f"https://{remote.host}:{remote.service[2]}{remote.path}"
        try:
            answer, body = await self._proxy.ask(remote, remote.path, USER, ANSWER_SECONDS,
                                                 {"Accept": "application/json"})
        except TimeoutError:
            return Verdict(False, "FailedDiscoveryCheck", f"failing or missing response from {url}: Get \"{url}\": "
                           "context deadline exceeded")
        except ApiError as error:
            return Verdict(False, "FailedDiscoveryCheck", f"failing or missing response from {url}: {error.message}")
        if not 200 <= answer.status < 300:
            return Verdict(False, "FailedDiscoveryCheck",
                           f"failing or missing response from {url}: bad status from {url}: {answer.status}")
        self._remotes.learn(remote, resources_of(body), remote.v3, remote.translated)
        return PASSED

    async def _learn_openapi(self, remote: Remote) -> None:
        """Where its OpenAPI document is; a server without one is no worse for that."""
        try:
            answer, body = await self._proxy.ask(remote, "/openapi/v3", USER, ANSWER_SECONDS,
                                                 {"Accept": "application/json"})
            paths = orjson.loads(body).get("paths") if answer.status == 200 else {}
            v3 = str(paths.get(remote.path[1:], {}).get("serverRelativeURL", ""))
        except (ApiError, TimeoutError, AttributeError, ValueError):
            v3 = ""
        if v3.startswith("/openapi/v3/"):
            self._remotes.learn(remote, remote.resources, v3, translated=False)
            return
        tag = await self._v2_tag(remote)
        self._remotes.learn(remote, remote.resources, f"/openapi/v3{remote.path}?hash={tag}" if tag else "", bool(tag))

    async def _v2_tag(self, remote: Remote) -> str:
        """What names the v2 document of a server that has no other, "" when it has none at all."""
        try:
            answer, body = await self._proxy.ask(remote, "/openapi/v2", USER, ANSWER_SECONDS,
                                                 {"Accept": "application/json"})
        except (ApiError, TimeoutError):
            return ""
        return hashlib.sha256(body).hexdigest().upper() if answer.status == 200 else ""

    async def tell(self, name: str, verdict: Verdict) -> None:
        """Write the condition when it says something else."""
        cache, clock = self._context.cache, self._context.clock
        while (item := cache.get(key_of(RESOURCE.name, "", name))) is not None:
            obj = objects.deep_copy(item.obj)
            conditions: list[Any] = obj.setdefault("status", {}).setdefault("conditions", [])
            state = "True" if verdict.good else "False"
            objects.set_condition(conditions, apiservices.AVAILABLE, state, verdict.reason, verdict.message,
                                  clock.timestamp())
            try:
                await cache.write(item.key, obj, item.revision)
                return
            except Stale:
                continue
            except Finding as finding:
                LOG.error("the status of %s cannot be stored: %s", name, finding.fact)
                return
