"""The API server by itself: TLS, token authentication, SQLite with every write on disk, on loopback."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

from controlplane.cli.control import environment
from controlplane.client import config, rest
from controlplane.machinery import resources
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from controlplane.pki import cluster
from tests.bench.load import Load, Target, request, run

CONFIGMAPS, PODS, NAMESPACES, ACCOUNTS = (
    resources.named(n) for n in ("configmaps", "pods", "namespaces", "serviceaccounts"))
READY_SECONDS = 30.0
WATCHERS, FAN_OUT_WRITES = 200, 200
MANY = 10_000  # pods: upstream's advice for clusters of a hundred full nodes
AIMS = {f"resident memory with {MANY:,} pods, after lists of them": "≤ 200",
        f"GET beside lists of {MANY:,} pods, longest": "< 50",
        "GET": "≥ 6,000", "LIST 500 pods": "≥ 300", "create": "≥ 1,500"}


@contextmanager
def server() -> Iterator[tuple[Target, Path, int]]:
    """A fresh API server; yields where it is, its admin kubeconfig and its pid."""
    with tempfile.TemporaryDirectory(prefix="pelamis-bench-") as folder, socket.socket() as probe:
        paths = Paths(Path(folder))
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        cluster.ensure(paths, "bench", "127.0.0.1", port=port)
        tokens = Path(folder) / "tokens.csv"
        tokens.write_text('bench-token,bench,1,"system:masters"\n')
        pki = paths.pki
        paths.store.parent.mkdir(parents=True)
        command = ["controlplane.apiserver", "--bind-address=127.0.0.1",
                   f"--secure-port={port}", "--advertise-address=127.0.0.1", f"--storage-path={paths.store}",
                   f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
                   f"--client-ca-file={pki}/ca.crt", f"--token-auth-file={tokens}",
                   f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key"]
        with running(paths.root, "apiserver", *command) as pid:
            yield (Target("127.0.0.1", port, f"{pki}/ca.crt", "Authorization: Bearer bench-token\r\n"),
                   paths.kubeconfig("admin"), pid)


@contextmanager
def running(folder: Path, name: str, *command: str) -> Iterator[int]:
    """A process of ours from when it says that it is ready, its log in `folder`; yields its pid."""
    notify, file = folder / f"notify-{name}", folder / f"{name}.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, file.open("w") as log:
        ready.bind(str(notify))
        ready.settimeout(0.2)
        process = subprocess.Popen([sys.executable, "-P", "-m", *command], stdout=log, stderr=log,
                                   env={**os.environ, **environment(), "NOTIFY_SOCKET": str(notify)})
        try:
            wait_ready(ready, process, file)
            yield process.pid
        finally:
            process.terminate()
            process.wait(20)


def wait_ready(ready: socket.socket, process: subprocess.Popen, log: Path) -> None:
    deadline = monotonic() + READY_SECONDS
    while True:
        try:
            ready.recv(4096)
            return
        except TimeoutError:
            if process.poll() is not None or monotonic() > deadline:
                raise Finding("the API server did not start", "\n".join(log.read_text().splitlines()[-3:])) from None


def pod(number: int) -> dict:
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"pod-{number}", "labels": {"app": f"a{number % 50}"}},
            "spec": {"nodeName": f"node-{number % 30}", "containers": [
                {"name": "main", "image": "docker.io/library/nginx:1.27", "ports": [{"containerPort": 80}],
                 "env": [{"name": "A", "value": "b"}], "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]}}


async def fill(kubeconfig: Path, namespace: str, count: int) -> None:
    async with rest.Client(config.load(kubeconfig)) as client:
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
        await client.create(ACCOUNTS, {"metadata": {"name": "default"}}, namespace=namespace)  # no controller here
        for start in range(0, count, 50):
            await asyncio.gather(*(client.create(PODS, pod(n), namespace=namespace)
                                   for n in range(start, min(start + 50, count))))


async def fan_out(kubeconfig: Path) -> tuple[float, float]:
    """Events delivered a second to WATCHERS watches, and the median milliseconds from POST to the last of them."""
    async with rest.Client(config.load(kubeconfig)) as client:
        await client.create(NAMESPACES, {"metadata": {"name": "fan"}})
        _, revision = await client.list(CONFIGMAPS, "fan")
        seen: dict[str, int] = {}
        all_saw, started = asyncio.Event(), asyncio.Event()
        begun = 0

        async def watch() -> None:
            nonlocal begun
            begun += 1
            if begun == WATCHERS:
                started.set()
            async for _, obj in client.watch(CONFIGMAPS, "fan", revision=revision):
                name = obj["metadata"]["name"]
                seen[name] = seen.get(name, 0) + 1
                if seen[name] == WATCHERS:
                    all_saw.set()
        watchers = [asyncio.create_task(watch()) for _ in range(WATCHERS)]
        await started.wait()
        took, first = [], monotonic()
        for number in range(FAN_OUT_WRITES):
            all_saw.clear()
            at = monotonic()
            await client.create(CONFIGMAPS, {"metadata": {"name": f"c{number}"}, "data": {"k": "v"}}, namespace="fan")
            await asyncio.wait_for(all_saw.wait(), 30)
            took.append(monotonic() - at)
        seconds = monotonic() - first
        for task in watchers:
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        return FAN_OUT_WRITES * WATCHERS / seconds, sorted(took)[len(took) // 2] * 1000


def lag(target: Target, seconds: float) -> tuple[float, float]:
    """Milliseconds that 99 % of small GETs take at most, and the longest, while another connection lists MANY pods over
    and over: what the event loop makes others wait."""
    context = ssl.create_default_context(cafile=target.ca)
    context.check_hostname = False
    took: list[float] = []
    probe = request(target, "GET", "/api/v1/namespaces/default")
    with socket.create_connection((target.host, target.port)) as plain, context.wrap_socket(plain) as connection:
        connection.sendall(probe)  # who it is, is found out once
        connection.recv(65536)
        context_of_lister = multiprocessing.get_context("spawn")
        over = context_of_lister.Event()
        lister = context_of_lister.Process(target=_list_over_and_over, args=(target, seconds, over))
        lister.start()
        over.wait(seconds + 60)  # it has begun
        while lister.is_alive():
            at = monotonic()
            connection.sendall(probe)
            connection.recv(65536)
            took.append(monotonic() - at)
        lister.join()
    took.sort()
    return took[len(took) * 99 // 100] * 1000, took[-1] * 1000


def _list_over_and_over(target: Target, seconds: float, begun: Any) -> None:
    fixed = request(target, "GET", "/api/v1/pods")
    begun.set()
    asyncio.run(Load(lambda _: fixed, seconds, 1).run(target))


def measure(args: Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def note(what: str, figure: float, unit: str = "/s") -> None:
        rows.append({"area": "api", "what": what, "figure": figure, "unit": unit, "aim": AIMS.get(what, "")})
    with server() as (target, kubeconfig, pid):
        asyncio.run(fill(kubeconfig, "small", 500))
        asyncio.run(fill(kubeconfig, "large", 5000))
        for what, path, connections in (
                ("GET", "/api/v1/namespaces/small/pods/pod-7", 32),
                ("LIST 500 pods", "/api/v1/namespaces/small/pods", 8),
                ("LIST 5,000 pods", "/api/v1/namespaces/large/pods", 4)):
            result = run(target, "GET", path, seconds=args.seconds, connections=connections)
            note(what, result.rate)
            if result.errors:
                note(f"{what}: errors", result.errors, "")
        body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bench-NUMBER"},
                           "data": {"k": "v"}})
        result = run(target, "POST", "/api/v1/namespaces/default/configmaps", body=body, seconds=args.seconds)
        note("create", result.rate)
        if result.errors:
            note("create: errors", result.errors, "")
        events, median = asyncio.run(fan_out(kubeconfig))
        note(f"watch fan-out to {WATCHERS}", events, "events/s")
        note(f"POST to the last of {WATCHERS} watchers, median", median, "ms")
        asyncio.run(fill(kubeconfig, "many", MANY - 5500))
        run(target, "GET", "/api/v1/pods", seconds=args.seconds, connections=2)
        held = psutil.Process(pid).memory_info().rss / 1e6
        note(f"resident memory with {MANY:,} pods, after lists of them", held, "MB")
        most, longest = lag(target, args.seconds)
        note(f"GET beside lists of {MANY:,} pods, 99 % within", most, "ms")
        note(f"GET beside lists of {MANY:,} pods, longest", longest, "ms")
    return rows
