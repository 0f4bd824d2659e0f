"""The kubelet's HTTPS API on port 10250: logs, exec, attach, port-forward, and what runs here.

Owns the routes, and that nobody passes who is unknown (401) or may not (403): who that is and what they may is
`access`'s to say. Promises that the apiserver's own forwarding works for every kubectl, since streams are tunnelled
raw. Never answers an anonymous request, health included. Called by the apiserver as kube-apiserver-kubelet-client and
by whoever scrapes metrics; started by the agent.

Upstream: pkg/kubelet/server.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from agent.kubelet.cri import streaming
from agent.kubelet.cri.runtime import CallError, Runtime
from agent.kubelet.serving import hostlogs, logs
from agent.kubelet.serving.access import ADMINS, Access, Caller, identity, subresources, verb_of
from agent.kubelet.serving.locate import Found, Locator
from agent.kubelet.serving.metrics import Metrics, alive
from agent.kubelet.serving.stats import Stats
from agent.kubelet.volumes.localvolumes import LocalVolumes
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, BadRequest, MethodNotAllowed, NotFound

PORT = 10250
BACKLOG = 128
RUN_SECONDS = 120.0  # of a command given to /run
READABLE = ("healthz", "pods", "stats", "metrics")  # without asking who reads: upstream's read-only port
EXPOSITION = "text/plain; version=0.0.4"

Handler = Callable[[web.BaseRequest, list[str]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to listen and by what to be known; `client_ca` signs those who may call."""

    certificate: Path
    key: Path
    client_ca: Path
    host: str = ""  # all addresses of both families
    port: int = PORT
    config: dict[str, Any] = field(default_factory=dict)  # shown at /configz
    logs: Path | None = None  # shown at /logs/
    read_only: tuple[str, int] = ("", 0)  # where to answer READABLE to whoever asks; port 0 = nowhere


def flag(request: web.BaseRequest, name: str) -> bool:
    return request.query.get(name, "").lower() in ("1", "true")


class Server:
    """Create, then `run()`. `pods` gives the pods bound to this node; without `access` none but administrators with a
    certificate are let in, without `stats` and `metrics` there are none to ask, without `volumes` no local volumes are
    made."""

    def __init__(self, runtime: Runtime, pods: Callable[[], Iterable[dict[str, Any]]], settings: Settings,
                 access: Access | None = None, stats: Stats | None = None, clock: Clock = SYSTEM,
                 volumes: LocalVolumes | None = None, metrics: Metrics | None = None) -> None:
        self._runtime, self._pods, self._settings, self._volumes = runtime, pods, settings, volumes
        self._access, self._stats, self._clock, self._metrics = access, stats, clock, metrics
        self._locator = Locator(runtime, pods)
        self.listening = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        self.port, self.read_only_port = settings.port, settings.read_only[1]
        self._routes: dict[str, Handler] = {
            "healthz": self._healthz, "pods": self._list_pods, "runningpods": self._running_pods,
            "configz": self._configz, "containerLogs": self._logs, "exec": self._exec, "attach": self._attach,
            "portForward": self._forward, "run": self._run_command, "stats": self._summary,
            "metrics": self._expose, "logs": self._host_logs, "localVolumes": self._local_volume}

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self._settings.client_ca))
        context.verify_mode = ssl.CERT_OPTIONAL  # so that who has no certificate is told 401 and not cut off
        self._context = context
        self.reload()
        return context

    def reload(self) -> None:
        """Show the certificate that is on the disk now to whoever connects from now on."""
        if self._context is not None:
            self._context.load_cert_chain(self._settings.certificate, self._settings.key)

    async def run(self) -> None:
        """Serve until cancelled."""
        server = web.Server(self._handle, access_log=None, auto_decompress=False)
        listener = await asyncio.get_running_loop().create_server(
            server, self._settings.host, self._settings.port, ssl=self._tls(), backlog=BACKLOG, reuse_address=True)
        self.port = listener.sockets[0].getsockname()[1]
        listeners, servers = [listener], [server]
        if self._settings.read_only[1]:
            servers.append(web.Server(self._handle_reader, access_log=None))
            listeners.append(await asyncio.get_running_loop().create_server(
                servers[1], *self._settings.read_only, backlog=BACKLOG, reuse_address=True))
            self.read_only_port = listeners[1].sockets[0].getsockname()[1]
        self.listening.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for one, served in zip(listeners, servers):
                one.close()
                await served.shutdown(1.0)

    async def _handle_reader(self, request: web.BaseRequest) -> web.StreamResponse:
        """On the read-only port."""
        parts = request.path.strip("/").split("/")
        if parts[0] not in READABLE:
            return web.Response(status=404, text="404 page not found\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="Method Not Allowed")
        return await self._answer(request, parts)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        caller = await self._caller(request)
        if caller is None:
            return web.Response(status=401, text="Unauthorized")
        verb, wanted = verb_of(request.method), subresources(request.path)
        if not await self._allowed(caller, verb, wanted):
            return web.Response(status=403, text=f"Forbidden (user={caller.name}, verb={verb}, resource=nodes, "
                                                 f"subresource(s)=[{' '.join(wanted)}])")
        return await self._answer(request, [unquote(p) for p in request.rel_url.raw_path.strip("/").split("/")])

    async def _answer(self, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        handler = self._routes.get(parts[0])
        if handler is None:
            return web.Response(status=404, text="404 page not found\n")
        try:
            return await handler(request, parts[1:])
        except ApiError as error:
            return web.Response(status=error.http_code, text=error.message)
        except CallError as error:
            return web.Response(status=500, text=error.details)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            return web.Response(status=502, text=f"the container runtime's streaming server failed: {error}")

    async def _caller(self, request: web.BaseRequest) -> Caller | None:
        transport = request.transport
        known = identity(transport.get_extra_info("peercert")) if transport is not None else None
        if known is None and self._access is not None and (header := request.headers.get("Authorization")):
            known = await self._access.bearer(header)
        return known

    async def _allowed(self, caller: Caller, verb: str, wanted: list[str]) -> bool:
        if self._access is None:
            return ADMINS in caller.groups
        return await self._access.allowed(caller, verb, wanted)

    # --- what runs here
    async def _healthz(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _list_pods(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return _json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(self._pods())})

    async def _running_pods(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        items = []
        for pod in (await self._runtime.observe()).values():
            running = [{"name": c.name, "image": c.image} for c in pod.running]
            if running:
                items.append({"metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                              "spec": {"containers": running}, "status": {}})
        return _json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    async def _configz(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return _json({"kubeletconfig": self._settings.config})

    async def _summary(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        if rest != ["summary"] or self._stats is None:
            raise NotFound("404 page not found")
        return _json(await self._stats.summary())

    async def _expose(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        if self._metrics is None:
            raise NotFound("404 page not found")
        match rest:
            case []:
                text = self._metrics.kubelet(await self._stats.claims() if self._stats is not None else ())
            case ["resource"]:
                text = self._metrics.resource()
            case ["cadvisor"]:
                text = self._metrics.cadvisor()
            case ["probes"]:
                text = self._metrics.probes()
            case ["slis"]:
                text = alive()
            case _:
                raise NotFound("404 page not found")
        return web.Response(text=text, headers={"Content-Type": EXPOSITION})

    async def _host_logs(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        if self._settings.logs is None:
            raise NotFound("404 page not found")
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("the server does not allow this method on the requested resource")
        return await asyncio.to_thread(hostlogs.answer, self._settings.logs, rest, request.path)

    # --- local volumes
    async def _local_volume(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        """PUT makes the folder of a volume, DELETE removes it; both tell its path and may be repeated."""
        (name,) = _names(rest, 1)
        if self._volumes is None:
            raise NotFound("404 page not found")
        if request.method not in ("PUT", "DELETE"):
            raise MethodNotAllowed("the server does not allow this method on the requested resource")
        act = self._volumes.make if request.method == "PUT" else self._volumes.remove
        return _json({"path": await asyncio.to_thread(act, name)})

    # --- logs
    async def _logs(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        namespace, pod, container = _names(rest, 3)
        wanted = logs.options(request.query, self._clock.now())
        found = await self._locator.container(namespace, pod, container, wanted.previous)

        async def running() -> bool:
            return await self._locator.alive(found)

        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        pieces = logs.read(found.log, wanted, running if found.running else logs.never)
        await response.prepare(request)
        try:
            async for piece in pieces:
                await response.write(piece)
            await response.write_eof()
        except ConnectionError:
            pass  # the reader went away
        finally:
            await pieces.aclose()
        return response

    # --- streams
    async def _exec(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        found = await self._streamed(request, rest)
        command = request.query.getall("command", [])
        url = await self._runtime.exec_url(found.container_id, command, **_streams(request))
        return await streaming.tunnel(request, url)

    async def _attach(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        found = await self._streamed(request, rest)
        url = await self._runtime.attach_url(found.container_id, **_streams(request))
        return await streaming.tunnel(request, url)

    async def _streamed(self, request: web.BaseRequest, rest: list[str]) -> Found:
        if request.method not in ("GET", "POST"):
            raise MethodNotAllowed("the server does not allow this method on the requested resource")
        if len(rest) == 4:
            del rest[2]  # the older form carries the pod's uid before the container
        return await self._locator.running(*_names(rest, 3))

    async def _forward(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        sandbox = await self._locator.sandbox(*_names(rest[:2], 2))
        ports = [int(p) for value in request.query.getall("port", []) for p in value.split(",") if p.isdigit()]
        url = await self._runtime.forward_url(sandbox, ports)
        if ports and request.headers.get("Upgrade", "").lower() == "websocket":
            # Over a WebSocket the runtime's server learns the ports from the query alone.
            url += "?" + "&".join(f"port={port}" for port in ports)
        return await streaming.tunnel(request, url)

    async def _run_command(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        if len(rest) == 4:
            del rest[2]
        found = await self._locator.running(*_names(rest, 3))
        command = request.query.get("cmd", "").split()
        _, out, err = await self._runtime.exec_sync(found.container_id, command, RUN_SECONDS)
        return web.Response(body=out + err, content_type="text/plain")


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _names(parts: list[str], count: int) -> list[str]:
    if len(parts) != count or not all(parts):
        raise NotFound("404 page not found")
    return parts


def _streams(request: web.BaseRequest) -> dict[str, bool]:
    """Which streams the client asks for. Raises BadRequest when it is none."""
    wanted = {"stdin": flag(request, "input"), "stdout": flag(request, "output"), "stderr": flag(request, "error"),
              "tty": flag(request, "tty")}
    if not (wanted["stdin"] or wanted["stdout"] or wanted["stderr"]):
        raise BadRequest("you must specify at least 1 of stdin, stdout, stderr")
    return wanted
