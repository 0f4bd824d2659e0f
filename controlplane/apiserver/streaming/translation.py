"""A client's WebSocket in terms of the SPDY that kubelets speak: what each received byte makes of the other side.

Owns the two translations. `Tunnel` is port-forward in the subprotocol `SPDY/3.1+portforward.k8s.io`: the client's
messages are SPDY already and only unpacked. `Command` is exec and attach in any of the `channel.k8s.io` subprotocols:
messages begin with the number of a channel, each channel is a stream, the status comes last on the channel of errors.
Promises: nothing is kept beyond a status and the heads of frames, so who passes the results on has all the backpressure
in its hands. Pure. Called by `streams` (which one), `tunnel` and `translator`.

Upstream: k8s.io/apiserver/pkg/util/proxy/{streamtunnel,streamtranslator,websocket}.go.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from controlplane.apiserver.request import Query
from controlplane.apiserver.streaming import spdy, websocket
from controlplane.apiserver.streaming.websocket import BINARY, CLOSE, NORMAL, PING, PONG, TEXT, frame

FORWARD = "SPDY/3.1+portforward.k8s.io"
COMMAND = "v5.channel.k8s.io"  # channel 255 closes another
PLAIN = ("", "channel.k8s.io", "base64.channel.k8s.io")  # whose status is a text, and only of a failure
COMMANDS = (COMMAND, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.v4.channel.k8s.io", *PLAIN)
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

    def ping(self) -> bytes:
        """For the node, now and then: a connection that carries nothing would be cut on its way."""

    def refusal(self, status: dict[str, Any]) -> bytes:
        """What the client gets in place of an answer when the node refuses; nothing: an answer."""


def of(headers: Mapping[str, str], subresource: str, query: Query) -> Translation | None:
    """The translation that an upgrade needs; None when its bytes may pass as they are."""
    if headers.get("Upgrade", "").lower() != "websocket" or not headers.get("Sec-WebSocket-Key"):
        return None
    offered = websocket.offered(headers.get("Sec-WebSocket-Protocol", ""))
    if subresource == "portforward":
        return Tunnel() if FORWARD in offered else None
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


class Command:
    """Channels as streams. `wanted` of stdin, stdout, stderr, tty; `subprotocol` one of COMMANDS."""

    spdy_protocol = "v4.channel.k8s.io"  # v5 adds the closing of a channel, which streams always could

    def __init__(self, wanted: set[str], subprotocol: str = COMMAND) -> None:
        self.subprotocol = subprotocol
        self._text = "base64." in subprotocol
        self._rest = b""  # of a message in base64: less than four characters
        self._pings = -1
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
            self._channel, self._rest = None, b""
        if self._channel is None and content:
            self._channel, content = content[0] - (48 if self._text else 0), content[1:]
        if self._text:
            content = self._rest + content
            whole = len(content) // 4 * 4
            content, self._rest = base64.b64decode(content[:whole], validate=True), content[whole:]
        if not content:
            return b""
        if self._channel == CLOSES and content[0] == STDIN and self._stdin and self.subprotocol == COMMAND:
            self._stdin = False
            return spdy.data(self._streams[STDIN], b"", last=True)
        if self._channel in self._streams and (self._channel == RESIZE or (self._channel == STDIN and self._stdin)):
            return spdy.data(self._streams[self._channel], content)
        return b""

    def from_node(self, data: bytes) -> Bytes:
        outside, answer = bytearray(), bytearray()
        for seen in self._node.feed(data):
            if seen.kind == spdy.PING and not seen.stream & 1:  # not the answer to one of ours
                answer += spdy.control(spdy.PING, seen.data)
            channel = self._channels.get(seen.stream) if seen.kind in (
                spdy.DATA, spdy.SYN_REPLY, spdy.RST_STREAM) else None
            if channel is None:
                continue
            if seen.kind == spdy.DATA and seen.data and channel == ERROR:
                self._status += seen.data[:MAX_STATUS - len(self._status)]
            elif seen.kind == spdy.DATA and seen.data:
                outside += self._message(channel, seen.data)
            elif seen.kind == spdy.SYN_REPLY:
                self._unanswered.discard(seen.stream)
                if not self._unanswered and not self.ready:
                    self.ready = True
                    outside += self._sign_of_life()
            if seen.last or seen.kind == spdy.RST_STREAM:
                self._open.discard(channel)
        self.over = not self._open
        return bytes(outside), bytes(answer)

    def _message(self, channel: int, content: bytes) -> bytes:
        if self._text:
            return frame(TEXT, b"%d" % channel + base64.b64encode(content))
        return frame(BINARY, bytes((channel,)) + content)

    def _sign_of_life(self) -> bytes:
        return self._message(min(self._open, default=ERROR), b"")

    def end(self) -> bytes:
        told = bytes(self._status)
        if not told:
            told = json.dumps(failure("error reading from error stream: unexpected EOF") if ERROR in self._open
                              else success()).encode()
        return self._told(told) + frame(CLOSE, NORMAL)

    def _told(self, status: bytes) -> bytes:
        """A status on the channel of errors, in the form the subprotocol has."""
        if self.subprotocol in PLAIN:
            try:
                said = json.loads(status)
                if said.get("status") != "Failure":
                    return b""
                status = str(said.get("message") or "").encode()
            except (ValueError, AttributeError):
                pass  # a runtime's plain text already
        return self._message(ERROR, status)

    def ping(self) -> bytes:
        self._pings = (self._pings + 2) & 0x7fffffff
        return spdy.control(spdy.PING, self._pings.to_bytes(4, "big"))

    def refusal(self, status: dict[str, Any]) -> bytes:
        if self.subprotocol != COMMAND:
            return b""
        return self._sign_of_life() + self._told(json.dumps(status).encode()) + frame(CLOSE, NORMAL)
