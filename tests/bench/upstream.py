"""A kubelet somebody gives by path, beside ours: a node of its own in the running cluster, on a containerd of its own.

It is the same containerd with the same configuration and the same pod network; a second instance, because a kubelet
ends whatever pods it finds in its runtime and was not told of. `node` measures it with the same pods. Nothing of it
stays: the node, both processes and their folder go at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from agent.image import demo, pause
from agent.kubelet.cri import containerd
from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.volumes.mounts import Mounts
from controlplane.client import rest
from controlplane.machinery import objects, resources
from controlplane.machinery.errors import Finding, NotFound
from controlplane.machinery.paths import Paths
from cri_proto.client import Connection

NODES = resources.named("nodes")
NAME = "bench-upstream"
READY_SECONDS, POLL_SECONDS = 180.0, 0.2
OWN_ENDPOINT = (1, 27)  # the release since which the runtime's socket stands in the configuration alone


def version(binary: str) -> tuple[int, int]:
    """Major and minor. Raises Finding when it is no kubelet."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30).stdout
    except OSError as error:
        raise Finding(f"{binary} cannot be run", str(error)) from None
    found = re.search(r"v(\d+)\.(\d+)", said)
    if found is None:
        raise Finding(f"{binary} is no kubelet", f"asked for its version it says {said.strip()!r}")
    return int(found[1]), int(found[2])


def _configuration(folder: Path, socket: Path, release: tuple[int, int]) -> dict[str, object]:
    made: dict[str, object] = {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False, "enforceNodeAllocatable": [], "failSwapOn": False, "port": 10350, "healthzPort": 0,
        "readOnlyPort": 0, "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"}, "evictionHard": {"memory.available": "1Mi"}, "maxPods": 200,
        "registerNode": True,
        # What releases since 1.27 have by themselves; older ones would wait for their own limits.
        "kubeAPIQPS": 50, "kubeAPIBurst": 100, "eventRecordQPS": 50, "eventBurst": 100}
    if release >= OWN_ENDPOINT:
        made["containerRuntimeEndpoint"] = f"unix://{socket}"
    return made


def _command(binary: str, paths: Paths, folder: Path, socket: Path) -> list[str]:
    release = version(binary)
    (folder / "kubelet.json").write_text(json.dumps(_configuration(folder, socket, release)))
    more = [] if release >= OWN_ENDPOINT else [
        "--container-runtime=remote", f"--container-runtime-endpoint=unix://{socket}"]
    return [binary, f"--config={folder}/kubelet.json", f"--kubeconfig={paths.admin_kubeconfig}",
            f"--hostname-override={NAME}", f"--root-dir={folder}/kubelet", f"--cert-dir={folder}/pki", *more]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def _failure(log: Path) -> Finding:
    said = [line for line in log.read_text(errors="replace").splitlines() if line[:1] in "EF"]
    return Finding("the given kubelet does not become ready", said[-1] if said else "it does not say why")


@contextlib.asynccontextmanager
async def node(binary: str, paths: Paths, client: rest.Client) -> AsyncIterator[str]:
    """The name of a ready node that `binary` serves. Raises Finding."""
    folder = paths.run / "bench-upstream"
    Mounts().unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own, log = Paths(folder), folder / "log"
    command = _command(binary, paths, folder, own.containerd_socket)
    for link, target in ((own.cni_bin, paths.cni_bin), (own.cni_conf, paths.cni_conf)):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    containerd.prepare(own)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(_start(containerd.command(own), log))
        await containerd.ready(own)
        async with Connection(own.containerd_socket) as connection:
            await demo.install(connection, paths, (pause.NAME, demo.DEMO))
        processes.append(_start(command, log))
        await _ready(client, processes[-1], log)
        yield NAME
    finally:
        with contextlib.suppress(NotFound):
            await client.delete(NODES, NAME)
        for process in processes[1:]:
            _end(process)
        if processes:
            await _sweep(own)
            _end(processes[0])
        Mounts().unmount_below(folder)
        shutil.rmtree(folder)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(READY_SECONDS)


async def _sweep(own: Paths) -> None:
    """Remove the pods that the kubelet has not yet."""
    async with Connection(own.containerd_socket) as connection:
        runtime = Runtime(connection)
        for pod in (await runtime.observe()).values():
            for sandbox in pod.sandboxes:
                await runtime.remove_sandbox(sandbox.id)


async def _ready(client: rest.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises Finding with its last complaint when it ends, or is not ready in time."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            while process.poll() is None:
                with contextlib.suppress(NotFound):
                    found = await client.get(NODES, NAME)
                    if (objects.condition(found, "Ready") or {}).get("status") == "True":
                        return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        pass
    raise _failure(log)
