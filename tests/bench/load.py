"""A load generator: N keep-alive TLS connections that each send the next request when the last is answered.

Runs in a process of its own, so that the server has a core. It parses no JSON: a response is over when its
Content-Length is read or its last chunk has come. Bounded by time; every answer that is not 2xx counts as an error.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    ca: str
    headers: str  # `Authorization: Bearer …\r\n`


@dataclass(frozen=True)
class Result:
    requests: int
    errors: int
    seconds: float
    bytes: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def request(target: Target, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    more = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (f"{method} {path} HTTP/1.1\r\nHost: {target.host}\r\nAccept: application/json\r\n{target.headers}{more}\r\n"
            .encode() + body)


CHUNKED = -1  # `left` of a body whose length is not known before


class Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.load, self.left, self.head, self.tail = load, 0, b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.load.next())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.load.bytes += len(data)
        if self.left == CHUNKED:
            self.tail = (self.tail + data)[-5:]
            self.left = 0 if self.tail == b"0\r\n\r\n" else CHUNKED
        elif self.left:
            self.left -= len(data)
        else:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.head[:end].lower()
            self.load.errors += self.head[9:10] != b"2"
            if b"transfer-encoding: chunked" in head:
                self.tail = self.head[-5:]
                self.left, self.head = 0 if self.tail == b"0\r\n\r\n" else CHUNKED, b""
            else:
                length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
                self.left, self.head = length - (len(self.head) - end - 4), b""
        if self.left == 0:
            self.load.done += 1
            if monotonic() < self.load.until:
                self.transport.write(self.load.next())  # type: ignore[attr-defined]
            else:
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.open -= 1
        if self.load.open == 0:
            self.load.over.set()


class Load:
    def __init__(self, make: Callable[[int], bytes], seconds: float, connections: int) -> None:
        self.make, self.numbers = make, itertools.count()
        self.done = self.errors = self.bytes = 0
        self.open, self.over = connections, asyncio.Event()
        self.seconds, self.until = seconds, 0.0

    def next(self) -> bytes:
        return self.make(next(self.numbers))

    async def run(self, target: Target) -> Result:
        context = ssl.create_default_context(cafile=target.ca)
        context.check_hostname = False
        loop, begun = asyncio.get_running_loop(), monotonic()
        self.until = begun + self.seconds
        await asyncio.gather(*(loop.create_connection(lambda: Connection(self), target.host, target.port, ssl=context)
                               for _ in range(self.open)))
        await self.over.wait()
        return Result(self.done, self.errors, monotonic() - begun, self.bytes)


def _child(queue: multiprocessing.Queue, target: Target, seconds: float, connections: int, method: str, path: str,
           body: str) -> None:
    def make(number: int) -> bytes:
        return request(target, method, path, body.replace("NUMBER", str(number)).encode() if body else b"")
    fixed = make(0)
    queue.put(asyncio.run(Load(make if body else lambda _: fixed, seconds, connections).run(target)))


def run(target: Target, method: str, path: str, *, body: str = "", seconds: float = 5.0,
        connections: int = 32) -> Result:
    """Load `path` for `seconds`; NUMBER in `body` becomes a counter."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, target, seconds, connections, method, path, body))
    child.start()
    try:
        return queue.get(timeout=seconds + 60)
    finally:
        child.join(10)
