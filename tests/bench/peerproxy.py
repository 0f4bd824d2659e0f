"""A kube-proxy given by its path, doing the same work as ours: the same Services, in a namespace of its own.

Owns as much of an API server as a kube-proxy of any release asks for, over plain HTTP on loopback, and reads the
figures from its own metrics: a sync is what it calls one. From an event to the kernel it is timed from outside. Called
by `proxy` in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from aiohttp import web

from netsetup import xtables
from tests.bench.population import HERE, PODS, service, slice_of

NODE = "n"
METRICS = 10249
CHANGES = 5
WAIT_SECONDS = 280.0  # of one sync: some modes of some releases take minutes
SYNC = "kubeproxy_sync_proxy_rules_duration_seconds"
KINDS = {"services": "Service", "nodes": "Node", "endpointslices": "EndpointSlice", "endpoints": "Endpoints",
         "servicecidrs": "ServiceCIDR"}
INVALID = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422,
           "message": "sendInitialEvents is not offered here"}


class Api:
    """Lists and watches of fixed objects, and the events that are put in."""

    def __init__(self, known: dict[str, list[dict[str, Any]]]) -> None:
        self.known, self.revision, self.watchers = known, 1, dict[str, list[tuple[web.StreamResponse, str]]]()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        plural = next((part for part in parts if part in KINDS), "")
        if request.method != "GET" or not plural:
            return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404},
                                     status=404 if request.method == "GET" else 201)
        objects = self.known.get(plural, [])
        if parts[-1] != plural:
            found = next((o for o in objects if o["metadata"]["name"] == parts[-1]), None)
            return web.json_response(found, status=200 if found else 404)
        if request.query.get("sendInitialEvents"):
            return web.json_response(INVALID, status=422)
        group = "/".join(parts[1:3]) if parts[0] == "apis" else "v1"
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, plural, group)
        return web.json_response({"kind": f"{KINDS[plural]}List", "apiVersion": group, "items": objects,
                                  "metadata": {"resourceVersion": str(self.revision)}})

    async def _watch(self, request: web.BaseRequest, plural: str, group: str) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        self.watchers.setdefault(plural, []).append((stream, group))
        await asyncio.Event().wait()
        return stream

    async def put(self, plural: str, obj: dict[str, Any]) -> None:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        for stream, group in self.watchers[plural]:
            event = {"type": "MODIFIED", "object": {**obj, "kind": KINDS[plural], "apiVersion": group}}
            await stream.write(json.dumps(event).encode() + b"\n")


@contextmanager
def tools(variant: str) -> Iterator[str]:
    """A PATH on which `iptables` is of this variant."""
    with tempfile.TemporaryDirectory() as folder:
        for stem in ("iptables", "ip6tables"):
            for tool in ("", "-save", "-restore"):
                real = shutil.which(f"{stem}-{variant}{tool}", path=xtables.PATH) if variant else None
                if real:
                    (Path(folder) / f"{stem}{tool}").symlink_to(real)
        yield f"{folder}:{xtables.PATH}"


def speaks_nftables(program: str) -> bool:
    """Whether this release has the mode."""
    return "nftables" in subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout


def _figures() -> tuple[int, float]:
    """(syncs, seconds they took), of the family IPv4."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as page:
            text = page.read().decode()
    except OSError:
        return 0, 0.0

    def sum_of(kind: str) -> float:
        found = re.findall(rf"^{SYNC}_{kind}(?:\{{(.*?)\}})? (\S+)$", text, re.M)
        return sum(float(value) for labels, value in found if "IPv6" not in labels)

    return int(sum_of("count")), sum_of("sum")


async def _next(count: int) -> tuple[int, float]:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            found = await asyncio.to_thread(_figures)
            if found[0] > count:
                return found
            await asyncio.sleep(0.005)  # outside of what its own metrics measure


@asynccontextmanager
async def _serving(api: Api) -> AsyncIterator[int]:
    runner = web.ServerRunner(web.Server(api.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _owned(number: int, shift: int = 0) -> dict[str, Any]:
    """A slice as a server would show it."""
    made = slice_of(number, shift)
    made["metadata"] |= {"labels": {"kubernetes.io/service-name": f"s{number}"}, "uid": f"e{number}",
                         "resourceVersion": "1"}
    for endpoint in made["endpoints"]:
        endpoint["conditions"] = {"ready": True}
    made["ports"][0]["name"] = ""
    return made


def _known(count: int) -> dict[str, list[dict[str, Any]]]:
    services = [service(number) for number in range(count)]
    for number, one in enumerate(services):
        one["metadata"] |= {"uid": f"s{number}", "resourceVersion": "1"}
        one["spec"]["clusterIPs"] = [one["spec"]["clusterIP"]]
    node = {"metadata": {"name": NODE, "uid": NODE, "resourceVersion": "1"}, "spec": {"podCIDR": PODS},
            "status": {"addresses": [{"type": "InternalIP", "address": HERE}]}}
    return {"services": services, "endpointslices": [_owned(number) for number in range(count)], "nodes": [node]}


async def measure(program: str, writer: str, count: int) -> dict[str, float]:
    """Milliseconds of the first sync (`load`), of one endpoint (`change`) and from its event to its end (`event`)."""
    mode, _, variant = writer.partition("-")
    api = Api(_known(count))
    with tools(variant) as path:
        async with _serving(api) as port:
            process = await asyncio.create_subprocess_exec(
                program, f"--master=http://127.0.0.1:{port}", f"--proxy-mode={mode}", f"--hostname-override={NODE}",
                f"--cluster-cidr={PODS}", f"--metrics-bind-address=127.0.0.1:{METRICS}", "--conntrack-max-per-core=0",
                "--conntrack-min=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
                env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                syncs, seconds = await _next(0)
                found = {"load": seconds * 1000}
                took, waited = [], []
                for number in range(CHANGES):
                    begun = perf_counter()
                    await api.put("endpointslices", _owned((number * 37 + 1) % (count - 2) + 1, 1))
                    before = seconds
                    syncs, seconds = await _next(syncs)
                    took.append((seconds - before) * 1000)
                    waited.append((perf_counter() - begun) * 1000)
                return found | {"change": statistics.median(took), "event": statistics.median(waited)}
            finally:
                process.kill()
                await process.wait()
