"""DELETE of one object and of a collection.

Owns what a deletion means for an object: gone at once, marked and waiting for finalizers, or marked and waiting for a
node to stop its Pod. `decide` is pure. It promises that a precondition holds at the very write, and that a repeated
deletion never lengthens a grace period. Removing dependents is the garbage collector's work. Called by the handlers and
by the eviction of Pods.

Upstream: k8s.io/apiserver/pkg/registry/rest/delete.go, registry/generic/registry/store.go, core/pod/strategy.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver import admission
from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import views
from controlplane.apiserver.reading.lists import Window, collection_prefix, object_key, select, window
from controlplane.apiserver.request import Request
from controlplane.apiserver.writing import bodies
from controlplane.apiserver.writing.writes import RETRIES, Object, Writes
from controlplane.machinery import podfacts, strategy, wire
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.customdefinitions import CLEANUP
from controlplane.machinery.errors import ApiError, BadRequest, Conflict, Invalid, NotFound, forbidden, not_supported
from controlplane.machinery.resources import Resource
from controlplane.store.item import Item
from controlplane.store.log import Stale

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
POLICIES = ("Background", "Foreground", "Orphan")
DEFINITIONS = "customresourcedefinitions.apiextensions.k8s.io"
DEFAULT_GRACE = 30  # seconds, of a Pod that names none
JOB_WARNING = ("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove "
               "them or set propagationPolicy=Orphan to suppress this warning")
_ORPHANS_BY_DEFAULT = ("jobs.batch", "replicationcontrollers")


@dataclass(frozen=True, slots=True)
class Options:
    """metav1.DeleteOptions. `grace` None = the object's own; `policy` "" = the kind's default."""

    grace: int | None = None
    policy: str = ""
    uid: str = ""
    revision: str = ""
    dry: bool = False


async def options_of(request: Request) -> Options:
    """From the body, whatever group version it claims, else from the query. Raises BadRequest and Invalid."""
    raw: Object = {}
    body = await request.body()
    if body:
        try:
            raw = wire.decode(body, request.content_type) or {}
        except ApiError:
            raise
        except ValueError as error:
            raise BadRequest(f"error decoding DeleteOptions: {error}") from None
        if not isinstance(raw, dict) or raw.get("kind", "DeleteOptions") != "DeleteOptions":
            raise BadRequest("the body of a delete must be DeleteOptions")
    else:
        query = request.query
        raw = {"gracePeriodSeconds": query.integer("gracePeriodSeconds"),
               "propagationPolicy": query.get("propagationPolicy") or None}
        if "orphanDependents" in query:
            raw["orphanDependents"] = query.flag("orphanDependents")
    return parse_options(raw, bodies.dry_run(request, raw))


def parse_options(raw: Object, dry: bool) -> Options:
    """Raises Invalid. Pure."""
    policy, orphan = raw.get("propagationPolicy") or "", raw.get("orphanDependents")
    if policy and orphan is not None:
        raise Invalid.of("DeleteOptions", "", [forbidden(
            "propagationPolicy", "orphanDependents and deletionPropagation cannot be both set")], "meta.k8s.io")
    if policy and policy not in POLICIES:
        raise Invalid.of("DeleteOptions", "", [not_supported("propagationPolicy", policy, [*POLICIES, "nil"])],
                         "meta.k8s.io")
    if orphan is not None:
        policy = "Orphan" if orphan else "Background"
    conditions = raw.get("preconditions") or {}
    grace = raw.get("gracePeriodSeconds")
    if grace is not None and grace < 0:
        grace = 1
    return Options(grace, policy, conditions.get("uid") or "", str(conditions.get("resourceVersion") or ""), dry)


def check_preconditions(resource: Resource, name: str, options: Options, metadata: Object) -> None:
    """Raises Conflict."""
    why = ""
    if options.uid and options.uid != metadata["uid"]:
        why = (f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata['uid']}). "
               "The object might have been deleted and then recreated")
    elif options.revision and options.revision != metadata["resourceVersion"]:
        why = (f"the ResourceVersion in the precondition ({options.revision}) does not match the ResourceVersion in "
               f"record ({metadata['resourceVersion']}). The object might have been modified")
    if why:
        raise Conflict.of(resource.kind, name, resource.group, why)


def grace_of(obj: Object, options: Options) -> int:
    """Seconds a Pod still has: nothing runs of one that is not scheduled or has ended."""
    spec = obj.get("spec") or {}
    if not spec.get("nodeName") or podfacts.finished(obj):
        return 0
    if options.grace is not None:
        return options.grace
    own = spec.get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE if own is None else max(int(own), 0)


def finalizers_for(resource: Resource, finalizers: list[str], policy: str) -> list[str]:
    """The finalizers a deletion leaves the garbage collector to work on."""
    if not policy and resource.name in _ORPHANS_BY_DEFAULT and not {FOREGROUND, ORPHAN} & set(finalizers):
        policy = "Orphan"
    if not policy:
        return finalizers
    kept = [f for f in finalizers if f not in (FOREGROUND, ORPHAN)]
    return kept + ([FOREGROUND] if policy == "Foreground" else [ORPHAN] if policy == "Orphan" else [])


def decide(resource: Resource, obj: Object, options: Options, graceful: bool, now: float) -> Object | None:
    """The object as the deletion leaves it, or None when it goes at once. Does not change `obj`. Pure."""
    metadata = obj["metadata"]
    finalizers = finalizers_for(resource, list(metadata.get("finalizers") or []), options.policy)
    grace = grace_of(obj, options) if graceful else 0
    marked = bool(metadata.get("deletionTimestamp"))
    if resource.name == DEFINITIONS and not marked and CLEANUP not in finalizers:
        finalizers.append(CLEANUP)  # its objects go first
    new: Object = orjson.loads(orjson.dumps(obj))
    meta = new["metadata"]
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)
    if resource.name == "namespaces":
        if not finalizers and not (obj.get("spec") or {}).get("finalizers"):
            return None
        new.setdefault("status", {})["phase"] = "Terminating"
        if not marked:
            meta["deletionTimestamp"] = rfc3339(now)
        return new
    if not finalizers and grace == 0:
        return None
    if not marked:
        meta["deletionTimestamp"] = rfc3339(now + grace)
        meta["deletionGracePeriodSeconds"] = grace
        if meta.get("generation"):
            meta["generation"] += 1
    elif graceful and grace < (metadata.get("deletionGracePeriodSeconds") or 0):
        meta["deletionTimestamp"] = rfc3339(now + grace)
        meta["deletionGracePeriodSeconds"] = grace
    return new


class Deletes:
    """The verbs delete and deletecollection."""

    def __init__(self, context: Context, writes: Writes) -> None:
        self._context = context
        self._writes = writes

    async def delete(self, request: Request, resource: Resource) -> Item | Object:
        """The answer to a DELETE: a Status when the object is gone, else the object. Raises ApiError."""
        options = await options_of(request)
        if resource.name == "jobs.batch" and not options.policy:
            request.warn(JOB_WARNING)
        return await self.delete_object(request, resource, request.name, options)

    async def delete_object(self, request: Request, resource: Resource, name: str, options: Options) -> Item | Object:
        key = object_key(resource, request.namespace, name)
        for attempt in range(RETRIES):
            item = self._context.cache.get(key)
            if item is None:
                raise NotFound.of(resource.plural, name, resource.group)
            try:
                return await self._delete(request, resource, item, name, options)
            except Stale as error:
                if error.current is None:
                    raise NotFound.of(resource.plural, name, resource.group) from None
                if attempt == RETRIES - 1:
                    raise Conflict.of(resource.plural, name, resource.group) from None
        raise AssertionError("unreachable")

    async def _delete(self, request: Request, resource: Resource, item: Item, name: str,
                      options: Options) -> Item | Object:
        old = item.obj
        check_preconditions(resource, name, options, old["metadata"])
        await self._writes.admit(self._writes.attributes(request, resource, admission.DELETE, None, old, options.dry))
        plan = strategy.of(resource)
        left = decide(resource, old, options, plan.graceful, self._context.clock.now())
        if left is not None:
            return left if options.dry else await self._writes.put(item, left)
        if not options.dry:
            item = await self._writes.remove(resource, item)
        return item if plan.returns_deleted else success(resource, name, old["metadata"]["uid"])

    async def delete_collection(self, request: Request, resource: Resource) -> tuple[list[Item], int]:
        """Delete what the query selects; the deleted items, and the revision of the list. Raises ApiError."""
        options = await options_of(request)
        prefix = collection_prefix(resource, request.namespace)
        selection = select(request, resource)
        limit = window(request, prefix).limit if request.raw_query else Window().limit
        found = self._context.cache.list(prefix)
        if resource.custom and selection.match is not None:
            found = await views.all_shown(resource, found)
        items = [i for i in found if selection.match is None or selection.match(i)]
        for item in items[:limit or None]:
            name = item.obj["metadata"]["name"]
            try:
                await self.delete_object(request, resource, name, options)
            except NotFound:
                continue  # someone else was faster: it is gone, which is what was asked for
        return items[:limit or None], self._context.cache.revision


def success(resource: Resource, name: str, uid: str) -> Object:
    details: dict[str, Any] = {"name": name, "group": resource.group, "kind": resource.plural, "uid": uid}
    if not resource.group:
        del details["group"]
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
