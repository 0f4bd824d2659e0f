"""One connection to a container runtime: the channel, its settings, and callables for every method we use.

Owns the gRPC channel to the runtime's Unix socket. Promises that a call made while the runtime restarts is answered
soon after it is back (short reconnect pauses), that messages as large as a full node's listing fit, and that methods
carry containerd's namespace where it needs one. Never retries a call and never interprets an answer:
`agent.kubelet.cri.runtime` and `images` do. Called by those and by `pelamis image`.

    async with Connection(path) as connection:
        answer = await connection.runtime.Version(cri.VersionRequest(), timeout=5)
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory

from controlplane.machinery.clock import SYSTEM
from cri_proto.messages import containerd, cri, csi, deviceplugin, dra, drahealth, registration
from cri_proto.tally import Tally

MAX_MESSAGE = 32 << 20  # a listing of some thousand containers with their labels is a few megabytes
RECONNECT_FIRST_MS, RECONNECT_MAX_MS = 50, 500  # the peer is on this host: its socket is back within a second
HELLO_MS = 20_000
NAMESPACE = "k8s.io"  # where containerd's CRI plugin keeps its images and tasks

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    # Which gRPC takes for the least time that connecting may take: a busy host's runtime is slow to say hello.
    ("grpc.min_reconnect_backoff_ms", HELLO_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),  # two connections of one process stay two
]

# Go's spelling of status codes, as they stand in events and logs that people search for.
_GO_NAMES = {code: "".join(word.capitalize() for word in code.name.split("_")) for code in grpc.StatusCode}
_GO_NAMES[grpc.StatusCode.CANCELLED] = "Canceled"


class Service:
    """The methods of one service as attributes: `await service.Method(request, timeout=…)`; streams are iterated. With
    a `tally` the calls are counted, but for streams."""

    def __init__(self, channel: grpc.aio.Channel, descriptor: Any, path: str, tally: Tally | None = None) -> None:
        for method in descriptor.methods:
            kinds = (("stream" if method.client_streaming else "unary"),
                     ("stream" if method.server_streaming else "unary"))
            make = getattr(channel, "_".join(kinds))
            answer = message_factory.GetMessageClass(method.output_type)
            request = message_factory.GetMessageClass(method.input_type)
            call = make(f"/{path}/{method.name}", request_serializer=request.SerializeToString,
                        response_deserializer=answer.FromString)
            if tally is not None and kinds == ("unary", "unary"):
                call = _counted(call, tally, method.name)
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the service has no method {name}")


def _counted(call: Any, tally: Tally, method: str) -> Any:
    async def counted(request: Any, **options: Any) -> Any:
        begun, failed = SYSTEM.monotonic(), True
        try:
            answer = await call(request, **options)
            failed = False
            return answer
        finally:
            tally.of(method).add(SYSTEM.monotonic() - begun, failed)
    return counted


class Connection:
    """A channel to the socket at `path` with its services; opens lazily, closes with `close` or `async with`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._channel = grpc.aio.insecure_channel(f"unix://{self.path}", options=_OPTIONS)
        self.tally = Tally()
        self.runtime = Service(self._channel, cri.service("RuntimeService"), "runtime.v1.RuntimeService", self.tally)
        self.image = Service(self._channel, cri.service("ImageService"), "runtime.v1.ImageService", self.tally)

    def containerd(self, name: str) -> Service:
        """One of containerd's own services (Events, Content, …), whose calls need `metadata=metadata()`."""
        return Service(self._channel, containerd.service(name), f"containerd.services.{name.lower()}.v1.{name}")

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Plugin:
    """A channel to the socket of a storage driver, a device plugin, a driver of ResourceClaims or a registrar."""

    def __init__(self, path: Path | str) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix://{path}", options=_OPTIONS)

    @cached_property
    def node(self) -> Service:
        return Service(self._channel, csi.service("Node"), "csi.v1.Node")

    @cached_property
    def registration(self) -> Service:
        return Service(self._channel, registration.service("Registration"), "pluginregistration.Registration")

    @cached_property
    def devices(self) -> Service:
        return Service(self._channel, deviceplugin.service("DevicePlugin"), "v1beta1.DevicePlugin")

    @cached_property
    def claims(self) -> Service:
        return Service(self._channel, dra.service("DRAPlugin"), "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin")

    @cached_property
    def health(self) -> Service:
        return Service(self._channel, drahealth.service("DRAResourceHealth"), "v1alpha1.DRAResourceHealth")

    async def __aenter__(self) -> Plugin:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


def metadata(lease: str = "") -> tuple[tuple[str, str], ...]:
    """What containerd's own services expect beside the request: the namespace and, for writers, a lease."""
    return (("containerd-namespace", NAMESPACE), *((("containerd-lease", lease),) if lease else ()))


def describe(error: grpc.aio.AioRpcError) -> str:
    """The error as Go prints it: `rpc error: code = NotFound desc = …`."""
    return f"rpc error: code = {_GO_NAMES[error.code()]} desc = {error.details() or ''}"
