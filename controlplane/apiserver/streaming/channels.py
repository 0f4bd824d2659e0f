"""Messages that begin with the number of a channel, and the SPDY streams that the channels are.

Owns both framings of the `channel.k8s.io` subprotocols, plain and base64, and the opening of a stream per channel.
Promises: nothing of a message is kept but the number of its channel and less than four characters of base64. Pure. Base
of the translations of commands and ports (`translation`, `ports`).

Upstream: k8s.io/apiserver/pkg/util/proxy/streamtranslator.go, k8s.io/apimachinery/pkg/util/httpstream/wsstream.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable

from controlplane.apiserver.streaming import spdy, websocket
from controlplane.apiserver.streaming.websocket import BINARY, CLOSE, PING, PONG, TEXT, frame

Bytes = tuple[bytes, bytes]


def received(reader: websocket.Reader, data: bytes, carried: Callable[[websocket.Piece], bytes]) -> tuple[
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


class Channels(ABC):
    """One stream per channel. Who extends it opens them, and says what their bytes become."""

    def __init__(self, subprotocol: str) -> None:
        self.subprotocol = subprotocol
        self.ready = self.over = self.closed = False
        self.streams: dict[int, int] = {}  # by channel
        self.sending: set[int] = set()  # channels on which the node has more to say
        self._text = "base64." in subprotocol
        self._rest = b""  # of a message in base64: less than four characters
        self._channel: int | None = None  # of the message being read
        self._client, self._node, self._opener = websocket.Reader(), spdy.Reader(), spdy.Opener()
        self._start = b""
        self._channels: dict[int, int] = {}  # by stream
        self._unanswered: set[int] = set()
        self._pings = -1

    def open(self, channel: int, headers: dict[str, str]) -> None:
        """A stream for a channel; before the node is asked for anything."""
        stream, opening = self._opener.open(headers)
        self._start += opening
        self.streams[channel], self._channels[stream] = stream, channel
        self._unanswered.add(stream)

    @abstractmethod
    def begin(self) -> bytes:
        """What the client gets first, once the node has accepted every stream."""

    @abstractmethod
    def typed(self, channel: int | None, content: bytes) -> bytes:
        """What a client's bytes on a channel are for the node."""

    @abstractmethod
    def told(self, channel: int, content: bytes) -> bytes:
        """What a node's bytes on a channel are for the client."""

    def start(self) -> bytes:
        return self._start

    def from_client(self, data: bytes) -> Bytes:
        inside, answer, self.closed = received(self._client, data, self._of_message)
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
        return self.typed(self._channel, content) if content else b""

    def from_node(self, data: bytes) -> Bytes:
        outside, answer = bytearray(), bytearray()
        for seen in self._node.feed(data):
            if seen.kind == spdy.PING and not seen.stream & 1:  # not the answer to one of ours
                answer += spdy.control(spdy.PING, seen.data)
            channel = self._channels.get(seen.stream) if seen.kind in (
                spdy.DATA, spdy.SYN_REPLY, spdy.RST_STREAM) else None
            if channel is None:
                continue
            if seen.kind == spdy.DATA and seen.data:
                outside += self.told(channel, seen.data)
            elif seen.kind == spdy.SYN_REPLY:
                self._unanswered.discard(seen.stream)
                if not self._unanswered and not self.ready:
                    self.ready = True
                    outside += self.begin()
            if seen.last or seen.kind == spdy.RST_STREAM:
                self.sending.discard(channel)
        self.over = not self.sending
        return bytes(outside), bytes(answer)

    def message(self, channel: int, content: bytes) -> bytes:
        if self._text:
            return frame(TEXT, bytes((48 + channel,)) + base64.b64encode(content))
        return frame(BINARY, bytes((channel,)) + content)

    def ping(self) -> bytes:
        self._pings = (self._pings + 2) & 0x7fffffff
        return spdy.control(spdy.PING, self._pings.to_bytes(4, "big"))
