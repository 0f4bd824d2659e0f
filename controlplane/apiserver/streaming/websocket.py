"""WebSocket framing (RFC 6455) as a server needs it: the handshake, frames to the client, pieces of its messages.

Owns the bytes of the protocol. Promises: a message of any length is read piece by piece as it arrives and never held
as a whole; what no client may send is a ValueError. Pure. Called by `weblogs` and `translation`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL = (1000).to_bytes(2, "big")


def frame(opcode: int, data: bytes) -> bytes:
    """One whole, unmasked message."""
    if len(data) < 126:
        size = bytes((len(data),))
    elif len(data) < 65536:
        size = b"\x7e" + len(data).to_bytes(2, "big")
    else:
        size = b"\x7f" + len(data).to_bytes(8, "big")
    return bytes((0x80 | opcode,)) + size + data


def handshake(key: str, subprotocol: str) -> bytes:
    """The 101 of RFC 6455."""
    accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
             f"Sec-WebSocket-Accept: {accept}"]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def offered(value: str) -> list[str]:
    """The subprotocols in a Sec-WebSocket-Protocol header."""
    return [word for part in value.split(",") if (word := part.strip())]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a message, or a whole control frame. `first` marks the beginning of a message."""

    opcode: int
    data: bytes
    first: bool = True


class Reader:
    """Takes a client's bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._mask = b""  # of the data frame that is being read, turned to its next byte
        self._left = 0  # bytes of that frame still to come
        self._fresh = True  # the next data frame begins a message
        self._opcode = BINARY

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that `data` completes. Raises ValueError for what breaks the protocol."""
        self._buffer += data
        while True:
            if self._left:
                if not self._buffer:
                    return
                taken = self._take(min(self._left, len(self._buffer)))
                self._left -= len(taken)
                piece, self._mask = unmask(self._mask, taken)
                yield Piece(self._opcode, piece, first=False)
                continue
            head = self._head()
            if head is None:
                return
            yield head

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _head(self) -> Piece | None:
        """The next frame's head: of a data frame an empty first piece, of a control frame all. None: not there yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        opcode, last, size = buffer[0] & 15, bool(buffer[0] & 0x80), buffer[1] & 0x7f
        if buffer[0] & 0x70 or not buffer[1] & 0x80:
            raise ValueError("a client's frame must be masked and without extensions")
        more = {126: 2, 127: 8}.get(size, 0)
        if len(buffer) < 6 + more:
            return None
        if opcode >= CLOSE:
            if more or not last or opcode > PONG:
                raise ValueError("a control frame is short and whole")
            if len(buffer) < 6 + size:
                return None
            mask = self._take(6)[2:]
            return Piece(opcode, unmask(mask, self._take(size))[0])
        if (opcode == CONTINUATION) is self._fresh or opcode > BINARY:
            raise ValueError("a frame out of turn")
        head = self._take(6 + more)
        self._left = int.from_bytes(head[2:2 + more], "big") if more else size
        self._mask = head[2 + more:]
        first, self._fresh = self._fresh, last
        if first:
            self._opcode = opcode
        return Piece(self._opcode, b"", first)


def unmask(mask: bytes, data: bytes) -> tuple[bytes, bytes]:
    """The masked or unmasked `data`, and the mask for what follows it."""
    size = len(data)
    pad = (mask * (size // 4 + 1))[:size]
    turned = mask[size % 4:] + mask[:size % 4]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big"), turned
