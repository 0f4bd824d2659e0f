"""Listening for questions, over UDP and TCP, on the cluster's DNS address.

Owns the sockets and their limits: a flood of questions that must be forwarded is answered with silence beyond a bound,
and a TCP client that says nothing is sent away. An error while answering one question costs that reply, never the
server.

Called by `dns`, which owns the address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from agent.dns.responder import Responder

log = logging.getLogger(__name__)
PORT = 53
WAITING_LIMIT = 1000  # questions that wait for other servers: beyond it clients try again themselves
CLIENT_LIMIT = 128  # TCP clients at once
IDLE_SECONDS = 10.0  # a TCP client may keep its connection this long between questions
RECEIVE_BUFFER = 1 << 20  # bytes: questions that arrive while the loop is busy
LEAST = 12  # bytes of a message


class _Packets(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._server.packet(self._transport, data, address)


class Server:
    """Serves one address while `run` runs. `port` 0: any, for tests; `ports` tells which."""

    def __init__(self, responder: Responder, address: str, port: int = PORT) -> None:
        self._responder, self._address, self._port = responder, address, port
        self._waiting = self._clients = 0
        self._group: asyncio.TaskGroup | None = None
        self.port = port
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises OSError when the address is taken."""
        loop = asyncio.get_running_loop()
        packets = _bound(socket.SOCK_DGRAM, self._address, self._port)
        self.port = packets.getsockname()[1]
        try:
            streams = _bound(socket.SOCK_STREAM, self._address, self.port)
        except OSError:
            packets.close()
            raise
        transport, _ = await loop.create_datagram_endpoint(lambda: _Packets(self), sock=packets)
        listener = await asyncio.start_server(self._stream, sock=streams)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self.listening.set()
                await asyncio.Event().wait()
        finally:
            self._group = None
            self.listening.clear()
            transport.close()
            listener.close()

    def packet(self, transport: Any, data: bytes, address: Any) -> None:
        """One datagram."""
        try:
            reply = self._responder.quick(data, False)
        except Exception:
            log.exception("a question from %s could not be answered", address[0])
            return
        if reply:
            transport.sendto(reply, address)
        elif reply is None and self._group is not None and self._waiting < WAITING_LIMIT:
            self._waiting += 1
            self._group.create_task(self._later(transport, data, address))

    async def _later(self, transport: Any, data: bytes, address: Any) -> None:
        try:
            transport.sendto(await self._responder.slow(data, False), address)
        except Exception:
            log.exception("a question from %s could not be answered", address[0])
        finally:
            self._waiting -= 1

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            while self._clients <= CLIENT_LIMIT:
                async with asyncio.timeout(IDLE_SECONDS):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(length)
                if length < LEAST:
                    return
                reply = self._responder.quick(data, True)
                if reply is None:
                    reply = await self._responder.slow(data, True)
                if not reply:
                    return
                async with asyncio.timeout(IDLE_SECONDS):
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("a question over TCP could not be answered")
        finally:
            self._clients -= 1
            writer.close()


def _bound(kind: int, address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made
