"""Services we answer ourselves, for plugins and monitoring agents of this node: the serving half of `client`.

Owns the way from a gRPC path to a coroutine of the same name. Promises that messages of a package are made, and the
object that answers is asked for, at the first call only. Called by `agent.kubelet.devices`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import message_factory

from cri_proto.messages import Package


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
