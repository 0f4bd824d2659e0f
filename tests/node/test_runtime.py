"""Sandboxes and containers in a real containerd: their life, their events, and what survives its restart."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agent.kubelet.cri.runtime import Runtime, TimedOut
from agent.kubelet.images.images import Images
from agent.kubelet.model import LinuxResources, RuntimeEvent, Security
from tests.node.rig import Host, processes_of

pytestmark = pytest.mark.node
PATIENCE = 30.0  # a loaded machine; every wait ends with its event


class Events:
    """Collects a runtime's events so that a test can wait for one."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()

    async def __aenter__(self) -> Events:
        self._task = asyncio.create_task(self._collect())
        await self.wait("relist")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _collect(self) -> None:
        async for event in self._runtime.events():
            self._queue.put_nowait(event)

    async def wait(self, kind: str, container_id: str = "") -> RuntimeEvent:
        async with asyncio.timeout(PATIENCE):
            while True:
                event = await self._queue.get()
                if event.kind == kind and event.container_id == container_id:
                    return event


def test_a_container_lives_and_dies(host: Host) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        spec = host.sandbox("life")
        async with Events(runtime) as events:
            sandbox = await runtime.run_sandbox(spec)
            assert await runtime.run_sandbox(spec) == sandbox  # the answer may have been lost: asking again is safe
            main = host.shell("echo hello; hostname; sleep 600 & wait", env=(("A", "b"),), hash="h1",
                              security=Security(seccomp="RuntimeDefault"))
            container = await runtime.create_container(sandbox, spec, main)
            await runtime.start_container(container)
            pod = (await runtime.observe(spec.uid))[spec.uid]
            assert pod.sandbox is not None and pod.sandbox.ready and pod.sandbox.ips[0].startswith("10.244.7.")
            seen = pod.container("main")
            assert seen is not None and (seen.state, seen.hash, seen.id) == ("running", "h1", container)
            assert await runtime.exec_sync(container, ["sh", "-c", "echo $A; exit 3"], 5) == (3, b"b\n", b"")
            assert Path(seen.log_path) == Path(spec.log_directory, "main/0.log")

            secured = "grep '^Seccomp:' /proc/1/status; echo 1 > /proc/sys/vm/swappiness; ls /sys/firmware | wc -l"
            _, out, err = await runtime.exec_sync(container, ["sh", "-c", secured], 5)
            assert b"Read-only" in err and out.split() == [b"Seccomp:", b"2", b"0"]

            stopping = asyncio.create_task(runtime.stop_container(container, 1))
            exited = await events.wait("exited", container)
            # The observation made at the very moment of the event must already know of the exit.
            seen = (await runtime.observe(spec.uid))[spec.uid].container("main")
            assert seen is not None and (seen.state, seen.exit_code) == ("exited", exited.exit_code)
            assert exited.exit_code in (137, 143) and seen.finished_at > seen.started_at > 0
            await stopping
        for _ in range(2):  # removing what is gone is no error
            await runtime.stop_container(container, 0)
            await runtime.remove_container(container)
            await runtime.stop_sandbox(sandbox)
            await runtime.remove_sandbox(sandbox)
        assert await runtime.observe(spec.uid) == {}
        assert "hello" in Path(spec.log_directory, "main/0.log").read_text()  # noqa: ASYNC240
    host.run(body)


def test_exits_execs_and_out_of_memory_are_told_apart(host: Host) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        spec = host.sandbox("ends", host_network=True)
        sandbox = await runtime.run_sandbox(spec)
        async with Events(runtime) as events:
            failing = await runtime.create_container(sandbox, spec, host.shell("exit 7", "failing"))
            hungry = await runtime.create_container(sandbox, spec, host.shell(
                "x=y; while :; do x=$x$x; done", "hungry", resources=LinuxResources(memory_limit=32 << 20)))
            calm = await runtime.create_container(sandbox, spec, host.shell("sleep 600", "calm"))
            await runtime.start_container(calm)
            assert (await runtime.exec_sync(calm, ["false"], 5))[0] == 1  # its exit must not look like the container's
            with pytest.raises(TimedOut):
                await runtime.exec_sync(calm, ["sleep", "60"], 1)
            await runtime.start_container(failing)
            assert (await events.wait("exited", failing)).exit_code == 7
            await runtime.start_container(hungry)
            assert (await events.wait("exited", hungry)).exit_code == 137
            pod = (await runtime.observe())[spec.uid]
            reasons = {c.name: (c.state, c.reason) for c in pod.containers}
            assert reasons == {"failing": ("exited", "Error"), "hungry": ("exited", "OOMKilled"),
                               "calm": ("running", "")}
            assert pod.sandbox is not None and pod.sandbox.host_network and pod.sandbox.ips == ()
        await runtime.remove_sandbox(sandbox)
    host.run(body)


def test_a_pod_whose_shim_dies_is_removed_all_the_same(host: Host) -> None:
    def shim_of(sandbox: str) -> int:
        assert host.holder is not None
        for pid in processes_of(os.readlink(f"/proc/{host.holder.pid}/ns/net")):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"containerd-shim-runc-v2") and sandbox.encode() in words:
                return pid
        raise AssertionError(f"no shim of {sandbox}")

    async def body(runtime: Runtime, images: Images) -> None:
        for stopping in (False, True) * 3:  # what a call meets depends on how far the runtime is with noticing
            spec = host.sandbox("shimless", host_network=True)
            sandbox = await runtime.run_sandbox(spec)
            container = await runtime.create_container(sandbox, spec, host.shell("sleep 600"))
            await runtime.start_container(container)
            os.kill(await asyncio.to_thread(shim_of, sandbox), signal.SIGKILL)
            if stopping:
                await runtime.stop_container(container, 0)
                await runtime.stop_sandbox(sandbox)
            await runtime.remove_sandbox(sandbox)
            assert spec.uid not in await runtime.observe()
    host.run(body)


def test_containers_and_events_survive_a_restart_of_containerd(host: Host) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        spec = host.sandbox("steady", host_network=True)
        sandbox = await runtime.run_sandbox(spec)
        container = await runtime.create_container(sandbox, spec, host.shell("while :; do date; sleep 1; done"))
        await runtime.start_container(container)
        before = (await runtime.observe(spec.uid))[spec.uid].container("main")
        async with Events(runtime) as events:
            await asyncio.to_thread(host.stop_containerd, signal.SIGKILL)
            await asyncio.to_thread(host.start_containerd)
            await events.wait("relist")
            after = (await runtime.observe(spec.uid))[spec.uid].container("main")
            assert before is not None and after is not None
            assert (after.id, after.state, after.started_at) == (before.id, "running", before.started_at)
            await runtime.stop_container(container, 0)
            assert (await events.wait("exited", container)).exit_code == 137
        await runtime.remove_sandbox(sandbox)
    host.run(body)
