"""Say why: `GET /why/<path of an object>` answers with findings, each a fact, its reason and the smallest fix.

`GET /why` looks at the whole cluster, and the path of a namespace at all in it. Owns the memory of the last refusals
(bounded, without values of Secrets), the paths under `/why` and what an asker may see: the object itself needs `get`,
and everything beside it is looked at with the asker's own rights. The explaining is `explain`'s. Promises to change
nothing, and to cost nothing until asked, but for the note of a refusal. Called by the pipeline for refusals and for its
paths.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from controlplane.apiserver import request
from controlplane.apiserver.authorization import access
from controlplane.apiserver.context import Context
from controlplane.apiserver.reading.lists import collection_prefix, object_key
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Response, json_response
from controlplane.machinery.errors import STALE, AlreadyExists, ApiError, Finding, MethodNotAllowed, NotFound
from controlplane.machinery.objects import controller_of
from controlplane.machinery.resources import Resource

PREFIX = "/why/"
MAX_REFUSALS = 200  # remembered, some 1 kB each; the oldest are forgotten
MAX_LOOKED_AT = 5000  # objects of one kind an explanation reads: beyond, it would hold the loop
MAX_TOLD = 50  # findings of a whole cluster: nobody reads more, and mending some mends others
# What is looked at where no object is named, causes before what they hold up.
SURVEYED = ("nodes", "apiservices.apiregistration.k8s.io", "persistentvolumeclaims", "pods", "replicasets.apps",
            "deployments.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch", "services",
            "ingresses.networking.k8s.io", "namespaces")
TOLD = (400, 403, 409, 413, 415, 422, 429)  # what somebody must act on; a 404 or a missed revision is daily work
API_VERSION = "why.pelamis.io/v1"
Object = dict[str, Any]


def subject(asked: Request, context: Context) -> Request:
    """The request for the object a `/why/…` path is about, by the same user."""
    inner = request.build("GET", asked.path[len(PREFIX) - 1:], {}, context.registry)
    inner.user = asked.user
    return inner


class Why:
    """Answers `/why` (the refusals) and `/why/<path>`; `note` remembers a refusal."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._refusals: OrderedDict[tuple[Any, ...], Object] = OrderedDict()

    def note(self, asked: Request, error: ApiError) -> None:
        """Remember a refusal; repetitions are counted."""
        if error.http_code not in TOLD or asked.user is None or _daily_work(asked.user.name, error):
            return
        from controlplane.apiserver.explain import refusals
        made = refusals.entry(asked.user.name, asked.verb, asked.resource, asked.subresource, asked.namespace,
                              asked.name, asked.path, error, self._context.clock.timestamp())
        key = tuple(made[f] for f in ("user", "verb", "resource", "subresource", "namespace", "name", "message"))
        if (known := self._refusals.pop(key, None)) is not None:
            made["count"] = known["count"] + 1
        self._refusals[key] = made
        if len(self._refusals) > MAX_REFUSALS:
            self._refusals.popitem(last=False)

    async def handle(self, asked: Request) -> Response | None:
        path = asked.path.rstrip("/")
        if path != "/why" and not path.startswith(PREFIX):
            return None
        if asked.method != "GET":
            raise MethodNotAllowed()
        from controlplane.apiserver.explain import findings, refusals
        if path == "/why":
            wrong = await self._surveyed(View(self._context, asked.user, []))
            return _answer({}, wrong + [f for r in reversed(self._refusals.values()) for f in refusals.explain(r)])
        inner = subject(asked, self._context)
        resource = inner.resource
        if resource is None or not inner.name or inner.subresource:
            raise NotFound.path()
        world = View(self._context, asked.user, self._shown(asked.user))
        obj = world.get(resource.name, inner.namespace, inner.name)
        where = {"kind": resource.kind, "namespace": inner.namespace, "name": inner.name}
        if obj is None:
            return _answer(where, self._missing(resource, inner, world))
        found = findings({**obj, "kind": resource.kind, "_resource": resource.name}, world)
        if resource.name == "namespaces":
            found += await self._surveyed(world, inner.name)
        return _answer(where, found)

    async def _surveyed(self, world: View, namespace: str = "") -> list[Finding]:
        """What is wrong with the objects of a namespace, or of the whole cluster."""
        from controlplane.apiserver.explain import findings
        found: dict[str, Finding] = {}
        for name in SURVEYED:
            resource = self._context.registry.named(name)
            for obj in world.list(name, namespace) if resource.namespaced or not namespace else ():
                if not _explained_by_another(obj):
                    about = {**obj, "kind": resource.kind, "_resource": resource.name}
                    found |= {str(finding): finding for finding in findings(about, world)}
                await asyncio.sleep(0)  # requests of others have their turn
                if len(found) > MAX_TOLD:
                    return [*list(found.values())[:MAX_TOLD], Finding(f"more is wrong than these {MAX_TOLD}")]
        return list(found.values())

    def _shown(self, user: Any) -> list[Object]:
        """The refusals somebody may know of: all with the right to `/why`, else the own ones."""
        question = access.Attributes(user, "get", path="/why")
        everything = self._context.authorizer.decide(question).allowed
        return [r for r in self._refusals.values() if everything or r["user"] == user.name]

    def _missing(self, resource: Resource, inner: Request, world: View) -> list[Finding]:
        """An object that does not exist: it was refused, or is called otherwise. Raises NotFound."""
        import difflib

        from controlplane.apiserver.explain import refusals
        refused = world.refusals(resource.name, inner.namespace, inner.name)
        if refused:
            return [finding for one in refused for finding in refusals.explain(one)]
        known = [o["metadata"]["name"] for o in world.list(resource.name, inner.namespace)]
        near = difflib.get_close_matches(inner.name, known, 1)
        if not near:
            raise NotFound.of(resource.plural, inner.name, resource.group)
        return [Finding(f'there is no {resource.kind.lower()} "{inner.name}"', f'there is "{near[0]}"',
                        f"pelamis why {resource.kind.lower()}/{near[0]}"
                        + (f" -n {inner.namespace}" if inner.namespace else ""))]


def _daily_work(user: str, error: ApiError) -> bool:
    """Whether a conflict is how programs work: they try a stale change again, and make what others made before."""
    return STALE in error.message or (error.status_reason == AlreadyExists.reason and user.startswith("system:"))


def _explained_by_another(obj: Object) -> bool:
    """Whether what made an object is the one to look at: a pod that failed was replaced, or is its Job's trouble."""
    running = "containers" in (obj.get("spec") or {}) and (obj.get("status") or {}).get("phase") != "Failed"
    return controller_of(obj) is not None and not running


def _answer(where: Object, findings: list[Finding]) -> Response:
    return json_response({"kind": "Why", "apiVersion": API_VERSION, "metadata": {}, "object": where, "findings": [
        {"fact": f.fact, "because": f.because, "fix": f.fix} for f in findings]})


class View:
    """The cluster as one user may see it: what `explain.World` asks for."""

    def __init__(self, context: Context, user: Any, refusals: list[Object]) -> None:
        self._context = context
        self._user = user
        self._refusals = refusals
        self.now = context.clock.now()

    def _may(self, resource: Resource, verb: str, namespace: str, name: str = "") -> bool:
        place = namespace if resource.namespaced else ""
        return bool(self._context.authorizer.decide(access.Attributes(
            self._user, verb, resource.group, resource.version, resource.plural, "", place, name)).allowed)

    def _resource(self, name: str) -> Resource | None:
        try:
            return self._context.registry.named(name)
        except KeyError:
            return None

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        found = self._resource(resource)
        if found is None or not self._may(found, "get", namespace, name):
            return None
        item = self._context.cache.get(object_key(found, namespace, name))
        return item.obj if item is not None else None

    def list(self, resource: str, namespace: str) -> Sequence[Object]:
        found = self._resource(resource)
        if found is None or not self._may(found, "list", namespace):
            return []
        items = self._context.cache.list(collection_prefix(found, namespace), limit=MAX_LOOKED_AT)
        return [item.obj for item in items]

    def counts(self, namespace: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for resource in self._context.registry:
            if resource.namespaced and "list" in resource.verbs and resource.name not in found:
                count = self._context.cache.count(collection_prefix(resource, namespace))
                if count and self._may(resource, "list", namespace):
                    found[resource.name] = count
        return found

    def refusals(self, resource: str, namespace: str, name: str = "") -> Sequence[Object]:
        return [r for r in reversed(self._refusals) if r["resource"] == resource and r["namespace"] == namespace
                and (not name or r["name"] == name)]
