"""A client's WebSocket in terms of the SPDY that kubelets speak: what each received byte makes of the other side.

Owns the two translations. `Tunnel` is port-forward in the subprotocol `SPDY/3.1+portforward.k8s.io`: the client's
messages are SPDY already and only unpacked. `Command` is exec and attach in `v5.channel.k8s.io`: messages begin with
the number of a channel, each channel is a stream, channel 255 closes one, the status comes last on the channel of
errors. Promises: nothing is kept beyond a status and the heads of frames, so who passes the results on has all the
backpressure in its hands. Other subprotocols are not translated: runtimes speak them. Pure. Called by `streams` (which
one), `tunnel` and `translator`.

Upstream: k8s.io/apiserver/pkg/util/proxy/{streamtunnel,streamtranslator,websocket}.go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Protocol

from controlplane.apiserver import spdy, websocket
from controlplane.apiserver.request import Query
from controlplane.apiserver.websocket import BINARY, CLOSE, NORMAL, PING, PONG, TEXT, frame

FORWARD = "SPDY/3.1+portforward.k8s.io"
COMMAND = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSES = 0, 1, 2, 3, 4, 255
MAX_STATUS = 65536  # bytes
_OWN = ("upgrade", "connection", "sec-websocket-", "x-stream-protocol-version")  # headers of the client's hop
Bytes = tuple[bytes, bytes]


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


def of(headers: Mapping[str, str], subresource: str, query: Query) -> Translation | None:
    """The translation that an upgrade needs; None when its bytes may pass as they are."""
    if headers.get("Upgrade", "").lower() != "websocket" or not headers.get("Sec-WebSocket-Key"):
        return None
    offered = websocket.offered(headers.get("Sec-WebSocket-Protocol", ""))
    if subresource == "portforward":
        return Tunnel() if FORWARD in offered else None
    if COMMAND not in offered:
        return None
    wanted = {name for name in ("stdin", "stdout", "stderr", "tty") if query.get(name) in ("1", "true")}
    return Command(wanted)


def node_headers(headers: Mapping[str, str], translation: Translation) -> dict[str, str]:
    """The client's headers with the upgrade that the node is asked for."""
    kept = {name: value for name, value in headers.items() if not name.lower().startswith(_OWN)}
    return kept | {"Connection": "Upgrade", "Upgrade": "SPDY/3.1",
                   "X-Stream-Protocol-Version": translation.spdy_protocol}


def _received(reader: websocket.Reader, data: bytes, carried: Callable[[websocket.Piece], bytes]) -> tuple[
        bytes, bytes, bool]:
    """What the client's messages carry to the node, the answers to its pings, and whether it has closed."""
    inside, answer = bytearray(), bytearray()
    for piece in reader.feed(data):
        if piece.opcode == CLOSE:
            return bytes(inside), bytes(answer), True
        if piece.opcode == PING:
            answer += frame(PONG, piece.data)
        elif piece.opcode in (BINARY, TEXT):
            inside += carried(piece)
    return bytes(inside), bytes(answer), False


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
        inside, answer, self.closed = _received(self._reader, data, lambda piece: piece.data)
        return inside, answer

    def from_node(self, data: bytes) -> Bytes:
        return frame(BINARY, data), b""

    def end(self) -> bytes:
        return frame(CLOSE, NORMAL)


class Command:
    """Channels as streams. `wanted` of stdin, stdout, stderr, tty."""

    subprotocol = COMMAND
    spdy_protocol = "v4.channel.k8s.io"  # v5 adds the closing of a channel, which streams always could

    def __init__(self, wanted: set[str]) -> None:
        self.ready = self.over = self.closed = False
        tty = "tty" in wanted
        asked = {ERROR: True, STDIN: "stdin" in wanted, STDOUT: "stdout" in wanted,
                 STDERR: "stderr" in wanted and not tty, RESIZE: tty}
        names = {ERROR: "error", STDIN: "stdin", STDOUT: "stdout", STDERR: "stderr", RESIZE: "resize"}
        opener = spdy.Opener()
        self._streams: dict[int, int] = {}  # by channel
        self._start = b""
        for channel in (channel for channel, is_asked in asked.items() if is_asked):
            self._streams[channel], opening = opener.open({"streamtype": names[channel]})
            self._start += opening
        self._channels = {stream: channel for channel, stream in self._streams.items()}
        self._unanswered = set(self._channels)
        self._open = {c for c in (ERROR, STDOUT, STDERR) if c in self._streams}  # the node still sends on these
        self._status = bytearray()
        self._channel: int | None = None  # of the message being read
        self._stdin = STDIN in self._streams
        self._client = websocket.Reader()
        self._node = spdy.Reader()

    def start(self) -> bytes:
        return self._start

    def from_client(self, data: bytes) -> Bytes:
        inside, answer, self.closed = _received(self._client, data, self._of_message)
        return inside, answer

    def _of_message(self, piece: websocket.Piece) -> bytes:
        content = piece.data
        if piece.first:
            self._channel = None
        if self._channel is None and content:
            self._channel, content = content[0], content[1:]
        if not content:
            return b""
        if self._channel == CLOSES and content[0] == STDIN and self._stdin:
            self._stdin = False
            return spdy.data(self._streams[STDIN], b"", last=True)
        if self._channel in self._streams and (self._channel == RESIZE or (self._channel == STDIN and self._stdin)):
            return spdy.data(self._streams[self._channel], content)
        return b""

    def from_node(self, data: bytes) -> Bytes:
        outside, answer = bytearray(), bytearray()
        for seen in self._node.feed(data):
            if seen.kind == spdy.PING:
                answer += spdy.control(spdy.PING, seen.data)
            channel = self._channels.get(seen.stream) if seen.kind in (
                spdy.DATA, spdy.SYN_REPLY, spdy.RST_STREAM) else None
            if channel is None:
                continue
            if seen.kind == spdy.DATA and seen.data and channel == ERROR:
                self._status += seen.data[:MAX_STATUS - len(self._status)]
            elif seen.kind == spdy.DATA and seen.data:
                outside += frame(BINARY, bytes((channel,)) + seen.data)
            elif seen.kind == spdy.SYN_REPLY:
                self._unanswered.discard(seen.stream)
                if not self._unanswered and not self.ready:
                    self.ready = True
                    outside += frame(BINARY, bytes((min(self._open, default=ERROR),)))  # a sign of life
            if seen.last or seen.kind == spdy.RST_STREAM:
                self._open.discard(channel)
        self.over = not self._open
        return bytes(outside), bytes(answer)

    def end(self) -> bytes:
        status = bytes(self._status)
        if not status:
            why = "Internal error occurred: error reading from error stream: unexpected EOF"
            lost = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": why,
                    "reason": "InternalError", "details": {"causes": [{"message": why.split(": ", 1)[1]}]}, "code": 500}
            done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            status = json.dumps(lost if ERROR in self._open else done).encode()
        return frame(BINARY, bytes((ERROR,)) + status) + frame(CLOSE, NORMAL)
