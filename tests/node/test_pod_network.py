"""The pod network under a real containerd: our plugin is what it executes, our daemon what answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.images.images import Images
from netsetup.ipam import Ipam
from tests.node.rig import Host

pytestmark = pytest.mark.node
REPOSITORY = Path(__file__).parents[2]
DAEMON = """
import asyncio, sys
from pathlib import Path
from controlplane.machinery.paths import Paths
from netsetup.cni import install
from netsetup.cni.daemon import Daemon
from netsetup.ledger import Ledger

async def main():
    paths = Paths(Path(sys.argv[1]))
    ledger = Ledger(paths.ledger)
    install.install(paths, ledger)
    daemon = Daemon(paths, ledger)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.run())
        await daemon.listening.wait()
        await daemon.configure("10.244.7.0/24")
        print("ready", flush=True)

asyncio.run(main())
"""


class OwnNetwork(Host):
    """A host whose pods get their network from us."""

    daemon: subprocess.Popen[bytes] | None = None

    def network(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.daemon = subprocess.Popen(self.enter(sys.executable, "-c", DAEMON, str(self.root)),
                                       stdout=subprocess.PIPE, env=environment)
        assert self.daemon.stdout is not None
        assert self.daemon.stdout.readline() == b"ready\n"

    def kill_daemon(self) -> None:
        assert self.daemon is not None and self.daemon.stdout is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon.stdout.close()
        self.daemon = None

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self.daemon is not None:
                self.kill_daemon()


@pytest.fixture(scope="module")
def own() -> Iterator[OwnNetwork]:
    if os.geteuid() != 0:
        pytest.skip("needs root and containerd")
    made = OwnNetwork()
    try:
        yield made
    finally:
        made.close()


def test_pods_reach_each_other_and_keep_their_network(own: OwnNetwork) -> None:
    async def body(runtime: Runtime, _: Images) -> None:
        spec, other = own.sandbox("server"), own.sandbox("client")
        sandbox = await runtime.run_sandbox(spec)
        serve = own.shell("mkdir /w; echo hello > /w/index.html; httpd -f -p 8080 -h /w")
        server = await runtime.create_container(sandbox, spec, serve)
        await runtime.start_container(server)
        start = time.perf_counter()
        second = await runtime.run_sandbox(other)
        print(f"sandbox with its network: {(time.perf_counter() - start) * 1e3:.0f} ms")
        client = await runtime.create_container(second, other, own.shell("sleep 600 & wait"))
        await runtime.start_container(client)
        seen = (await runtime.observe(spec.uid))[spec.uid].sandbox
        assert seen is not None and seen.ips == ("10.244.7.2",)
        fetch = ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do wget -qO- http://10.244.7.2:8080/ && exit; done; exit 1"]
        assert await runtime.exec_sync(client, fetch, 20) == (0, b"hello\n", b"")

        own.kill_daemon()
        assert (await runtime.exec_sync(client, fetch, 20))[0] == 0  # without the agent running pods keep going
        with pytest.raises(Exception, match="the node agent does not answer"):
            await runtime.run_sandbox(own.sandbox("early"))
        own.network()
        assert (await runtime.exec_sync(client, fetch, 20))[0] == 0
        assert {h.container for h in Ipam(own.paths.ipam, "10.244.7.0/24").holdings()} == {sandbox, second}
        for made in (sandbox, second):
            await runtime.stop_sandbox(made)
            await runtime.remove_sandbox(made)
        assert Ipam(own.paths.ipam, "10.244.7.0/24").holdings() == []
    own.run(body)
    links = subprocess.run(["ip", "-n", own.netns, "-o", "link"], capture_output=True, text=True, check=True)
    assert " pel" not in links.stdout
