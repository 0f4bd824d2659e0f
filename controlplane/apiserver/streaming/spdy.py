"""SPDY/3.1 framing, as much of it as kubelets and runtimes speak: the frames of streams that carry bytes.

Owns the bytes of the protocol on the side that opens streams. Promises: data is handed on as it arrives, whatever its
frame's length; what is no SPDY is a ValueError. Flow-control windows are left alone on purpose: the library behind
every kubelet and runtime neither sends nor obeys WINDOW_UPDATE, so that who waited for one would wait for ever; what
bounds a sender is the connection. Pure. Called by `translation`.

Upstream: github.com/moby/spdystream.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

VERSION = 0x8003
DATA, SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY = 0, 1, 2, 3, 6, 7
FIN = 1
MAX_CONTROL = 65536  # bytes of a control frame: all there are here are tiny
# What headers are compressed against (draft 3.1, section 2.6.10.1): words with their lengths, then words without.
_WORDS = (
    b"options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,accept-ranges,age,a"
    b"llow,authorization,cache-control,connection,content-base,content-encoding,content-language,content-length,co"
    b"ntent-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,if-modifie"
    b"d-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,proxy-authenti"
    b"cate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,user-agent,va"
    b"ry,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,keep-alive,o"
    b"rigin"
)
_REST = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritat"
    b"ive Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found5"
    b"00 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct N"
    b"ov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,applic"
    b"ation/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf"
    b"-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(len(word).to_bytes(4, "big") + word for word in _WORDS.split(b",")) + _REST


@dataclass(frozen=True, slots=True)
class Frame:
    """A control frame, or bytes of a stream (`kind` DATA). `last`: the sender sends no more on this stream."""

    kind: int
    stream: int  # of a ping its number
    data: bytes = b""
    last: bool = False


def data(stream: int, content: bytes, last: bool = False) -> bytes:
    """A frame of `content` (less than 16 MiB) on `stream`."""
    return stream.to_bytes(4, "big") + bytes((FIN if last else 0,)) + len(content).to_bytes(3, "big") + content


def control(kind: int, content: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return VERSION.to_bytes(2, "big") + kind.to_bytes(2, "big") + bytes((flags,)) + len(content).to_bytes(3, "big") \
        + content


class Opener:
    """Opens streams of a connection: headers are compressed in the order in which they are sent."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._next = 1

    def open(self, headers: dict[str, str]) -> tuple[int, bytes]:
        """The number of a new stream, and the frame that opens it. Names are in lower case."""
        block = len(headers).to_bytes(4, "big")
        for word in (part.encode() for pair in headers.items() for part in pair):
            block += len(word).to_bytes(4, "big") + word
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        stream, self._next = self._next, self._next + 2
        return stream, control(SYN_STREAM, stream.to_bytes(4, "big") + bytes(6) + packed)


class Reader:
    """Takes the other side's bytes as they come. Headers are not decompressed: nobody asks for them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._stream = 0
        self._left = 0  # bytes of the data frame that is being read
        self._last = False

    def feed(self, received: bytes) -> Iterator[Frame]:
        """The frames that `received` completes, data also in parts. Raises ValueError."""
        self._buffer += received
        while True:
            if self._left:
                if not self._buffer:
                    return
                part = self._take(min(self._left, len(self._buffer)))
                self._left -= len(part)
                yield Frame(DATA, self._stream, part, self._last and not self._left)
                continue
            frame = self._head()
            if frame is None:
                return
            yield frame

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _head(self) -> Frame | None:
        """The next frame, of a data frame its beginning. None: not there yet."""
        buffer = self._buffer
        if len(buffer) < 8:
            return None
        first, last = int.from_bytes(buffer[:4], "big"), bool(buffer[4] & FIN)
        size = int.from_bytes(buffer[5:8], "big")
        if not first >> 31:
            self._take(8)
            self._stream, self._left, self._last = first, size, last
            return Frame(DATA, first, b"", last and not size)
        if first >> 16 != VERSION or size > MAX_CONTROL:
            raise ValueError("no frame of SPDY/3.1")
        if len(buffer) < 8 + size:
            return None
        content = self._take(8 + size)[8:]
        return Frame(first & 0xffff, int.from_bytes(content[:4], "big") & 0x7fffffff, content, last)
