"""Services we answer ourselves, for plugins and monitoring agents of this node: the serving half of `client`.

Owns the way from a gRPC path to a coroutine of the same name, and the server on a socket. Promises that messages of a
package are made, and the object that answers is asked for, at the first call only. Called by `agent.kubelet.devices`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory

from cri_proto.messages import Package

log = logging.getLogger(__name__)


class Served(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The service `name` of `package`. `offer()` gives an object with a coroutine, or for streams of answers an
    asynchronous generator, per method: `async def Method(request, context)`."""

    def __init__(self, package: Package, name: str, path: str, offer: Callable[[], Any]) -> None:
        self._package, self._name, self._path, self._offer = package, name, path, offer

    def service(self, handler_call_details: Any) -> Any:
        path, _, name = handler_call_details.method.lstrip("/").rpartition("/")
        method = self._package.service(self._name).methods_by_name.get(name) if path == self._path else None
        if method is None:
            return None  # which gRPC answers with UNIMPLEMENTED
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(getattr(self._offer(), name), message_factory.GetMessageClass(method.input_type).FromString,
                    message_factory.GetMessageClass(method.output_type).SerializeToString)


async def serve(path: Path, service: Served, listening: Callable[[], None] = lambda: None) -> None:
    """Answer at the socket `path` until cancelled; `listening` is called when callers may come. Where no socket can be,
    that is logged, and nobody comes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, at the start
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    try:
        server.add_insecure_port(f"unix://{path}")
        await server.start()
        listening()
        await server.wait_for_termination()
    except RuntimeError as error:
        log.error("nobody can be answered at %s: %s", path, error)
        await asyncio.Event().wait()
    finally:
        await server.stop(None)
