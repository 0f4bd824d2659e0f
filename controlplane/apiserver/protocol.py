"""One client's connection, when what comes over it is no HTTP, or nothing comes.

Owns the answer to bytes the parser refuses: a Status of 400 and a closed connection, with a line in the log that names
the client and no stack trace, so that nobody fills the log by sending nonsense; and the end of connections whose first
request does not come, so that nobody holds thousands of them for nothing. Everything else is aiohttp's. Made by the
server's listener.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from controlplane.apiserver.response import Response, error_response
from controlplane.machinery.errors import BadRequest, InternalError, TooLarge

LOG = logging.getLogger("apiserver")
FIRST_SECONDS = 32.0  # from the connection to the end of the first request's head; upstream's bound for a head


class Connection(RequestHandler):  # type: ignore[misc,unused-ignore]
    """A connection whose refusals are ours."""

    __slots__ = ("_first",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._first = self._loop.call_later(FIRST_SECONDS, self._give_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._first.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not self._request_count and self.transport is not None:
            self.transport.close()

    def handle_error(self, request: web.BaseRequest, status: int = 500,  # type: ignore[override]  # it sends as theirs
                     exc: BaseException | None = None, message: str | None = None) -> Response:
        """The answer to what is no request, or to a fault outside the pipeline."""
        self.close()  # once the answer is written
        if status >= 500:
            LOG.error("a request of %s failed: %s: %s", request.remote, type(exc).__name__, exc, exc_info=exc)
            return error_response(InternalError.of("the request could not be handled"))
        LOG.info("refused what %s sent: %s", request.remote, type(exc).__name__)
        return error_response(TooLarge("the request's head is too large", code=431) if isinstance(exc, LineTooLong)
                              else BadRequest("the bytes received are no HTTP request"))


class Listener(web.Server):
    """aiohttp's low-level server with our connections."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)
