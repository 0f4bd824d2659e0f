"""The kubelet's HTTPS API in front of a real containerd: logs, exec, attach and port-forward as clients speak them."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.images.images import Images
from agent.kubelet.model import SandboxSpec
from agent.kubelet.pressure.keeping import READ_ONLY_PORT
from agent.kubelet.serving.logrotate import Rotator
from agent.kubelet.serving.metrics import Metrics
from agent.kubelet.serving.serve import Server, Settings
from agent.kubelet.serving.stats import Stats
from controlplane.pki.authority import Authority
from tests.node.rig import Host

pytestmark = pytest.mark.node
PATIENCE = 30.0


@dataclass
class Api:
    """A running server with one pod, and how to reach it."""

    url: str
    port: int
    http: aiohttp.ClientSession
    context: ssl.SSLContext
    container: str
    runtime: Runtime


def _contexts(folder: Path) -> tuple[Settings, dict[str, ssl.SSLContext]]:
    """Certificates for the server, for an admin, for a nobody, and no certificate at all."""
    authority = Authority.create(folder)
    (folder / "ca.pem").write_bytes(authority.pem)
    names = {"server": ("node", [], ("server",)), "admin": ("kube-apiserver-kubelet-client", ["system:masters"],
             ("client",)), "nobody": ("jane", ["dev"], ("client",))}
    for file, (name, groups, usages) in names.items():
        pair = authority.issue(name, groups, usages, ["127.0.0.1"])
        (folder / f"{file}.pem").write_bytes(pair.certificate)
        (folder / f"{file}.key").write_bytes(pair.key)
    contexts = {}
    for who in ("admin", "nobody", ""):
        contexts[who] = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        if who:
            contexts[who].load_cert_chain(folder / f"{who}.pem", folder / f"{who}.key")
    return Settings(folder / "server.pem", folder / "server.key", folder / "ca.pem", "127.0.0.1", 0), contexts


@asynccontextmanager
async def serving(host: Host, runtime: Runtime, script: str, folder: Path, read_only: int = 0,
                  **more: object) -> AsyncIterator[Api]:
    settings, contexts = _contexts(folder)
    settings = replace(settings, read_only=("127.0.0.1", read_only))
    cgroups = Cgroups(f"{host.cgroup.strip('/')}/kubepods")
    spec: SandboxSpec = host.sandbox("served")
    pod = {"metadata": {"name": "served", "namespace": "default", "uid": spec.uid},
           "spec": {"containers": [{"name": "main"}]}}
    spec = replace(spec, cgroup_parent=cgroups.parent(pod))
    sandbox = await runtime.run_sandbox(spec)
    container = await runtime.create_container(sandbox, spec, host.shell(script, **more))
    await runtime.start_container(container)
    observed = (await runtime.observe(spec.uid))[spec.uid]
    server = Server(runtime, lambda: [pod], settings, stats=Stats("node", lambda: [(pod, observed)], cgroups),
                    metrics=Metrics("node", lambda: [(pod, observed)], cgroups, calls=runtime.tally))
    task = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(PATIENCE):
            await server.listening.wait()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=contexts["admin"])) as http:
            api = Api(f"https://127.0.0.1:{server.port}", server.port, http, contexts["admin"], container, runtime)
            api.contexts = contexts  # type: ignore[attr-defined]
            async with asyncio.timeout(PATIENCE):
                yield api
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runtime.remove_sandbox(sandbox)


def test_only_the_clusters_own_are_let_in(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        async with serving(host, runtime, "sleep 600", tmp_path) as api:
            answers = {}
            for who, context in api.contexts.items():  # type: ignore[attr-defined]
                async with aiohttp.ClientSession() as http, http.get(f"{api.url}/pods", ssl=context) as answer:
                    answers[who] = (answer.status, (await answer.text())[:40])
            assert answers[""] == (401, "Unauthorized")
            assert answers["nobody"] == (403, "Forbidden (user=jane, verb=get, resource")
            assert answers["admin"][0] == 200
            async with api.http.get(f"{api.url}/runningpods/") as answer:
                assert (await answer.json())["items"][0]["metadata"]["name"] == "served"
            async with api.http.get(f"{api.url}/containerLogs/default/served/other") as answer:
                assert (answer.status, await answer.text()) == (400, "container other is not valid for pod served")
            async with api.http.get(f"{api.url}/containerLogs/default/gone/main") as answer:
                assert (answer.status, await answer.text()) == (404, 'pod "gone" does not exist')
    host.run(body)


def test_the_read_only_port_shows_what_runs_and_does_nothing(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        plain = f"http://127.0.0.1:{READ_ONLY_PORT}"
        async with serving(host, runtime, "sleep 600", tmp_path), aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorError):  # nobody asked for it
                await http.get(f"{plain}/healthz")
        async with serving(host, runtime, "sleep 600", tmp_path, read_only=READ_ONLY_PORT), \
                aiohttp.ClientSession() as http:
            shown = {}
            for path in ("healthz", "pods", "stats/summary", "metrics", "metrics/cadvisor", "metrics/resource"):
                async with http.get(f"{plain}/{path}") as answer:
                    shown[path] = (answer.status, await answer.text())
            assert {status for status, _ in shown.values()} == {200}
            assert '"name":"served"' in shown["pods"][1].replace(" ", "") and "served" in shown["metrics/cadvisor"][1]
            made = re.search(r'kubelet_runtime_operations_total\{operation_type="create_container"\} (\d+)',
                             shown["metrics"][1])
            assert made is not None and int(made[1]) >= 2
            for path in ("exec/default/served/main?command=id", "run/default/served/main", "configz", "runningpods/",
                         "containerLogs/default/served/main", "logs/"):
                async with http.get(f"{plain}/{path}") as answer:
                    assert answer.status == 404, path
            async with http.post(f"{plain}/pods") as answer:
                assert answer.status == 405
    host.run(body)


def test_use_is_read_from_cgroups(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo full; while :; do :; done"
        async with serving(host, runtime, script, tmp_path) as api:
            async with api.http.get(f"{api.url}/containerLogs/default/served/main?follow=true") as logs:
                assert await logs.content.readline() == b"full\n"
            rates = []
            while len(rates) < 2 or rates[-1] == 0:  # the second answer knows a rate
                async with api.http.get(f"{api.url}/stats/summary") as answer:
                    pod = (await answer.json())["pods"][0]
                rates.append(pod["containers"][0]["cpu"].get("usageNanoCores", 0))
            assert pod["podRef"]["name"] == "served" and rates[0] == 0
            assert 20_000_000 < pod["containers"][0]["memory"]["workingSetBytes"] <= pod["memory"]["workingSetBytes"]
            async with api.http.get(f"{api.url}/metrics/resource") as answer:
                text = await answer.text()
            used = re.search(r'container_memory_working_set_bytes\{container="main",namespace="default",'
                             r'pod="served"\} (\d+)', text)
            assert used is not None and int(used[1]) > 20_000_000 and "node_cpu_usage_seconds_total " in text
    host.run(body)


def test_logs_are_followed_over_a_rotation_to_the_end(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        script = "echo one; echo two >&2; while read word; do echo got $word; done"
        async with serving(host, runtime, script, tmp_path, stdin=True) as api:
            base = f"{api.url}/containerLogs/default/served/main"
            url = await runtime.attach_url(api.container, stdin=True, stdout=False, stderr=False, tty=False)
            async with api.http.get(f"{base}?follow=true") as logs, \
                    api.http.ws_connect(url, protocols=["v4.channel.k8s.io"]) as stdin:
                assert sorted([await logs.content.readline(), await logs.content.readline()]) == [b"one\n", b"two\n"]
                await stdin.send_bytes(b"\x00first\n")
                assert await logs.content.readline() == b"got first\n"
                path = next(iter((await runtime.observe()).values())).containers[0].log_path
                rotator = Rotator(runtime.reopen_log, lambda: None)  # type: ignore[arg-type, return-value]
                assert await rotator.rotate(api.container, Path(path), limit=1)
                await stdin.send_bytes(b"\x00second\n")
                assert await logs.content.readline() == b"got second\n"
                async with api.http.get(f"{base}?tailLines=2") as tail:  # reaches back into the rotated file
                    assert await tail.text() == "got first\ngot second\n"
                async with api.http.get(f"{base}?timestamps=true&stream=Stderr&limitBytes=34") as some:
                    text = await some.text()
                    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{9}\S+ tw?o?\n?", text) and len(text) == 34, text
                await runtime.stop_container(api.container, 0)
                assert await logs.content.read() == b""  # the follower ends with the container
    host.run(body)


def test_exec_by_websocket_tells_output_and_exit_code(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        async with serving(host, runtime, "sleep 600", tmp_path) as api:
            query = "input=1&output=1&error=1&command=sh&command=-c&command=read x; echo out $x; echo err >%262; exit 3"
            heard: dict[int, bytes] = {}
            async with api.http.ws_connect(f"{api.url}/exec/default/served/main?{query}",
                                           protocols=["v5.channel.k8s.io", "v4.channel.k8s.io"]) as socket:
                assert socket.protocol == "v4.channel.k8s.io"
                await socket.send_bytes(b"\x00word\n")
                while 3 not in heard:
                    data = (await socket.receive()).data
                    heard[data[0]] = heard.get(data[0], b"") + data[1:]
            assert (heard[1], heard[2]) == (b"out word\n", b"err\n")
            status = json.loads(heard[3])
            assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:  # clients fall back on this answer
                await api.http.ws_connect(f"{api.url}/exec/default/served/main?{query}",
                                          protocols=["v5.channel.k8s.io"])
            assert refused.value.status == 403
            async with api.http.post(f"{api.url}/exec/default/served/main?command=true") as answer:
                assert answer.status == 400
            async with api.http.post(f"{api.url}/run/default/served/main?cmd=hostname") as answer:
                assert await answer.text() == "served\n"
    host.run(body)


def test_spdy_is_tunnelled_byte_for_byte(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        async with serving(host, runtime, "sleep 600", tmp_path) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port, ssl=api.context)
            writer.write(b"POST /exec/default/served/main?output=1&command=true HTTP/1.1\r\nHost: node\r\n"
                         b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
                         b"Content-Length: 0\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 Switching Protocols") and b"SPDY/3.1" in head
            ping = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01"  # control frame, version 3, PING, id 1
            writer.write(ping)
            assert await reader.readexactly(len(ping)) == ping  # the runtime answers a ping with itself
            writer.close()
    host.run(body)


def test_port_forward_reaches_the_pod(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        script = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"
        async with serving(host, runtime, script, tmp_path) as api:
            while (await runtime.exec_sync(api.container, ["wget", "-q", "-O-", "http://127.0.0.1:8080/"], 5))[0]:
                pass  # until it listens; the fixture's patience bounds it
            async with api.http.ws_connect(f"{api.url}/portForward/default/served?port=8080",
                                           protocols=["v4.channel.k8s.io"]) as socket:
                await socket.send_bytes(b"\x00GET / HTTP/1.0\r\n\r\n")
                heard = b""
                while b"served\n" not in heard:
                    data = (await socket.receive()).data
                    assert data[0] == 0 or len(data) == 3, data  # channel 1 carries errors
                    heard += data[1:]
    host.run(body)
