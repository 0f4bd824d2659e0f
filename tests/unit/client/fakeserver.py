"""An API server small enough to misbehave on demand: objects in a dict, one history, real HTTP on the loopback."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

from aiohttp import web

from controlplane.client.config import ClientConfig
from controlplane.client.rest import REQUESTS_AT_ONCE, Client
from controlplane.machinery.clock import settle


class FakeServer:
    def __init__(self):
        self.objects: dict[str, dict] = {}
        self.history: list[tuple[int, str, str, dict]] = []  # revision, type, path, object
        self.revision = 10
        self.compacted = 0  # watches from before this revision expire
        self.watches = 0
        self.requests: list[tuple[str, str]] = []
        self.failures: list[web.Response] = []  # answered instead, one per request
        self.changed = asyncio.Condition()
        self.cut = asyncio.Event()  # ends the running watches

    async def put(self, path, obj, kind=""):
        self.revision += 1
        kind = kind or ("MODIFIED" if path in self.objects else "ADDED")
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.revision)}}
        if kind == "DELETED":
            self.objects.pop(path, None)
        else:
            self.objects[path] = obj
        self.history.append((self.revision, kind, path, obj))
        async with self.changed:
            self.changed.notify_all()
        return obj

    async def handle(self, request):
        self.requests.append((request.method, request.path_qs))
        if self.failures:
            return self.failures.pop(0)
        path, method = request.path, request.method
        if method == "GET" and request.query.get("watch"):
            return await self.watch(request)
        if method == "GET" and path in self.objects:
            return web.json_response(self.objects[path])
        if method == "GET" and path.rsplit("/", 1)[-1].endswith("s"):
            return self.list(request)
        if method == "POST":
            obj = await request.json()
            path = f"{path}/{obj['metadata']['name']}"
            if path in self.objects:
                return status(409, "AlreadyExists", "already exists")
            return web.json_response(await self.put(path, obj), status=201)
        if path not in self.objects:
            return status(404, "NotFound", "not found")
        if method == "PUT":
            obj = await request.json()
            sent = obj["metadata"].get("resourceVersion")
            if sent and sent != self.objects[path]["metadata"]["resourceVersion"]:
                return status(409, "Conflict", "modified")
            return web.json_response(await self.put(path, obj))
        if method == "PATCH":
            return web.json_response(await self.put(path, {**self.objects[path], **await request.json()}))
        return web.json_response(await self.put(path, self.objects[path], "DELETED"))

    def list(self, request):
        keys = sorted(k for k in self.objects if k.startswith(request.path + "/"))
        start = int(request.query.get("continue") or 0)
        limit = int(request.query.get("limit") or len(keys) + 1)
        meta = {"resourceVersion": str(self.revision)}
        if start + limit < len(keys):
            meta["continue"] = str(start + limit)
        return web.json_response({"metadata": meta, "items": [self.objects[k] for k in keys[start:start + limit]]})

    async def watch(self, request):
        self.watches += 1
        since, cut = int(request.query["resourceVersion"]), self.cut
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self.compacted:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        sent = 0
        while not cut.is_set():
            while sent < len(self.history):
                revision, kind, path, obj = self.history[sent]
                sent += 1
                if revision > since and path.startswith(request.path + "/"):
                    line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
                    middle = len(line) // 2  # an event never arrives in one piece
                    await response.write(line[:middle])
                    await response.write(line[middle:])
            async with self.changed:
                while sent == len(self.history) and not cut.is_set():
                    await self.changed.wait()
        return response

    async def cut_watches(self):
        self.cut.set()
        self.cut = asyncio.Event()
        async with self.changed:
            self.changed.notify_all()


def status(code, reason, message, **headers):
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code, headers={k.replace("_", "-"): v for k, v in headers.items()})


@asynccontextmanager
async def serving(clock=None):
    """(server, client) on a free port."""
    fake = FakeServer()
    runner = web.ServerRunner(web.Server(fake.handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    options = {"clock": clock} if clock else {}
    try:
        async with Client(ClientConfig(server=f"http://127.0.0.1:{port}"), **options) as client:
            yield fake, client
    finally:
        await fake.cut_watches()
        await runner.cleanup()


async def answered(client):
    """Wait until no request is under way, and whoever asked has gone on with its answer."""
    while client._slots._value < REQUESTS_AT_ONCE:  # noqa: ASYNC110 - a semaphore tells nobody that it is free
        await asyncio.sleep(0.001)
    await settle()


async def until(condition, seconds=60.0):
    """Wait until `condition()` holds, looking again whenever the loop turns."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is over plain state that has no event
            await asyncio.sleep(0.005)
