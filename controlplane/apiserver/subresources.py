"""The parts of an object that have their own URL: status, scale, binding, eviction and their kin.

Owns what each subresource may read and change, as a `prepare` step that undoes everything else. The storing itself is
`writes`'. Streams (exec, log, proxy, …) and tokens belong to the edge. Called by the handlers.

Upstream: k8s.io/kubernetes/pkg/registry/core/pod/storage, apps/deployment/storage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.apiserver import admission
from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import scale as scales
from controlplane.apiserver.crd import views
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.request import Request
from controlplane.apiserver.writing import applies, bodies, deletes, patches, signing
from controlplane.apiserver.writing import eviction as budgets
from controlplane.apiserver.writing.deletes import Deletes
from controlplane.apiserver.writing.writes import Make, Object, Prepare, Stored, Writes
from controlplane.machinery import objects, podresize, selectors, strategy
from controlplane.machinery.errors import BadRequest, Cause, Conflict, Invalid, MethodNotAllowed, NotFound, invalid
from controlplane.machinery.resources import Resource, Subresource
from controlplane.machinery.validate import pods
from controlplane.store.item import Item

SCALE_DEFINITION = "io.k8s.api.autoscaling.v1.Scale"
BINDING_DEFINITION = "io.k8s.api.core.v1.Binding"
_WORKLOAD = {"specReplicasPath": ".spec.replicas"}
EVICTED = "Eviction API: evicting"


def keep_all_but(*paths: str) -> Callable[[Object, Object], None]:
    """A prepare step: everything outside these top-level fields is the stored object's, metadata included."""
    def prepare(new: Object, old: Object) -> None:
        for field in {*new, *old} - {*paths, "apiVersion", "kind"}:
            if field in old:
                new[field] = old[field]
            else:
                new.pop(field, None)
        new["metadata"] = dict(old["metadata"])
    return prepare


def prepare_ephemeral(new: Object, old: Object) -> None:
    """Only spec.ephemeralContainers may differ."""
    added = (new.get("spec") or {}).get("ephemeralContainers")
    keep_all_but()(new, old)
    new["spec"] = {**(old.get("spec") or {}), "ephemeralContainers": added or []}
    if added != (old.get("spec") or {}).get("ephemeralContainers") and new["metadata"].get("generation"):
        new["metadata"]["generation"] += 1


def ephemeral_causes(new: Object, old: Object) -> list[Cause]:
    """Ephemeral containers are only ever added, to pods that are not files of a node. Pure."""
    if podresize.MIRROR in (old["metadata"].get("annotations") or {}):
        return [Cause("FieldValueForbidden", "Forbidden: static pods do not support ephemeral containers", "")]
    before = (old.get("spec") or {}).get("ephemeralContainers") or []
    after = {c.get("name"): c for c in (new.get("spec") or {}).get("ephemeralContainers") or []}
    return [Cause("FieldValueForbidden", "Forbidden: existing ephemeral containers \"" + str(c["name"]) +
                  "\" may not be " + ("removed" if c["name"] not in after else "changed"), "spec.ephemeralContainers")
            for c in before if after.get(c["name"]) != c] + pods.ephemeral_containers(new.get("spec") or {}, "spec")


def scale_of(obj: Object) -> Object:
    """The autoscaling/v1 Scale of a workload. Pure."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    selector = spec.get("selector")
    text = ""
    if selector:
        labelled = "matchLabels" in selector or "matchExpressions" in selector
        text = str(selectors.from_label_selector(selector) if labelled else selectors.from_map(selector))
    shown = {k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
             if k in metadata}
    replicas = spec.get("replicas")
    made: Object = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": shown,
                    "spec": {"replicas": replicas} if replicas else {},
                    "status": {"replicas": status.get("replicas") or 0}}
    if text:
        made["status"]["selector"] = text
    return made


class Subresources:
    """One method per subresource; each returns what is answered."""

    def __init__(self, context: Context, writes: Writes, removals: Deletes) -> None:
        self._context = context
        self._writes = writes
        self._deletes = removals

    def stored(self, request: Request, resource: Resource) -> Object:
        """The parent object, shared. Raises NotFound."""
        return self._item(request, resource).obj

    def _item(self, request: Request, resource: Resource) -> Item:
        item = self._context.cache.get(object_key(resource, request.namespace, request.name))
        if item is None:
            raise NotFound.of(resource.plural, request.name, resource.group)
        return item

    # --- parts of the object itself: status, ephemeralcontainers, finalize, resize, approval --------------------

    def _prepare(self, resource: Resource, name: str) -> Prepare:
        if resource.name == signing.NAME:
            return signing.prepare(name, self._context.clock.timestamp())
        if name == "status":
            return strategy.of(resource).prepare_status
        if name == "ephemeralcontainers":
            return prepare_ephemeral
        if name == "resize":
            return podresize.prepare_resize
        if name == "finalize":
            return keep_all_but("spec")
        raise MethodNotAllowed()

    async def write(self, request: Request, resource: Resource) -> Stored:
        """PUT or PATCH of a subresource that speaks its parent's kind. Raises ApiError."""
        prepare = self._prepare(resource, request.subresource)
        make: Make
        if request.verb == "update":
            obj = await bodies.object_of(request, resource)
            bodies.place(request, resource, obj, request.name)
            make = lambda _: objects.deep_copy(obj)  # noqa: E731
        elif patches.media_type(request, resource) == patches.APPLY_PATCH:
            make = await applies.merge_of(request, resource, self._context.clock.timestamp())
        else:
            change = await patches.change_of(request, resource, resource.definition)
            make = patches.checked(request, resource, change, resource.shape, resource.api_version,
                                   resource.kind)
        check = _CHECKS.get(request.subresource)
        if check is None:
            return await self._writes.modify(request, resource, make, prepare,
                                             validate=request.subresource in ("status", "approval"))

        def prepare_checked(new: Object, old: Object) -> None:
            prepare(new, old)
            if causes := check(new, old):
                raise Invalid.of(resource.kind, request.name, causes, resource.group)

        return await self._writes.modify(request, resource, make, prepare_checked, validate=False)

    # --- scale -------------------------------------------------------------------------------------------------

    async def scale(self, request: Request, resource: Resource) -> Object:
        """GET, PUT or PATCH of /scale. Raises ApiError."""
        shape: Any = resource.extra.get("scale")  # of a custom kind: where it keeps its replicas
        show = scale_of if shape is None else lambda obj: scales.scale_of(obj, shape)
        if request.verb == "get":
            item = self._item(request, resource)
            return show((await views.shown(resource, item)).obj)
        applied = request.verb == "patch" and patches.media_type(request, resource) == patches.APPLY_PATCH
        if applied or request.verb == "update":
            body = await (patches.applied(request, resource, "autoscaling/v1", "Scale") if applied else
                          bodies.decode(request, "autoscaling/v1", "Scale", SCALE_DEFINITION))
            change: patches.Change = lambda _: body  # noqa: E731
        else:
            change = await patches.change_of(request, resource, SCALE_DEFINITION)

        now = self._context.clock.timestamp()

        def make(old: Object) -> Object:
            scale = change(show(old))
            bodies.check(request, SCALE_DEFINITION, "autoscaling/v1", "Scale", scale)
            replicas = (scale.get("spec") or {}).get("replicas") or 0
            if not isinstance(replicas, int) or replicas < 0:
                raise Invalid.of("Scale", request.name, [invalid("spec.replicas", replicas, "must be greater than or "
                                                                 "equal to 0")], "autoscaling")
            given = scale.get("metadata") or {}
            if applied:
                wanted = {f: old[f] for f in ("apiVersion", "kind")} | {"metadata": {"name": request.name}}
                return applies.owned(request, resource, old, scales.scaled(wanted, shape or _WORKLOAD, replicas), now)
            new = scales.scaled(old, shape or _WORKLOAD, replicas)
            new["metadata"] = dict(old["metadata"])
            if request.verb == "update" or given.get("resourceVersion"):
                new["metadata"]["resourceVersion"] = given.get("resourceVersion")
            return new

        stored = await self._writes.modify(request, resource, make, strategy.of(resource).prepare_update)
        return show(stored if isinstance(stored, dict) else (await views.shown(resource, stored)).obj)

    # --- pods: binding and eviction -----------------------------------------------------------------------------

    async def bind(self, request: Request, resource: Resource) -> Object:
        """POST of a Binding: the Pod gets its node, once. Raises ApiError."""
        binding = await bodies.decode(request, "v1", "Binding", BINDING_DEFINITION)
        metadata = binding["metadata"]
        if not request.name:
            request.name = metadata.get("name") or ""
        bodies.place(request, resource, binding, request.name)
        target = binding.get("target") or {}
        if target.get("kind", "Node") not in ("Node", "") or not target.get("name"):
            raise Invalid.of("Binding", request.name, [Cause("FieldValueRequired", "Required value", "target.name")])
        now = self._context.clock.timestamp()
        asked = self._writes.attributes(request, resource, admission.CREATE, binding, None, bodies.dry_run(request))
        asked.subresource = "binding"  # also when it was posted to the collection of bindings
        await self._writes.admit(asked)

        def make(old: Object) -> Object:
            return bound(old, binding, target["name"], now)

        def prepare(new: Object, old: Object) -> None:
            """`bound` changed only what a binding may."""

        await self._writes.modify(request, resource, make, prepare, validate=False)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    async def evict(self, request: Request, resource: Resource) -> Object:
        """POST of an Eviction: the Pod is marked as disrupted, then deleted gracefully. Raises ApiError."""
        eviction = await bodies.decode(request, "policy/v1", "Eviction", "io.k8s.api.policy.v1.Eviction")
        if (given := eviction["metadata"].get("name")) and given != request.name:
            raise BadRequest(f"name in URL does not match name in Eviction object: {request.name}, {given}")
        raw = eviction.get("deleteOptions") or {}
        options = deletes.parse_options(raw, bodies.dry_run(request, raw))
        pod = self.stored(request, resource)
        deletes.check_preconditions(resource, request.name, options, pod["metadata"])
        await self._writes.admit(self._writes.attributes(request, resource, admission.CREATE, eviction, None,
                                                         options.dry))
        await budgets.spend(self._context, pod, options.dry)
        if not options.dry and not pod["metadata"].get("deletionTimestamp"):
            now = self._context.clock.timestamp()
            await self._writes.modify(request, resource, lambda old: disrupted(old, now), lambda new, old: None,
                                      validate=False, dry=False)
            options = deletes.Options(options.grace, options.policy, options.uid, "", False)
        await self._deletes.delete_object(request, resource, request.name, options)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def bound(pod: Object, binding: Object, node: str, now: str) -> Object:
    """The Pod with its node. Raises Conflict. Pure."""
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    name = metadata["name"]
    why = ""
    if metadata.get("deletionTimestamp"):
        why = f"pod {name} is being deleted, cannot be assigned to a host"
    elif spec.get("nodeName"):
        why = f'pod {name} is already assigned to node "{spec["nodeName"]}"'
    elif spec.get("schedulingGates"):
        why = f"pod {name} has non-empty .spec.schedulingGates"
    given = binding["metadata"]
    if not why and given.get("uid") and given["uid"] != metadata["uid"]:
        why = f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {metadata['uid']}"
    if why:
        raise Conflict.of("pods/binding", name, "", why)
    new = objects.deep_copy(pod)
    new.setdefault("spec", {})["nodeName"] = node
    for field in ("annotations", "labels"):
        if given.get(field):
            new["metadata"][field] = {**(metadata.get(field) or {}), **given[field]}
    status = new.setdefault("status", {})
    status.pop("nominatedNodeName", None)  # what it was promised it has, there or elsewhere
    objects.set_condition(status.setdefault("conditions", []), "PodScheduled", "True", "", "", now)
    return new


def disrupted(pod: Object, now: str) -> Object:
    """The Pod with the condition that tells why it will go. Pure."""
    new = objects.deep_copy(pod)
    conditions: list[Any] = new.setdefault("status", {}).setdefault("conditions", [])
    objects.set_condition(conditions, "DisruptionTarget", "True", "EvictionByEvictionAPI", EVICTED, now)
    return new


_CHECKS = {"ephemeralcontainers": ephemeral_causes, "resize": podresize.resize_causes}


def speaks_parent(subresource: Subresource) -> bool:
    """Whether a subresource's body is the parent object itself."""
    return subresource.name in ("status", "ephemeralcontainers", "resize", "finalize", "approval")
