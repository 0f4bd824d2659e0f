"""GET of one object and LIST of a collection, from the cache's bytes.

Owns what `resourceVersion`, `resourceVersionMatch`, `limit`, `continue` and selectors mean for reads. It promises
that all pages of one list show the same revision, and that a list's revision is the right start for a watch. It never
decodes an object that no selector and no shape asks for. Called by the pipeline; `select` also by watch and deletes.

Upstream: k8s.io/apiserver/pkg/storage/etcd3/store.go (GetList), storage/continue.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver.context import Context
from controlplane.apiserver.crd import views
from controlplane.apiserver.reading import bulk, listoptions, representation
from controlplane.apiserver.reading.listoptions import Token
from controlplane.apiserver.reading.representation import Form
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import JSON, Headers, Response, Stream
from controlplane.machinery import selectors
from controlplane.machinery.errors import BadRequest, Expired, NotFound, Timeout
from controlplane.machinery.resources import Resource
from controlplane.store.cache import key_of, prefix_of
from controlplane.store.item import Item
from controlplane.store.log import Compacted

FUTURE_WAIT = 3.0  # seconds a read waits for a revision that has not come; upstream's bound
TOO_OLD = "The resourceVersion for the provided list is too old."
TOKEN_TOO_OLD = ("The provided continue parameter is too old to display a consistent list result. You can start a new "
                 "list without the continue parameter, or use the continue token in this response to retrieve the "
                 "remainder of the results. Continuing with the provided token results in an inconsistent list - "
                 "objects that were created, modified, or deleted between the time the first chunk was returned and "
                 "now may show up in the list.")
THREAD_ABOVE = 2000  # objects; shaping more than this would hold the loop for tens of milliseconds
LISTED = ("Table", "PartialObjectMetadataList")  # what can be written row by row

Match = Callable[[Item], bool]


def object_key(resource: Resource, namespace: str, name: str) -> str:
    return key_of(resource.bucket, namespace if resource.namespaced else "", name)


def collection_prefix(resource: Resource, namespace: str) -> str:
    return prefix_of(resource.bucket, namespace if resource.namespaced else "")


@dataclass(frozen=True, slots=True)
class Selection:
    """What `labelSelector` and `fieldSelector` leave: `match` None = everything; `name` when exactly one name can."""

    match: Match | None = None
    name: str = ""


EVERYTHING = Selection()


def select(request: Request, resource: Resource) -> Selection:
    """The selection of a request's query. Raises BadRequest."""
    if not request.raw_query or "elector=" not in request.raw_query:
        return EVERYTHING
    label_text, field_text = request.query.get("labelSelector"), request.query.get("fieldSelector")
    labels = selectors.parse_labels(label_text) if label_text else None
    fields = selectors.parse_fields(field_text) if field_text else None
    if labels is not None and labels.empty:
        labels = None
    if fields is not None and not fields.requirements:
        fields = None
    if fields is not None:
        selectors.check_fields(resource, fields)  # an unknown path is told before anything is read
    if labels is None and fields is None:
        return EVERYTHING
    if labels is None and fields is not None and len(fields.requirements) == 1 and fields.exact("metadata.name"):
        end = "/" + (fields.exact("metadata.name") or "")  # nothing needs to be decoded for it
        return Selection(lambda item: item.key.endswith(end), end[1:])
    by_field = selectors.field_matcher(resource, fields) if fields is not None else None

    def match(item: Item) -> bool:
        if labels is not None and not labels.matches(item.labels):
            return False
        return by_field is None or by_field(item.obj)

    return Selection(match, (fields.exact("metadata.name") or "") if fields is not None else "")


async def reach(context: Context, revision: int) -> None:
    """Wait until `revision` is readable. Raises Timeout when it does not come."""
    if revision <= context.cache.revision:
        return
    try:
        async with asyncio.timeout(FUTURE_WAIT):
            await context.cache.reached(revision)
    except TimeoutError:
        raise Timeout.too_new(revision, context.cache.revision) from None


@dataclass(frozen=True, slots=True)
class Window:
    """What of a collection a list asks for. `revision` 0 = the newest state; `exact` = the state at `revision`."""

    limit: int = 0
    after: str = ""
    revision: int = 0
    exact: bool = False


def window(request: Request, prefix: str) -> Window:
    """The window of a request's query. Raises BadRequest and Invalid. Pure."""
    if not request.raw_query:
        return Window()
    query = request.query
    limit = max(query.integer("limit") or 0, 0)
    query.integer("timeoutSeconds")  # of no effect here, but no nonsense either
    listoptions.check(query, watch=False)
    asked, match, token = query.get("resourceVersion"), query.get("resourceVersionMatch"), query.get("continue")
    if token:
        place = Token.decode(token, prefix)
        if asked and asked != "0":
            raise BadRequest("specifying resource version is not allowed when using continue")
        return Window(limit, place.after, max(place.revision, 0), place.revision > 0)
    revision = listoptions.revision_to_read(asked)
    exact = match == "Exact" or (bool(revision) and bool(limit) and not match)  # upstream's old rule for pages
    return Window(limit, "", revision, exact)


class Reads:
    """The verbs get and list."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def _item(self, request: Request, resource: Resource) -> Item:
        """One object as it is stored. Raises NotFound."""
        item = self._context.cache.get(object_key(resource, request.namespace, request.name))
        if item is None:
            raise NotFound.of(resource.plural, request.name, resource.group)
        return item

    async def get_object(self, request: Request, resource: Resource) -> Response:
        if request.raw_query and (asked := request.query.get("resourceVersion")) not in ("", "0"):
            await reach(self._context, listoptions.revision_to_read(asked))
        item = self._item(request, resource)
        data = (await views.shown(resource, item) if resource.converts else item).data
        form = representation.form_of(request)
        if form.plain and not request.warnings and not representation.pretty(request):
            return await representation.compressed(request, Response(200, data))
        answer = await representation.answer(request, orjson.loads(data), resource, self._context.clock.now())
        return await representation.compressed(request, answer)

    async def list_objects(self, request: Request, resource: Resource) -> Response | Stream:
        form = representation.form_of(request)
        prefix = collection_prefix(resource, request.namespace)
        asked = window(request, prefix)
        selection = select(request, resource)
        if not asked.exact:
            await reach(self._context, asked.revision)
        indented = representation.pretty(request)
        cache = self._context.cache
        if form.plain and not indented and not resource.converts and selection is EVERYTHING and asked == Window() \
                and cache.count(prefix) <= bulk.ABOVE:
            metadata: dict[str, Any] = {"resourceVersion": str(cache.revision)}
            return await representation.compressed(request, _listed(request, resource, metadata,
                                                                    cache.list_body(prefix)))
        items, metadata = await self.page(asked, prefix, selection, resource)
        if form.plain and not indented and len(items) > bulk.ABOVE:
            return bulk.answer(request, _opening(resource, metadata), items, bulk.joined(not resource.custom),
                               _warnings(request))
        if form.plain and not indented:
            joined = b",".join([item.data if resource.custom else item.bare for item in items])
            return await representation.compressed(request, _listed(request, resource, metadata, joined))
        if form.shape in LISTED and form.media == JSON and not indented and len(items) > bulk.BATCH:
            entry = representation.entries(request, resource, form, self._context.clock.now())
            head = orjson.dumps(representation.opening(resource, metadata, form)).removesuffix(b"]}")
            return bulk.answer(request, head, items, lambda batch: b",".join(
                [orjson.dumps(entry(orjson.loads(item.data))) for item in batch]), _warnings(request))
        made = await self._shaped(request, resource, items, metadata, form, indented)
        return await representation.compressed(request, made)

    async def page(self, asked: Window, prefix: str, selection: Selection,
                   resource: Resource) -> tuple[Sequence[Item], dict[str, Any]]:
        """The items of a window, and the list's metadata. Raises Expired and Timeout."""
        cache = self._context.cache
        revision = cache.revision
        if asked.exact and asked.revision != revision:
            if asked.revision > revision:
                await reach(self._context, asked.revision)
            revision = asked.revision
            try:
                items: Sequence[Item] = await cache.list_at(prefix, revision)
            except Compacted:
                raise _expired(asked) from None
            if asked.after:
                items = [item for item in items if item.key > asked.after]
        elif asked.limit and selection.match is None:
            items = cache.list(prefix, asked.after, asked.limit)
            whole = len(cache.list(prefix, asked.after)) if asked.after else cache.count(prefix)
            left = whole - len(items)
            items = await views.all_shown(resource, items) if resource.converts else items
            return items, _page_metadata(revision, items, left if left > 0 else 0, counted=True)
        else:
            items = cache.list(prefix, asked.after)
        if selection.name:
            items = [item for item in items if item.key.rpartition("/")[2] == selection.name]
        if resource.converts and (selection.match is not None or not asked.limit):
            items = await views.all_shown(resource, items)  # a selector may look at fields another version lacks
        if selection.match is not None:
            items = await bulk.matching(items, selection.match, asked.limit)
        page, metadata = _cut(items, asked.limit, selection.match is None, revision)
        if resource.converts and selection.match is None and asked.limit:
            page = await views.all_shown(resource, page)
        return page, metadata

    async def _shaped(self, request: Request, resource: Resource, items: Sequence[Item], metadata: dict[str, Any],
                      form: Form, indented: bool) -> Response:
        now = self._context.clock.now()

        def work() -> bytes:
            objects = [item.obj if len(items) <= THREAD_ABOVE else orjson.loads(item.data) for item in items]
            made = representation.shaped_list(request, resource, objects, metadata, form, now)
            return representation.encode(made, form, indented)

        if len(items) > THREAD_ABOVE:
            body = await asyncio.get_running_loop().run_in_executor(None, work)
        else:
            body = work()
        return Response(200, body, form.media, representation.warning_headers(request))


def _warnings(request: Request) -> Headers:
    return representation.warning_headers(request) if request.warnings else ()


def _listed(request: Request, resource: Resource, metadata: dict[str, Any], joined: bytes) -> Response:
    """A list of items that are joined already, and never copied."""
    return Response(200, joined, headers=_warnings(request), around=(_opening(resource, metadata), b"]}\n"))


def _opening(resource: Resource, metadata: dict[str, Any]) -> bytes:
    return b'{"kind":"%b","apiVersion":"%b","metadata":%b,"items":[' % (
        resource.lists.encode(), resource.api_version.encode(), orjson.dumps(metadata))


def _cut(items: Sequence[Item], limit: int, counted: bool, revision: int) -> tuple[Sequence[Item], dict[str, Any]]:
    """The first `limit` items, and the metadata that leads to the next page; how many are left is told if `counted`."""
    rest = len(items) - limit if limit else 0
    page = items[:limit] if rest > 0 else items
    return page, _page_metadata(revision, page, max(rest, 0), counted)


def _page_metadata(revision: int, page: Sequence[Item], rest: int, counted: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    if rest and page:
        metadata["continue"] = Token(revision, page[-1].key).encode()
        if counted:
            metadata["remainingItemCount"] = rest
    return metadata


def _expired(asked: Window) -> Expired:
    if not asked.after:
        return Expired(TOO_OLD)
    return Expired(TOKEN_TOO_OLD, continue_token=Token(-1, asked.after).encode())
