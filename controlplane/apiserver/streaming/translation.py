"""A client's WebSocket in terms of the SPDY that kubelets speak: what each received byte makes of the other side.

Owns the two translations. `Tunnel` is port-forward in the subprotocol `SPDY/3.1+portforward.k8s.io`: the client's
messages are SPDY already and only unpacked. `Command` is exec and attach in any of the `channel.k8s.io` subprotocols:
messages begin with the number of a channel, each channel is a stream, the status comes last on the channel of errors.
`ports.Ports` is port-forward in those.
Promises: nothing is kept beyond a status and the heads of frames, so who passes the results on has all the backpressure
in its hands. Pure. Called by `streams` (which one), `tunnel` and `translator`.

Upstream: k8s.io/apiserver/pkg/util/proxy/{streamtunnel,streamtranslator,websocket}.go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from controlplane.apiserver.request import Query
from controlplane.apiserver.streaming import ports, spdy, websocket
from controlplane.apiserver.streaming.channels import Bytes, Channels, received
from controlplane.apiserver.streaming.websocket import BINARY, CLOSE, NORMAL, frame

FORWARD = "SPDY/3.1+portforward.k8s.io"
COMMAND = "v5.channel.k8s.io"  # channel 255 closes another
PLAIN = ("", "channel.k8s.io", "base64.channel.k8s.io")  # whose status is a text, and only of a failure
COMMANDS = (COMMAND, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.v4.channel.k8s.io", *PLAIN)
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSES = 0, 1, 2, 3, 4, 255
MAX_STATUS = 65536  # bytes
_OWN = ("upgrade", "connection", "sec-websocket-", "x-stream-protocol-version")  # headers of the client's hop

class Translation(Protocol):
    """Between a client's and a node's connection. Pairs are the bytes for the other side and for the same side."""

    subprotocol: str  # as the client offered it
    spdy_protocol: str  # what the node is asked for
    ready: bool  # the client may be answered
    over: bool  # nothing more will come from the node
    closed: bool  # the client has said goodbye

    def start(self) -> bytes:
        """What the node gets first."""

    def from_client(self, data: bytes) -> Bytes:
        """For the node, for the client. Raises ValueError for what breaks the protocol, as does `from_node`."""

    def from_node(self, data: bytes) -> Bytes:
        """For the client, for the node."""

    def end(self) -> bytes:
        """The client's last bytes, when the node has ended."""

    def ping(self) -> bytes:
        """For the node, now and then: a connection that carries nothing would be cut on its way."""

    def refusal(self, status: dict[str, Any]) -> bytes:
        """What the client gets in place of an answer when the node refuses; nothing: an answer."""


def of(headers: Mapping[str, str], subresource: str, query: Query) -> Translation | None:
    """The translation that an upgrade needs; None when its bytes may pass as they are. Raises BadRequest."""
    if headers.get("Upgrade", "").lower() != "websocket" or not headers.get("Sec-WebSocket-Key"):
        return None
    offered = websocket.offered(headers.get("Sec-WebSocket-Protocol", ""))
    if subresource == "portforward":
        if FORWARD in offered:
            return Tunnel()
        known = next((name for name in offered or ("",) if name in ports.SUBPROTOCOLS), None)
        return None if known is None else ports.Ports(ports.asked(query), known)
    chosen = next((name for name in offered or ("",) if name in COMMANDS), None)
    if chosen is None:
        return None
    wanted = {name for name in ("stdin", "stdout", "stderr", "tty") if query.get(name) in ("1", "true")}
    return Command(wanted, chosen)


def node_headers(headers: Mapping[str, str], translation: Translation) -> dict[str, str]:
    """The client's headers with the upgrade that the node is asked for."""
    kept = {name: value for name, value in headers.items() if not name.lower().startswith(_OWN)}
    return kept | {"Connection": "Upgrade", "Upgrade": "SPDY/3.1",
                   "X-Stream-Protocol-Version": translation.spdy_protocol}


class Tunnel:
    """SPDY in messages."""

    subprotocol = FORWARD
    spdy_protocol = FORWARD.removeprefix("SPDY/3.1+")
    ready = True
    over = False

    def __init__(self) -> None:
        self.closed = False
        self._reader = websocket.Reader()

    def start(self) -> bytes:
        return b""

    def from_client(self, data: bytes) -> Bytes:
        inside, answer, self.closed = received(self._reader, data, lambda piece: piece.data)
        return inside, answer

    def from_node(self, data: bytes) -> Bytes:
        return frame(BINARY, data), b""

    def end(self) -> bytes:
        return frame(CLOSE, NORMAL)

    def ping(self) -> bytes:
        return b""  # the client's own go through

    def refusal(self, status: dict[str, Any]) -> bytes:
        return b""


def success() -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def failure(why: str) -> dict[str, Any]:
    """The Status of an internal error."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "InternalError",
            "message": f"Internal error occurred: {why}", "details": {"causes": [{"message": why}]}, "code": 500}


class Command(Channels):
    """Channels as streams. `wanted` of stdin, stdout, stderr, tty; `subprotocol` one of COMMANDS."""

    spdy_protocol = "v4.channel.k8s.io"  # v5 adds the closing of a channel, which streams always could

    def __init__(self, wanted: set[str], subprotocol: str = COMMAND) -> None:
        super().__init__(subprotocol)
        tty = "tty" in wanted
        for channel, name, is_asked in ((ERROR, "error", True), (STDIN, "stdin", "stdin" in wanted),
                                        (STDOUT, "stdout", "stdout" in wanted),
                                        (STDERR, "stderr", "stderr" in wanted and not tty), (RESIZE, "resize", tty)):
            if is_asked:
                self.open(channel, {"streamtype": name})
        self.sending |= {c for c in (ERROR, STDOUT, STDERR) if c in self.streams}
        self._status = bytearray()
        self._stdin = STDIN in self.streams

    def begin(self) -> bytes:
        return self.message(min(self.sending, default=ERROR), b"")

    def typed(self, channel: int | None, content: bytes) -> bytes:
        if channel == CLOSES and content[0] == STDIN and self._stdin and self.subprotocol == COMMAND:
            self._stdin = False
            return spdy.data(self.streams[STDIN], b"", last=True)
        if channel in self.streams and (channel == RESIZE or (channel == STDIN and self._stdin)):
            return spdy.data(self.streams[channel], content)
        return b""

    def told(self, channel: int, content: bytes) -> bytes:
        if channel != ERROR:
            return self.message(channel, content)
        self._status += content[:MAX_STATUS - len(self._status)]
        return b""

    def end(self) -> bytes:
        told = bytes(self._status)
        if not told:
            told = json.dumps(failure("error reading from error stream: unexpected EOF") if ERROR in self.sending
                              else success()).encode()
        return self._as_status(told) + frame(CLOSE, NORMAL)

    def _as_status(self, status: bytes) -> bytes:
        """A status on the channel of errors, in the form the subprotocol has."""
        if self.subprotocol in PLAIN:
            try:
                said = json.loads(status)
                if said.get("status") != "Failure":
                    return b""
                status = str(said.get("message") or "").encode()
            except (ValueError, AttributeError):
                pass  # a runtime's plain text already
        return self.message(ERROR, status)

    def refusal(self, status: dict[str, Any]) -> bytes:
        if self.subprotocol != COMMAND:
            return b""
        return self.begin() + self._as_status(json.dumps(status).encode()) + frame(CLOSE, NORMAL)
