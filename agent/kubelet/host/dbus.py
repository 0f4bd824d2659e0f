"""A connection to a message bus, with just as much of D-Bus as asking systemd takes: calls, their answers, signals.

Owns the wire format and one socket. Promises that a call ends: with its answer, or with Refused when the bus says no,
hangs up or keeps silent. Descriptors that come with answers are kept for whoever takes them. Called by `logind` and
`slices`.

Specification: the D-Bus specification.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

BUS = Path("/run/dbus/system_bus_socket")
PRIVATE = Path("/run/systemd/private")  # systemd's own, where it is the only one to talk to
DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
CALL_SECONDS = 10.0
MAX_MESSAGE = 1 << 20  # nothing we ask for comes near; larger ones are not ours
PATH, INTERFACE, MEMBER, ERROR, REPLY, DESTINATION, SIGNATURE = 1, 2, 3, 4, 5, 6, 8
CALL, RETURN, FAILED, SIGNAL = 1, 2, 3, 4
_HEAD = struct.Struct("<4BIII")  # byte order, type, flags, version; body, serial, fields
_FIXED = {"y": "<B", "b": "<I", "i": "<i", "u": "<I", "t": "<Q"}
_FIELDS = {PATH: "o", SIGNATURE: "g", REPLY: "u"}  # the rest are strings
Fields = dict[int, str | int]


class Refused(OSError):  # noqa: N818 - reads as what happened
    """The bus or who was asked said no; `name` is the error's, such as org.freedesktop.systemd1.UnitExists."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


def _pad(data: bytearray, size: int) -> None:
    data.extend(bytes(-len(data) % size))


def _first(signature: str) -> str:
    """The first complete type of a signature: `a(sv)` of `a(sv)u`."""
    if signature[0] == "a":
        return "a" + _first(signature[1:])
    if signature[0] != "(":
        return signature[0]
    depth = 0
    for at, letter in enumerate(signature):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return signature[:at + 1]
    raise ValueError(f"{signature!r} is no signature")


def _put(data: bytearray, kind: str, value: Any) -> None:
    """Append one value of the complete type `kind`; a variant is written as (type, value)."""
    if kind in _FIXED:
        size = struct.calcsize(_FIXED[kind])
        _pad(data, size)
        data += struct.pack(_FIXED[kind], value)
    elif kind in "so":
        _pad(data, 4)
        raw = value.encode()
        data += struct.pack("<I", len(raw)) + raw + b"\0"
    elif kind == "g":
        data += bytes((len(value),)) + value.encode() + b"\0"
    elif kind == "v":
        _put(data, "g", value[0])
        _put(data, *value)
    elif kind[0] == "(":
        _pad(data, 8)
        _all(data, kind[1:-1], value)
    else:
        _pad(data, 4)
        at = len(data)
        data += bytes(4)
        _pad(data, 8 if kind[1] in "(t" else 4)
        start = len(data)
        for each in value:
            _put(data, kind[1:], each)
        struct.pack_into("<I", data, at, len(data) - start)


def _all(data: bytearray, signature: str, values: tuple[Any, ...]) -> None:
    for value in values:
        kind = _first(signature)
        _put(data, kind, value)
        signature = signature[len(kind):]


def message(kind: int, serial: int, fields: Fields, signature: str = "", arguments: tuple[Any, ...] = ()) -> bytes:
    """One message, its arguments written by `signature`."""
    listed, body = bytearray(), bytearray()
    for code, value in {**fields, **({SIGNATURE: signature} if signature else {})}.items():
        _put(listed, "(yv)", (code, (_FIELDS.get(code, "s"), value)))
    _all(body, signature, arguments)
    whole = bytearray(_HEAD.pack(ord("l"), kind, 0, 1, len(body), serial, len(listed))) + listed
    _pad(whole, 8)
    return bytes(whole + body)


def parse(data: bytes) -> tuple[int, Fields, bytes, int] | None:
    """(type, fields, body, length) of the first whole message in `data`. Raises Refused for what is none."""
    if len(data) < _HEAD.size:
        return None
    order, kind, _, _, size, _, fields = _HEAD.unpack_from(data)
    start = _HEAD.size + fields + (-(_HEAD.size + fields) % 8)
    if order != ord("l") or start + size > MAX_MESSAGE:
        raise Refused("the bus speaks another byte order, or too much")
    if len(data) < start + size:
        return None
    found: Fields = {}
    at = _HEAD.size
    while at < _HEAD.size + fields:
        at += -at % 8
        code, letter = data[at], chr(data[at + 2])
        at += 4
        if letter == "g":
            found[code] = data[at + 1:at + 1 + data[at]].decode()
            at += data[at] + 2
        else:
            at += -at % 4
            (number,) = struct.unpack_from("<I", data, at)
            at += 4
            found[code] = number
            if letter in "so":
                found[code] = data[at:at + number].decode()
                at += number + 1
    return kind, found, data[start:start + size], start + size


def text(body: bytes) -> str:
    """The first argument, where it is a string: what an error says."""
    return body[4:4 + struct.unpack_from("<I", body)[0]].decode(errors="replace") if len(body) > 4 else ""


class Bus:
    """Use as an async context manager: `async with Bus() as bus`. Raises OSError where there is none.

    `signals` gets (member, body) of every signal that was asked for, and None when the bus is gone."""

    def __init__(self, path: Path = BUS) -> None:
        self._path, self._serial, self._data = path, 0, b""
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self.descriptors: list[int] = []
        self.signals: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()

    async def __aenter__(self) -> Bus:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._enter()
        except TimeoutError as error:
            self._close()
            raise Refused("the bus does not answer") from error
        except BaseException:
            self._close()
            raise
        return self

    async def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, str(self._path))
        uid = str(os.getuid()).encode().hex()
        await loop.sock_sendall(self._socket, f"\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\n".encode())
        answer = b""
        while answer.count(b"\r\n") < 2:
            part = await loop.sock_recv(self._socket, 4096)
            if not part:
                raise Refused("the bus hung up")
            answer += part
        if not answer.startswith(b"OK") or b"AGREE_UNIX_FD" not in answer:
            raise Refused(f"the bus said {answer.decode(errors='replace').strip()}")
        await loop.sock_sendall(self._socket, b"BEGIN\r\n")
        loop.add_reader(self._socket, self._readable)
        if self._path != PRIVATE:
            await self.call(*DRIVER, "Hello")

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    async def call(self, destination: str, path: str, interface: str, member: str, signature: str = "",
                   *arguments: Any) -> bytes:
        """The body of the answer. Raises Refused."""
        self._serial += 1
        answer = self._waiting[self._serial] = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().sock_sendall(self._socket, message(CALL, self._serial, {
            PATH: path, INTERFACE: interface, MEMBER: member, DESTINATION: destination}, signature, arguments))
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await answer
        except TimeoutError as error:
            raise Refused(f"{destination} does not answer") from error

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 8)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self.descriptors += descriptors
        if not data:  # the bus is gone
            asyncio.get_running_loop().remove_reader(self._socket)
            self.signals.put_nowait(None)
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Refused("the bus hung up"))
            return
        self._data += data
        while (found := parse(self._data)) is not None:
            kind, fields, body, length = found
            self._data = self._data[length:]
            self._take(kind, fields, body)

    def _take(self, kind: int, fields: Fields, body: bytes) -> None:
        answer = self._waiting.pop(int(fields.get(REPLY, 0)), None)
        if answer is not None and not answer.done():
            if kind == FAILED:
                name = str(fields.get(ERROR))
                answer.set_exception(Refused(text(body) or name, name))
            else:
                answer.set_result(body)
        elif kind == SIGNAL:
            self.signals.put_nowait((str(fields.get(MEMBER)), body))
