"""The apiserver as a process: readiness, a clean stop, what is on disk afterwards, and exit codes."""

import asyncio
import os
import signal
import socket
import ssl
import sys

import aiohttp
import pytest

from controlplane.machinery.paths import Paths
from controlplane.pki.cluster import ensure
from tests.unit.apiserver.harness import config_map

SECONDS = 20.0
CMS = "/api/v1/namespaces/default/configmaps"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    def __init__(self, folder, port):
        self.paths, self.port = Paths(folder), port
        ensure(self.paths, "n1", "127.0.0.1")
        self.tls = ssl.create_default_context(cafile=str(self.paths.pki / "ca.crt"))
        self.tls.load_cert_chain(self.paths.pki / "admin.crt", self.paths.pki / "admin.key")

    async def start(self, ready=True):
        pki, address = self.paths.pki, str(self.paths.root / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(address)
            told.setblocking(False)
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "controlplane.apiserver", "--secure-port", str(self.port), "--bind-address",
                "127.0.0.1", "--tls-cert-file", pki / "apiserver.crt", "--tls-private-key-file", pki / "apiserver.key",
                "--client-ca-file", pki / "ca.crt", "--storage-path", self.paths.store,
                env={**os.environ, "NOTIFY_SOCKET": address}, stderr=asyncio.subprocess.PIPE)
            if ready:
                async with asyncio.timeout(SECONDS):
                    assert await asyncio.get_running_loop().sock_recv(told, 100) == b"READY=1"
        os.unlink(address)

    async def call(self, method, path, body=None):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.tls)) as session, \
                session.request(method, f"https://127.0.0.1:{self.port}{path}", json=body) as answer:
            return answer.status

    async def stop(self, number):
        self.process.send_signal(number)
        async with asyncio.timeout(SECONDS):
            _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_survives_any_end(tmp_path, number):
    async def main():
        server = Process(tmp_path, free_port())
        await server.start()
        assert await server.call("POST", CMS, config_map("a")) == 201
        code, log = await server.stop(number)
        if number == signal.SIGTERM:
            assert code == 0 and "stopped at revision" in log and "Traceback" not in log
        await server.start()
        assert await server.call("GET", CMS + "/a") == 200
        await server.stop(signal.SIGTERM)
    asyncio.run(main())


def test_an_occupied_port_ends_with_one_sentence(tmp_path):
    async def main():
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            server = Process(tmp_path, holder.getsockname()[1])
            await server.start(ready=False)
            async with asyncio.timeout(SECONDS):
                _, errors = await server.process.communicate()
            assert server.process.returncode == 1
            assert errors.decode().startswith(f"cannot listen on 127.0.0.1:{server.port}: Address already in use")
    asyncio.run(main())
