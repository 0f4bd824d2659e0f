"""Port-forward over a WebSocket's channels: two of them per port, and a stream of SPDY for each.

The ports stand in the query. Each has a channel for its bytes and, right after it, one for what goes wrong with it; the
first message on both is the port's number, little-endian. A port is connected to once: when all have ended, so has the
WebSocket. Pure. Called by `translation`.

Upstream: k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go, which this server spares runtimes.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.request import Query
from controlplane.apiserver.streaming import spdy
from controlplane.apiserver.streaming.channels import Channels
from controlplane.apiserver.streaming.websocket import CLOSE, NORMAL, frame
from controlplane.machinery.errors import BadRequest

SUBPROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")
MOST = 64  # ports: the number of a channel is one character in base64, too


class Ports(Channels):
    spdy_protocol = "portforward.k8s.io"

    def __init__(self, ports: list[int], subprotocol: str) -> None:
        super().__init__(subprotocol)
        self._ports = ports
        for index, port in enumerate(ports):
            for channel, kind in ((2 * index + 1, "error"), (2 * index, "data")):
                self.open(channel, {"streamtype": kind, "port": str(port), "requestid": str(index)})
                self.sending.add(channel)

    def begin(self) -> bytes:
        return b"".join(self.message(channel, port.to_bytes(2, "little")) for index, port in enumerate(self._ports)
                        for channel in (2 * index, 2 * index + 1))

    def typed(self, channel: int | None, content: bytes) -> bytes:
        if channel is None or channel % 2 or channel not in self.streams:
            return b""
        return spdy.data(self.streams[channel], content)

    def told(self, channel: int, content: bytes) -> bytes:
        return self.message(channel, content)

    def end(self) -> bytes:
        return frame(CLOSE, NORMAL)

    def refusal(self, status: dict[str, Any]) -> bytes:
        return b""


def asked(query: Query) -> list[int]:
    """The ports of a request. Raises BadRequest."""
    found = []
    for text in query.all("ports"):
        if not text:
            raise BadRequest('query parameter "port" cannot be empty')
        for part in text.split(","):
            if not (part.isascii() and part.isdigit() and int(part) < 65536):
                raise BadRequest(f'unable to parse "{part}" as a port: strconv.ParseUint: parsing "{part}": '
                                 f"{'value out of range' if part.isdigit() else 'invalid syntax'}")
            if not int(part):
                raise BadRequest(f'port "{part}" must be > 0')
            found.append(int(part))
    if not found:
        raise BadRequest('query parameter "port" is required')
    if len(found) > MOST:
        raise BadRequest(f"at most {MOST} ports can be forwarded at once")
    return found
