"""An apiserver inside the test's own process: real sockets on loopback, objects in memory.

`async with serving() as api:` gives a client with one method, `call`; `tls=True` (with a folder) serves TLS with a
client CA, as in production. Everything the server does is the real thing except the storage, which forgets.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from controlplane.apiserver.config import Options
from controlplane.apiserver.server import Server
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.store.log import Log
from controlplane.store.memory import MemoryLog

DEADLINE = 10.0  # seconds any one step of a test may take


class Api:
    """A client of one server. `url` has no trailing slash."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, url: str) -> None:
        self.server = server
        self.session = session
        self.url = url

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json",
                   headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and decoded body (text when it is no JSON). `body` is an object or bytes."""
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        sent = {**({"Content-Type": content_type} if data is not None else {}), **(headers or {})}
        async with asyncio.timeout(DEADLINE), self.session.request(method, self.url + path, data=data,
                                                                   headers=sent) as answer:
            raw = await answer.read()
            return answer.status, orjson.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode()

    async def held(self, path: str) -> asyncio.Task[tuple[int, Any]]:
        """A GET that waits inside the server for a revision that does not come; returns once it waits."""
        cache, waits = self.server.cache, asyncio.Event()
        reached = cache.reached

        async def told(revision: int) -> None:
            waits.set()
            await reached(revision)

        cache.reached = told  # type: ignore[method-assign]
        task = asyncio.create_task(self.call("GET", path))
        async with asyncio.timeout(DEADLINE):
            await waits.wait()
        return task

    async def made(self, path: str, body: Any) -> dict[str, Any]:
        """POST that must succeed."""
        status, obj = await self.call("POST", path, body)
        assert status == 201, obj
        return obj  # type: ignore[no-any-return]

    @asynccontextmanager
    async def watching(self, path: str, headers: dict[str, str] | None = None) -> AsyncIterator[Events]:
        async with self.session.get(self.url + path, headers=headers or {}) as answer:
            assert answer.status == 200, await answer.text()
            yield Events(answer)


class Events:
    """The events of one watch."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def next(self) -> tuple[str, dict[str, Any]]:
        """Type and object of the next event; EOFError at the end."""
        async with asyncio.timeout(DEADLINE):
            line = await self._answer.content.readline()
        if not line:
            raise EOFError
        event = orjson.loads(line)
        return event["type"], event["object"]

    async def take(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        return [await self.next() for _ in range(count)]


@asynccontextmanager
async def serving(log: Log | None = None, clock: Clock = SYSTEM, tls: Path | None = None,
                  client: str = "admin", **settings: Any) -> AsyncIterator[Api]:
    """A running server. `tls` is a folder for its certificates; `client` names the kubeconfig identity used then."""
    context: ssl.SSLContext | None = None
    if tls is not None:
        from controlplane.machinery.paths import Paths
        from controlplane.pki.cluster import ensure
        paths = Paths(tls)
        ensure(paths, "n1", "127.0.0.1")
        pki = paths.pki
        settings = {"tls_cert_file": pki / "apiserver.crt", "tls_private_key_file": pki / "apiserver.key",
                    "client_ca_file": pki / "ca.crt", "service_account_key_file": pki / "sa.pub",
                    "service_account_signing_key_file": pki / "sa.key", **settings}
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        if client:
            context.load_cert_chain(pki / f"{client}.crt", pki / f"{client}.key")
    settings = {"secure_port": 0, "bind_address": "127.0.0.1", "advertise_address": "10.0.0.1", **settings}
    server = Server(Options(**settings), log or MemoryLog(), clock=clock)
    await server.start()
    try:
        connector = aiohttp.TCPConnector(ssl=context if context is not None else False)
        async with aiohttp.ClientSession(connector=connector) as session:
            scheme = "https" if context is not None else "http"
            yield Api(server, session, f"{scheme}://127.0.0.1:{server.port}")
    finally:
        await server.stop()


def config_map(name: str, labels: dict[str, str] | None = None, **data: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "busybox"}], **spec}}
