"""Answer load balancers that ask whether this node has endpoints of a service.

Owns one small HTTP server per `healthCheckNodePort` of a service with external policy Local: 200 while this node has
an endpoint and rules get written, 503 otherwise, so a balancer sends traffic only where it is not dropped. Idle servers
cost nothing.

Called by `proxy` after rules are written. Upstream: pkg/proxy/healthcheck.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Iterable, Mapping

from agent.proxy.model import ServiceKey, ServicePort

log = logging.getLogger(__name__)
REQUEST_LIMIT = 4096  # bytes of a request's head: a probe sends a line and a few headers
REQUEST_SECONDS = 5.0


class HealthServers:
    """The servers, by port. `healthy()`: whether what changes reaches the kernel."""

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._servers: dict[int, asyncio.Server] = {}
        self._counts: dict[int, tuple[ServiceKey, int]] = {}

    async def update(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> None:
        """Open, close and inform the servers so that they match."""
        wanted: dict[int, tuple[ServiceKey, int]] = {}
        for key, ports in services.items():
            for port in ports:
                if port.health_port and port.external_local:
                    wanted[port.health_port] = (key, port.ready_here)
        self._counts = wanted
        for number in self._servers.keys() - wanted.keys():
            self._servers.pop(number).close()
        for number in wanted.keys() - self._servers.keys():
            try:
                self._servers[number] = await asyncio.start_server(
                    functools.partial(self._answer, number), None, number, limit=REQUEST_LIMIT)
            except OSError as error:
                log.warning("health check port %d of %s/%s: %s", number, *wanted[number][0], error)

    def concerns(self, changed: Iterable[tuple[ServicePort, ...]]) -> bool:
        """Whether `update` has anything to do after these services changed."""
        return bool(self._counts) or any(port.health_port for ports in changed for port in ports)

    async def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    async def _answer(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await reader.readuntil(b"\r\n\r\n")
            healthy = self._healthy()
            (namespace, name), count = self._counts.get(number, (("", ""), 0))
            body = json.dumps({"service": {"namespace": namespace, "name": name}, "localEndpoints": count,
                               "serviceProxyHealthy": healthy}).encode()
            status = b"200 OK" if count and healthy else b"503 Service Unavailable"
            writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
                         b"X-Load-Balancing-Endpoint-Weight: %d\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
                         % (status, count, len(body), body))
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
