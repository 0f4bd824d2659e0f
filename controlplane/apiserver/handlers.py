"""The verbs: from an authorized resource request to its answer.

Owns the choice of what handles a request, and which verbs a resource or subresource knows. It promises that what is not
known is a 404 or a 405 as upstream words it. It neither authenticates nor authorizes: the pipeline has done so.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver import admission, componentstatus, podmetrics
from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import views
from controlplane.apiserver.reading import representation
from controlplane.apiserver.reading.lists import Reads
from controlplane.apiserver.reading.representation import Form
from controlplane.apiserver.reading.watch import Watches
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Answer, Response
from controlplane.apiserver.streaming import connects
from controlplane.apiserver.subresources import Subresources, speaks_parent
from controlplane.apiserver.writing import bodies, patches
from controlplane.apiserver.writing.deletes import Deletes
from controlplane.apiserver.writing.writes import Object, Stored, Writes
from controlplane.machinery import strategy
from controlplane.machinery.errors import MethodNotAllowed, NotFound
from controlplane.machinery.resources import Resource, Subresource
from controlplane.store.item import Item

STREAMS = ("exec", "attach", "portforward", "log", "proxy")
_UNCHECKED = ("get", "list", "watch", "delete", "deletecollection")  # verbs whose warnings no strategy gives
REVIEW_GROUPS = ("authentication.k8s.io", "authorization.k8s.io")


class Handlers:
    """All resource requests. `reviews` and `streams` come from the edge; without them they are 404."""

    def __init__(self, context: Context, writes: Writes, reviews: Any = None, streams: Any = None) -> None:
        self._context = context
        self.reads = Reads(context)
        self.watches = Watches(context)
        self._writes = writes
        self._deletes = Deletes(context, writes)
        self._subresources = Subresources(context, writes, self._deletes)
        self._reviews = reviews
        self._deprecated = {r.name: text for r in context.registry if (text := strategy.of(r).deprecated)}
        self._streams = streams
        self._metrics = podmetrics.PodMetrics(context, streams)

    def known(self, request: Request) -> tuple[Resource, Subresource | None]:
        """What a request is about. Raises NotFound and MethodNotAllowed."""
        resource = request.resource
        if resource is None:
            raise NotFound.path()
        if request.subresource:
            sub = resource.subresource(request.subresource)
            if sub is None or not request.name:
                raise NotFound.path()
            if sub.name not in STREAMS and request.rest:
                raise NotFound.path()
            if request.verb not in sub.verbs:
                raise MethodNotAllowed()
            return resource, sub
        verbs = resource.verbs
        if request.verb not in verbs or (request.name and request.verb in ("create", "list", "deletecollection")):
            raise MethodNotAllowed()
        if not request.name and request.verb in ("get", "update", "patch", "delete"):
            raise MethodNotAllowed()
        if resource.namespaced and not request.namespace and request.verb not in ("list", "watch") \
                and resource.group not in REVIEW_GROUPS:
            raise MethodNotAllowed()
        if request.target.namespace and not resource.namespaced and resource.plural != "namespaces":
            raise NotFound.path()
        return resource, None

    async def handle(self, request: Request) -> Answer:
        """The answer of a resource request. Raises ApiError."""
        resource, sub = self.known(request)
        if request.verb in _UNCHECKED and resource.name in self._deprecated:
            request.warn(self._deprecated[resource.name])
        elif resource.custom and (text := strategy.of(resource).deprecated):
            request.warn(text)
        if sub is not None:
            return await self._subresource(request, resource, sub)
        if resource.group == podmetrics.GROUP:
            return await self._metrics.handle(request, resource)
        if resource.name == "componentstatuses":
            return await componentstatus.handle(request, resource, self.watches.users, self._context.clock.now())
        match request.verb:
            case "get":
                return await self.reads.get_object(request, resource)
            case "list":
                return await self.reads.list_objects(request, resource)
            case "watch":
                return await self.watches.watch(request, resource)
            case "create":
                return await self._create(request, resource)
            case "update":
                stored, created = await self._writes.update(request, resource)
                return await self._answer(request, resource, stored, 201 if created else 200)
            case "patch":
                return await self._patch(request, resource)
            case "delete":
                return await self._answer(request, resource, await self._deletes.delete(request, resource))
            case "deletecollection":
                return await self._delete_collection(request, resource)
        raise MethodNotAllowed()

    async def _answer(self, request: Request, resource: Resource, stored: Stored, status: int = 200) -> Response:
        """An object as the client wants it; from its bytes when that is plain JSON."""
        if isinstance(stored, Item):
            if resource.converts:
                stored = await views.shown(resource, stored)
            form: Form = representation.form_of(request)
            if form.plain and not representation.pretty(request):
                headers = representation.warning_headers(request) if request.warnings else ()
                return Response(status, stored.data, headers=headers)
            stored = stored.obj
        return await representation.answer(request, stored, resource, self._context.clock.now(), status)

    async def _create(self, request: Request, resource: Resource) -> Response:
        if "get" in resource.verbs:
            return await self._answer(request, resource, await self._writes.create(request, resource), 201)
        representation.form_of(request)  # a form that cannot be given is told before anything is done
        if resource.name == "bindings":
            pods = self._context.registry.named("pods")
            return await self._answer(request, resource, await self._subresources.bind(request, pods), 201)
        if self._reviews is None:
            raise NotFound.path()
        obj = await bodies.object_of(request, resource)
        return await self._answer(request, resource, self._reviews.handle(request, obj), 201)

    async def _patch(self, request: Request, resource: Resource) -> Response:
        if patches.media_type(request, resource) == patches.APPLY_PATCH:
            from controlplane.apiserver.writing.applies import apply_object
            stored, created = await apply_object(request, resource, self._writes, self._context)
            return await self._answer(request, resource, stored, 201 if created else 200)
        change = await patches.change_of(request, resource, resource.definition)
        make = patches.checked(request, resource, change, resource.shape, resource.api_version, resource.kind)
        stored = await self._writes.modify(request, resource, make, strategy.of(resource).prepare_update)
        return await self._answer(request, resource, stored)

    async def _delete_collection(self, request: Request, resource: Resource) -> Response:
        items, revision = await self._deletes.delete_collection(request, resource)
        items = await views.all_shown(resource, items)
        made = representation.shaped_list(request, resource, [i.obj for i in items],
                                          {"resourceVersion": str(revision)}, representation.PLAIN, 0.0)
        return await representation.answer(request, made, None, self._context.clock.now())

    async def _subresource(self, request: Request, resource: Resource, sub: Subresource) -> Answer:
        if sub.name in STREAMS:
            if self._streams is None:
                raise NotFound.path()
            await connects.admit(self._writes, request, resource, sub)
            answer: Answer = await self._streams.handle(request)
            return answer
        if sub.name == "scale":
            return await self._answer(request, resource, await self._subresources.scale(request, resource))
        if sub.name == "binding":
            return await self._answer(request, resource, await self._subresources.bind(request, resource), 201)
        if sub.name == "eviction":
            return await self._answer(request, resource, await self._subresources.evict(request, resource), 201)
        if sub.name == "token":
            return await self._token(request, resource, sub)
        if not speaks_parent(sub):
            raise NotFound.path()
        if request.verb == "get":
            return await self.reads.get_object(request, resource)
        return await self._answer(request, resource, await self._subresources.write(request, resource))

    async def _token(self, request: Request, resource: Resource, sub: Subresource) -> Response:
        if self._reviews is None:
            raise NotFound.path()
        account = self._subresources.stored(request, resource)
        obj: Object = await bodies.decode(request, f"{sub.group}/{sub.version}", sub.kind,
                                          "io.k8s.api.authentication.v1.TokenRequest")
        dry = bodies.dry_run(request)
        await self._writes.admit(self._writes.attributes(request, resource, admission.CREATE, obj, None, dry))
        made = self._reviews.token(request, account, obj)
        return await self._answer(request, resource, made, 201)
