"""One attempt at a container's handler: exec, httpGet, tcpSocket, grpc, sleep; for probes and for lifecycle hooks.

Owns the I/O of an attempt and upstream's wording of its failure. Promises to end within the timeout and to leave no
connection open. Never decides what a failure means. Called by `prober` and by the pod workers' hooks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.kubelet.cri.runtime import CallError, Runtime, TimedOut
from controlplane.machinery.clock import SYSTEM, Clock

BODY_LIMIT = 10 * 1024  # bytes of an answer that are read: upstream's limit
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 10  # upstream's limit
PROBE_AGENT, HOOK_AGENT = "kube-probe/1.36", "kube-lifecycle/1.36"


class Failed(Exception):  # noqa: N818 - reads as what happened
    """The handler did not succeed; the text says why."""


class Checks:
    def __init__(self, runtime: Runtime, clock: Clock = SYSTEM) -> None:
        self._runtime, self._clock = runtime, clock
        self._session: Any = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def run(self, handler: dict[str, Any], container: dict[str, Any], container_id: str, ip: str,
                  timeout: float, *, hook: bool = False) -> str:
        """Perform `handler` once, for a probe or a `hook`; a warning about it, mostly "". Raises Failed."""
        if handler.get("exec") is not None:
            await self._exec(handler["exec"].get("command") or [], container_id, timeout)
        elif handler.get("httpGet") is not None:
            return await self._http(handler["httpGet"], container, ip, timeout, hook)
        elif handler.get("tcpSocket") is not None:
            where = handler["tcpSocket"]
            await self._tcp(where.get("host") or ip, port_of(where["port"], container), timeout)
        elif handler.get("grpc") is not None:
            await self._grpc(handler["grpc"], ip, timeout)
        elif handler.get("sleep") is not None:
            await self._clock.sleep(float(handler["sleep"].get("seconds") or 0))
        return ""

    async def _exec(self, command: list[str], container_id: str, timeout: float) -> None:
        try:
            code, out, err = await self._runtime.exec_sync(container_id, command, timeout)
        except TimedOut as error:
            raise Failed(f"command timed out: {' '.join(command)!r} timed out after {timeout:g}s") from error
        except CallError as error:
            raise Failed(str(error)) from error
        if code:
            raise Failed((out + err)[:BODY_LIMIT].decode(errors="replace"))

    async def _http(self, get: dict[str, Any], container: dict[str, Any], ip: str, timeout: float, hook: bool) -> str:
        """A hook has done its work when it was answered, whatever the answer."""
        import aiohttp
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        host, port = get.get("host") or ip, port_of(get["port"], container)
        path = get.get("path") or "/"
        url = f"{(get.get('scheme') or 'HTTP').lower()}://{f'[{host}]' if ':' in host else host}:{port}" \
              f"{path if path.startswith('/') else '/' + path}"
        headers = {"User-Agent": HOOK_AGENT if hook else PROBE_AGENT, "Accept": "*/*"}
        headers |= {h["name"]: h.get("value", "") for h in get.get("httpHeaders") or ()}
        try:
            async with asyncio.timeout(timeout):
                status, body = await self._follow(url, headers)
        except TimeoutError as error:
            raise Failed(f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting '
                         "headers)") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed(f'Get "{url}": {_go(error, host, port)}') from error
        if hook or 200 <= status < 300:
            return ""
        if not 300 <= status < 400:
            raise Failed(f"HTTP probe failed with statuscode: {status}")
        return f"Probe terminated redirects, Response body: {body}"

    async def _follow(self, url: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body of the answer, redirects followed on the same host only: no pod leads the node elsewhere."""
        import yarl
        first = here = yarl.URL(url, encoded=True)
        for _ in range(MAX_REDIRECTS):
            async with self._session.get(here, headers=headers, ssl=False, allow_redirects=False) as answer:
                body = (await answer.content.read(BODY_LIMIT)).decode(errors="replace")
                place = answer.headers.get("Location", "") if answer.status in REDIRECTS else ""
                following = here.join(yarl.URL(place, encoded=True))
                if not place or following.host != first.host:
                    return answer.status, body
                here = following
        raise Failed(f'Get "{here}": stopped after {MAX_REDIRECTS} redirects')

    async def _tcp(self, host: str, port: int, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError as error:
            raise Failed(f"dial tcp {host}:{port}: i/o timeout") from error
        except OSError as error:
            raise Failed(_go(error, host, port)) from error
        writer.close()

    async def _grpc(self, spec: dict[str, Any], ip: str, timeout: float) -> None:
        import grpc
        service = (spec.get("service") or "").encode()
        request = b"\x0a" + bytes([len(service)]) + service if service else b""  # HealthCheckRequest{service}
        host = f"[{ip}]" if ":" in ip else ip
        async with grpc.aio.insecure_channel(f"{host}:{spec['port']}") as channel:
            try:
                answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Failed(f"timeout: failed to connect service \"{host}:{spec['port']}\" within "
                                 f"{timeout:g}s: context deadline exceeded") from error
                raise Failed(f"error: health rpc failed: {error.details()}") from error
        if answer != b"\x08\x01":  # HealthCheckResponse{status: SERVING}
            raise Failed("service unhealthy (responded with \"NOT_SERVING\")")


def _go(error: BaseException, host: str, port: int) -> str:
    """A connection failure in the words users of upstream know."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ConnectionRefusedError):
        return f"dial tcp {host}:{port}: connect: connection refused"
    if isinstance(cause, ConnectionResetError):
        return f"read tcp {host}:{port}: read: connection reset by peer"
    if getattr(cause, "errno", None) == 113:
        return f"dial tcp {host}:{port}: connect: no route to host"
    return str(error) or type(error).__name__


def port_of(port: int | str, container: dict[str, Any]) -> int:
    """A port by number or by the name a container port has. Raises Failed."""
    if isinstance(port, int):
        return port
    for entry in container.get("ports") or ():
        if entry.get("name") == port:
            return int(entry["containerPort"])
    if str(port).isdigit():
        return int(port)
    raise Failed(f"port {port!r} is not a named port of container {container.get('name')}")
