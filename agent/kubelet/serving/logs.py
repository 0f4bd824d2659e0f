"""Container logs: the runtime's line format, reading with kubectl's options, and following.

Owns the files below /var/log/…/pods once the runtime has written them. Promises that a follower misses no line over a
rotation, ends when its container has ended and all was read, and sleeps on inotify while nothing is written. Rotated
files are read too, so a rotation never shortens what `kubectl logs` shows. Never parses what a program wrote: bytes
stay as they are. Called by `serve`; `logrotate` writes what is read
here.

Upstream: pkg/kubelet/kuberuntime/logs and pkg/kubelet/logs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from agent.inotify import CLOSED
from agent.kubelet.directory import Directory
from agent.kubelet.serving.logrotate import rotated
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import BadRequest

CHUNK = 64 << 10  # read and sent at once
MAX_LINE = 1 << 20  # the runtime splits lines at 16 KiB; anything longer is no log line of its making
ENDED_FIRST, ENDED_LIMIT = 0.05, 10.0  # pauses between questions whether a silent container still runs


@dataclass(frozen=True, slots=True)
class Options:
    """What of a log is wanted. `since` is seconds since the epoch; None means no limit."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail: int | None = None
    limit: int | None = None
    since: float | None = None
    stream: str = ""  # "" = both, stdout, stderr


def options(query: Mapping[str, str], now: float) -> Options:
    """Options from a request's query (PodLogOptions). Raises BadRequest."""
    def flag(name: str) -> bool:
        return query.get(name, "").lower() in ("1", "t", "true")

    def number(name: str, least: int) -> int | None:
        if not query.get(name):
            return None
        try:
            value = int(query[name])
        except ValueError as error:
            raise BadRequest(f'{name}: Invalid value: "{query[name]}": must be an integer') from error
        if value < least:
            raise BadRequest(f"{name}: Invalid value: {value}: must be greater than or equal to {least}")
        return value

    seconds, moment = number("sinceSeconds", 1), query.get("sinceTime")
    if seconds is not None and moment:
        raise BadRequest("at most one of `sinceTime` or `sinceSeconds` may be specified")
    try:
        since = now - seconds if seconds is not None else parse_rfc3339(moment) if moment else None
    except ValueError as error:
        raise BadRequest(f'sinceTime: Invalid value: "{moment}": must be an RFC 3339 time') from error
    stream = query.get("stream", "").lower()
    if stream not in ("", "all", "stdout", "stderr"):
        raise BadRequest(f'stream: Unsupported value: "{stream}": supported values: "All", "Stderr", "Stdout"')
    return Options(flag("follow"), flag("previous"), flag("timestamps"), number("tailLines", 0),
                   number("limitBytes", 1), since, "" if stream == "all" else stream)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file: `2026-01-02T03:04:05.6Z stdout F text`. Not `full`: more of the same line follows."""

    time: str
    stream: str
    full: bool
    text: bytes


def parse(raw: bytes) -> Line | None:
    """A line without its newline; None when the runtime did not write it."""
    parts = raw.split(b" ", 3)
    if len(parts) < 3 or parts[1] not in (b"stdout", b"stderr"):
        return None
    text = parts[3] if len(parts) == 4 else b""
    return Line(parts[0].decode("ascii", "replace"), parts[1].decode(), not parts[2].startswith(b"P"), text)


def padded(moment: str) -> str:
    """The time with nine decimals, as upstream prints it, so that columns line up."""
    head, dot, tail = moment.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789")) if dot else 0
    zone = tail[digits:] if dot else head[19:]
    return f"{head[:19]}.{tail[:digits]:0<9}{zone}"


class Shape:
    """Turns lines into what the client asked for; remembers whether the last one was cut and how much may be sent."""

    def __init__(self, wanted: Options) -> None:
        self._wanted = wanted
        self._left = wanted.limit
        self._fresh = True  # at the start of a line
        self._late = wanted.since is None

    @property
    def full(self) -> bool:
        """Whether the byte limit is reached."""
        return self._left == 0

    def __call__(self, raw: bytes) -> bytes:
        line = parse(raw)
        if line is None or self._wanted.stream not in ("", line.stream) or not self._since(line):
            return b""
        out = line.text + (b"\n" if line.full else b"")
        if self._wanted.timestamps and self._fresh:
            out = padded(line.time).encode() + b" " + out
        self._fresh = line.full
        if self._left is not None:
            out = out[:self._left]
            self._left -= len(out)
        return out

    def _since(self, line: Line) -> bool:
        if not self._late:
            try:
                self._late = parse_rfc3339(line.time) >= (self._wanted.since or 0.0)
            except ValueError:
                return False
        return self._late


def tail_offset(path: Path, lines: int) -> tuple[int, int]:
    """Where the last `lines` lines of the file begin, and how many there are in fact."""
    with open(path, "rb") as file:
        position = end = file.seek(0, os.SEEK_END)
        found = 0
        while position > 0:
            step = min(CHUNK, position)
            position -= step
            file.seek(position)
            block = file.read(step)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                if position + at == end - 1:
                    continue  # the newline that ends the last line
                found += 1
                if found == lines:
                    return position + at + 1, lines
        return 0, found + 1 if end else 0


def plan_reading(path: Path, tail: int | None) -> list[tuple[Path, int]]:
    """The files to read, in order, each with the offset to begin at."""
    files = [*rotated(path), path]
    if tail is None:
        return [(file, 0) for file in files]
    chosen: list[tuple[Path, int]] = []
    for file in reversed(files):
        if not file.exists():
            continue
        if tail == 0:
            return chosen[::-1] or [(file, file.stat().st_size)]
        offset, found = tail_offset(file, tail)
        chosen.append((file, offset))
        tail -= found
    return chosen[::-1]


class Reader:
    """Complete lines of an open file; keeps an unfinished last line until the rest is written."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._file.seek(offset)
        self.inode = os.fstat(self._file.fileno()).st_ino
        self._rest = b""

    def lines(self) -> Iterator[bytes]:
        while block := self._file.read(CHUNK):
            *whole, self._rest = (self._rest + block).split(b"\n")
            yield from whole
            if len(self._rest) > MAX_LINE:
                self._rest = b""

    def close(self) -> None:
        self._file.close()


async def read(path: Path, wanted: Options,
               running: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
    """The log as the client wants it, in pieces. `running` tells whether its container may still write."""
    shape = Shape(wanted)
    reader: Reader | None = None
    try:
        with Directory(path.parent) as changes:  # before the first look, so that no change falls between
            for file, offset in plan_reading(path, wanted.tail):
                if not file.exists():
                    continue
                if reader is not None:
                    reader.close()
                reader = Reader(file, offset)
                for piece in _pieces(reader, shape):
                    yield piece
            if not wanted.follow:
                return
            followed, reader = reader, None  # its own to close from here
            async with aclosing(_follow(path, followed, shape, changes, running)) as following:
                async for piece in following:
                    yield piece
    finally:
        if reader is not None:
            reader.close()


def _pieces(reader: Reader, shape: Shape) -> Iterator[bytes]:
    """What the reader has now, gathered to pieces of some size."""
    gathered = bytearray()
    for raw in reader.lines():
        gathered += shape(raw)
        if len(gathered) >= CHUNK or shape.full:
            break_here = shape.full
            yield bytes(gathered)
            gathered.clear()
            if break_here:
                return
    if gathered:
        yield bytes(gathered)


def _inode(path: Path) -> int:
    """Which file the name stands for now; 0 = none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


async def _follow(path: Path, reader: Reader | None, shape: Shape, changes: Directory,
                  running: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
    """What is written from now on, until the container has ended or the byte limit is reached."""
    pause = ENDED_LIMIT
    happened = 0
    try:
        while not shape.full:
            # Asked only when the file was closed or nothing happened for a while, since a busy log wakes us often;
            # and asked before reading, so that what was written before the end is still read below.
            alive = await running() if happened == 0 or happened & CLOSED else True
            if reader is not None:
                for piece in _pieces(reader, shape):
                    yield piece
            current = _inode(path)
            if current and (reader is None or reader.inode != current):
                if reader is not None:
                    for piece in _pieces(reader, shape):  # the old file is complete only now that the new one is there
                        yield piece
                    reader.close()
                reader = Reader(path)
                for piece in _pieces(reader, shape):
                    yield piece
            if not alive:
                return
            happened = await changes.wait(pause)
            # The runtime closes the file when the container ends, some moments before it admits the end.
            pause = ENDED_FIRST if happened & CLOSED else min(pause * 2, ENDED_LIMIT)
    finally:
        if reader is not None:
            reader.close()


async def never() -> bool:
    """For containers that have ended: nobody writes any more."""
    await asyncio.sleep(0)
    return False
