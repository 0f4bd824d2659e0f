"""systemd's word on shutdowns: a delay lock, and the signal that the host is about to go down.

Owns one connection to the system bus and just as much of D-Bus as this takes: log in, call `Inhibit`, hear
`PrepareForShutdown`. Promises that the lock is held until `release` or the end of the process, whatever ends it. A host
without logind has no such socket, which `present` tells. Called by `shutdown`.

Specification: the D-Bus specification; systemd's org.freedesktop.login1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

BUS = Path("/run/dbus/system_bus_socket")
LOGIND = "org.freedesktop.login1"
MANAGER = ("/org/freedesktop/login1", f"{LOGIND}.Manager")
DRIVER = ("/org/freedesktop/DBus", "org.freedesktop.DBus")
CALL_SECONDS = 10.0
MAX_MESSAGE = 1 << 20  # nothing we ask for comes near; larger ones are not ours
_PATH, _INTERFACE, _MEMBER, _ERROR, _REPLY, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_CALL, _RETURN, _FAILED, _SIGNAL = 1, 2, 3, 4
_HEAD = struct.Struct("<4BIII")  # byte order, type, flags, version; body, serial, fields


class Refused(OSError):  # noqa: N818 - reads as what happened
    """The bus or logind said no."""


def _pad(data: bytearray, size: int) -> None:
    data.extend(bytes(-len(data) % size))


def _string(data: bytearray, text: str) -> None:
    _pad(data, 4)
    raw = text.encode()
    data += struct.pack("<I", len(raw)) + raw + b"\0"


def message(kind: int, serial: int, fields: dict[int, str | int], arguments: tuple[str, ...] = ()) -> bytes:
    """A message whose arguments are strings."""
    listed, body = bytearray(), bytearray()
    fields = {**fields, **({_SIGNATURE: "s" * len(arguments)} if arguments else {})}
    for code, value in fields.items():
        _pad(listed, 8)
        letter = "o" if code == _PATH else "g" if code == _SIGNATURE else "u" if isinstance(value, int) else "s"
        listed += bytes((code, 1)) + letter.encode() + b"\0"
        if isinstance(value, int):
            _pad(listed, 4)
            listed += struct.pack("<I", value)
        elif code == _SIGNATURE:
            listed += bytes((len(value),)) + value.encode() + b"\0"
        else:
            _string(listed, value)
    for argument in arguments:
        _string(body, argument)
    whole = bytearray(_HEAD.pack(ord("l"), kind, 0, 1, len(body), serial, len(listed))) + listed
    _pad(whole, 8)
    return bytes(whole + body)


def parse(data: bytes) -> tuple[int, dict[int, str | int], bytes, int] | None:
    """(type, fields, body, length) of the first whole message in `data`. Raises Refused for what is none."""
    if len(data) < _HEAD.size:
        return None
    order, kind, _, _, size, _, fields = _HEAD.unpack_from(data)
    start = _HEAD.size + fields + (-(_HEAD.size + fields) % 8)
    if order != ord("l") or start + size > MAX_MESSAGE:
        raise Refused("the bus speaks another byte order, or too much")
    if len(data) < start + size:
        return None
    found: dict[int, str | int] = {}
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


class Logind:
    """Use as an async context manager: `async with Logind() as logind`. Raises OSError where there is none."""

    def __init__(self, bus: Path = BUS) -> None:
        self._bus, self._serial = bus, 0
        self._data, self._descriptors = b"", list[int]()
        self._lock = -1
        self._signals: asyncio.Queue[bool] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    @staticmethod
    def present(bus: Path = BUS, seats: Path = Path("/run/systemd/seats")) -> bool:
        """Whether this host has a logind to ask."""
        return bus.exists() and seats.is_dir()

    async def __aenter__(self) -> Logind:
        loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await loop.sock_connect(self._socket, str(self._bus))
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
                await self._call(*DRIVER, "Hello", destination=DRIVER[1])
                await self._call(*DRIVER, "AddMatch", f"type='signal',interface='{MANAGER[1]}',"
                                 "member='PrepareForShutdown'", destination=DRIVER[1])
        except TimeoutError as error:
            self._close()
            raise Refused("the bus does not answer") from error
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    async def _call(self, path: str, interface: str, member: str, *arguments: str, destination: str) -> bytes:
        self._serial += 1
        answer = self._waiting[self._serial] = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().sock_sendall(self._socket, message(_CALL, self._serial, {
            _PATH: path, _INTERFACE: interface, _MEMBER: member, _DESTINATION: destination}, arguments))
        return await answer

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 8)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        if not data:  # the bus is gone
            asyncio.get_running_loop().remove_reader(self._socket)
            self._signals.put_nowait(False)
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Refused("the bus hung up"))
            return
        self._data += data
        while (found := parse(self._data)) is not None:
            kind, fields, body, length = found
            self._data = self._data[length:]
            self._take(kind, fields, body)

    def _take(self, kind: int, fields: dict[int, str | int], body: bytes) -> None:
        answer = self._waiting.pop(int(fields.get(_REPLY, 0)), None)
        if answer is not None and not answer.done():
            if kind == _FAILED:
                answer.set_exception(Refused(f"{fields.get(_ERROR)}"))
            else:
                answer.set_result(body)
        elif kind == _SIGNAL and fields.get(_MEMBER) == "PrepareForShutdown":
            self._signals.put_nowait(bool(struct.unpack_from("<I", body)[0]))

    async def inhibit(self, who: str, why: str) -> None:
        """Delay shutdowns until `release`. Raises Refused."""
        async with asyncio.timeout(CALL_SECONDS):
            await self._call(*MANAGER, "Inhibit", "shutdown", who, why, "delay", destination=LOGIND)
        if not self._descriptors:
            raise Refused("logind gave no lock")
        self.release()
        self._lock = self._descriptors.pop()

    def release(self) -> None:
        """Let the shutdown go on."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def shutdowns(self) -> AsyncIterator[bool]:
        """True when the host is about to go down, False when that was called off. Ends when the bus is gone."""
        while True:
            going = await self._signals.get()
            yield going
            if self._socket.fileno() < 0:
                return
