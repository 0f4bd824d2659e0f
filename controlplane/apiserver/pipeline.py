"""The way of every request: authenticated, authorized, seated, handled, answered, recorded.

Owns the order of those steps, the time-out of ordinary requests and the rendering of errors. It promises one answer per
request whatever a handler raises, that every answer carries its id, that a seat is given back on every way out, and
that no unexpected error tells a client more than that there was one (the log has the rest). Who is seated first is
`flowcontrol`'s, what is recorded `audit`'s; refusals are shown to `why`.
Called by the server for each request.

Upstream: k8s.io/apiserver/pkg/server/config.go (DefaultBuildHandlerChain).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from controlplane.apiserver import why
from controlplane.apiserver.authentication import authn
from controlplane.apiserver.authorization import access
from controlplane.apiserver.context import Context
from controlplane.apiserver.flow.flowcontrol import FlowControl
from controlplane.apiserver.handlers import STREAMS, Handlers
from controlplane.apiserver.reading.representation import warning_headers
from controlplane.apiserver.recording.audit import Ids
from controlplane.apiserver.recording.changelog import ACTOR
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Answer, Response, error_response, text_response
from controlplane.machinery.errors import (
    ApiError,
    BadRequest,
    Finding,
    InternalError,
    MethodNotAllowed,
    ServiceUnavailable,
    Timeout,
)

LOG = logging.getLogger("apiserver")
REQUEST_SECONDS = 60.0  # of an ordinary request; upstream's bound
PROVED_SECONDS = 300.0  # a certificate is looked at again after this: it may have expired on an open connection


class Edge(Protocol):
    """Something that answers some non-resource paths."""

    async def handle(self, request: Request) -> Answer | None: ...


def long_running(request: Request) -> bool:
    return request.verb == "watch" or request.subresource in STREAMS


def check_timeout(text: str) -> None:
    """The time a client would wait, of which only the form matters here. Raises BadRequest."""
    from controlplane.machinery.structural.formats import duration
    try:
        duration(text) if text and text != "0" else 0.0
    except ValueError:
        raise BadRequest("invalid timeout specified in the request URL") from None


class Pipeline:
    """`authenticator` and `authorizer` are the edge's; `edges` are asked in order for what is no resource path."""

    def __init__(self, context: Context, authenticator: Any, authorizer: Any, handlers: Handlers,
                 edges: Sequence[Edge] = (), metrics: Any = None) -> None:
        self._context = context
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._handlers = handlers
        self._edges = list(edges)
        self._metrics = metrics
        self._ids = Ids(context.clock)
        options = context.options
        self.flows = FlowControl(context, options.max_requests_inflight + options.max_mutating_requests_inflight)
        self.audit: Any = None  # an audit.Auditor, when there is a policy
        self.on_refusal: Callable[[Request, ApiError], None] | None = None
        self.in_flight = 0

    async def serve(self, request: Request) -> Answer:
        """The answer of one request. Raises nothing but cancellation."""
        started = self._context.clock.monotonic()
        request.trace = self._ids.line(request.headers.get("Audit-ID"))
        try:
            answer = await self._bounded(request)
        except ApiError as error:
            answer = error_response(error)
            if request.warnings:
                answer.headers = [*answer.headers, *warning_headers(request)]
            if self.on_refusal is not None:
                self.on_refusal(request, error)
        except ConnectionError:
            raise
        except Exception as error:
            answer = self._unexpected(request, error)
        answer.trace = request.trace
        if self.audit is not None:
            self.audit.answered(request, answer)
        if self._metrics is not None:
            self._observe(request, answer.status, self._context.clock.monotonic() - started)
        return answer

    def _observe(self, request: Request, status: int, seconds: float) -> None:
        resource = request.resource
        labels = (request.verb, resource.group, resource.version, resource.plural, request.subresource) \
            if resource is not None else (request.verb if request.verb in ("get", "post") else "other", "", "", "", "")
        self._metrics.observe(labels, status, seconds)

    def _unexpected(self, request: Request, error: Exception) -> Response:
        if isinstance(error, Finding):
            LOG.error("%s %s: %s", request.method, request.path, error)
            return error_response(ServiceUnavailable(f"the storage cannot take this request: {error.fact}"))
        LOG.error("%s %s failed: %s: %s", request.method, request.path, type(error).__name__, error, exc_info=error)
        return error_response(InternalError.of(f"{type(error).__name__} while handling the request"))

    async def _bounded(self, request: Request) -> Answer:
        self.admit_sender(request)
        flow = self.flows.flow(request)
        request.trace += flow.trace
        if long_running(request) or ("Upgrade" in request.headers and self._remote(request) is not None):
            return await self._dispatch(request)
        if "timeout=" in request.raw_query:
            check_timeout(request.query.get("timeout"))
        if request.verb == "get":  # answered from memory, and bounded by itself where it waits for a revision
            return await self._dispatch(request)
        level = await self.flows.enter(request, flow)
        self.in_flight += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS) as bound:
                return await self._dispatch(request)
        except TimeoutError:
            if not bound.expired():
                raise
            raise Timeout(f"request did not complete within the allotted timeout ({int(REQUEST_SECONDS)}s)") from None
        finally:
            self.in_flight -= 1
            self.flows.leave(level)

    def admit_sender(self, request: Request) -> None:
        """Authenticate and authorize. Raises Unauthorized and Forbidden."""
        connection, headers = request.connection, request.headers
        if authn.varies(headers, self._authenticator.headers):
            request.user = self._authenticator.authenticate(request)
        else:  # who the connection is was proved by its certificate, or the lack of one
            user, until = connection.get("user", (None, 0.0))
            now = self._context.clock.monotonic()
            if user is None or now >= until:
                user = self._authenticator.authenticate(request)
                connection["user"] = user, now + PROVED_SECONDS
            request.user = user
        if self.audit is not None:
            self.audit.received(request)
        if self._context.changes is not None:
            ACTOR.set(request.user.name)
        about = why.subject(request, self._context) if request.path.startswith(why.PREFIX) else request
        self._authorizer.authorize(access.attributes_of(about))

    def _remote(self, request: Request) -> Any:
        """The other server a request is for, None when it is this one's."""
        aggregator = self._context.aggregator
        return aggregator.remotes.at(request.path) if aggregator is not None else None

    async def _dispatch(self, request: Request) -> Answer:
        if (remote := self._remote(request)) is not None:
            answer: Answer = await self._context.aggregator.pass_on(request, remote)
            return answer
        if request.is_resource:
            group_versions = self._context.registry
            where = request.target
            if request.resource is None and not group_versions.in_version(where.group, where.version):
                return text_response("404 page not found\n", 404)
            if not request.verb:
                raise MethodNotAllowed()
            return await self._handlers.handle(request)
        for edge in self._edges:
            if (made := await edge.handle(request)) is not None:
                return made
        return text_response("404 page not found\n", 404)
