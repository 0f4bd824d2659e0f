"""The process: it becomes ready over TLS as its own identities, works on after the server was away, stops cleanly."""

import asyncio
import base64
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager

from controlplane.client import config
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named
from controlplane.store.memory import MemoryLog
from tests.unit.apiserver.harness import pod, serving
from tests.unit.client.fakeserver import until

SECONDS = 20.0
ROOM = {"cpu": "4", "memory": "8Gi", "pods": "110"}
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "capacity": ROOM, "allocatable": ROOM}}


@asynccontextmanager
async def process(root, notifications):
    """The controllers' process, ready; it must stop with 0 when told to."""
    paths = Paths(root)
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane.controllers", f"--root-ca-file={paths.pki}/ca.crt",
        f"--scheduler-kubeconfig={paths.kubeconfig('scheduler')}",
        env={**os.environ, "PELAMIS_ROOT": str(root), "NOTIFY_SOCKET": str(root / "notify")})
    try:
        async with asyncio.timeout(SECONDS):
            assert await asyncio.get_running_loop().sock_recv(notifications, 100) == b"READY=1"
        yield
        made.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            assert await made.wait() == 0
    finally:
        if made.returncode is None:
            made.kill()
            await made.wait()


async def see(client, resource, namespace, name, condition):
    """Wait until the object satisfies `condition`."""
    informer = Informer(client, named(resource), namespace)
    task = asyncio.create_task(informer.run())
    try:
        await until(lambda: (obj := informer.get(namespace, name)) is not None and condition(obj), SECONDS)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_ready_work_outage_stop(tmp_path):
    async def main():
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notifications.bind(str(tmp_path / "notify"))
        notifications.setblocking(False)
        store, paths, rights = MemoryLog(), Paths(tmp_path), {"authorization_mode": ("Node", "RBAC")}
        async with asyncio.timeout(3 * SECONDS), _process_over_outage(store, tmp_path, paths, rights, notifications) \
                as client:
            made = pod("p")
            made["metadata"]["namespace"] = "default"
            await client.create(named("secrets"), {
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token", "metadata": {
                    "name": "t", "namespace": "default", "annotations": {
                        "kubernetes.io/service-account.name": "default"}}})
            await client.create(named("pods"), made)  # the second server: what follows needs live watches
            await see(client, "pods", "default", "p", lambda one: one["spec"].get("nodeName") == "n")
            await see(client, "secrets", "default", "t", lambda one: len(one.get("data") or {}) == 3)
            secret = await client.get(named("secrets"), "t", "default")
            bearer = config.ClientConfig(client.config.server, client.config.ca,
                                         token=base64.b64decode(secret["data"]["token"]).decode())
            async with Client(bearer) as account:
                review = await account.create(named("selfsubjectreviews.authentication.k8s.io"), {
                    "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
            assert review["status"]["userInfo"]["username"] == "system:serviceaccount:default:default"
        notifications.close()
    asyncio.run(main())


@asynccontextmanager
async def _process_over_outage(store, root, paths, rights, notifications):
    async with serving(store, tls=root, **rights) as api:
        port = api.server.port
        for name in ("admin", "controller-manager", "scheduler"):
            file = paths.kubeconfig(name)
            file.write_text(file.read_text().replace(":6443", f":{port}"))
        admin = config.load(paths.admin_kubeconfig)
        running = process(root, notifications)
        await running.__aenter__()
        try:
            async with Client(admin) as client:
                await see(client, "serviceaccounts", "default", "default", bool)
                await client.create(named("nodes"), NODE)
                await see(client, "nodes", "", "n", lambda one: one["spec"].get("podCIDR") == "10.244.0.0/24")
        except BaseException:
            await running.__aexit__(None, None, None)
            raise
    try:
        async with serving(store, tls=root, secure_port=port, **rights), Client(admin) as client:
            yield client
    finally:
        await running.__aexit__(None, None, None)
