"""What befalls a node from outside: a clock that is set, a full disk, a disk that hangs, a dead runtime, leftovers.

Each is survived, and told with its cause in an event of the pod or the node.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.host import nodestatus
from agent.kubelet.host.addresswatch import AddressWatch
from agent.kubelet.host.clockwatch import ClockWatch
from agent.kubelet.host.node import NODES, NodeAgent
from agent.kubelet.host.nodestatus import Host as Machine
from agent.kubelet.images.images import Images
from agent.kubelet.volumes import patience
from controlplane.client.informer import Informer
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.resources import named
from tests.node.nodekubelet import PODS, STAY, Rig, eventually, gone, holds, ready, run, sh, state
from tests.node.rig import Host
from tests.node.test_pressure import small_disk

pytestmark = pytest.mark.node
LIBC = ctypes.CDLL(None, use_errno=True)
FUSE = Path("/dev/fuse")


def told(rig: Rig, reason: str) -> str:
    """What all events of that reason say."""
    return "\n".join(o["message"] for (plural, _, _), o in rig.api.objects.items()
                     if plural == "events" and o["reason"] == reason)


class SetBack(Clock):
    """A clock that somebody sets back by `seconds`."""

    seconds = 0.0

    def now(self) -> float:
        return super().now() - self.seconds


def test_nobody_waits_for_a_time_before_the_clock_was_set(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            clock, said = SetBack(), list[str]()
            kubelet.context.clock = clock

            def jumped(text: str) -> None:
                said.append(text)
                kubelet.retry(crashes=True)
            watch = ClockWatch(jumped, clock)

            def pulls() -> int:
                return sum(o.get("count") or 1 for (plural, _, _), o in rig.api.objects.items()
                           if plural == "events" and o["reason"] == "Pulling")
            await rig.create("crash", sh("exit 3"))
            await rig.create("pull", {"image": "127.0.0.1:1/none:1"})
            await rig.pod("crash", lambda p: "CrashLoopBackOff" in str(p))
            await rig.pod("pull", lambda p: "ErrImagePull" in str(p))
            watch.look()
            assert not said
            clock.seconds = 86400.0
            before = pulls()
            watch.look()
            assert said == ["the node's clock was set back by 86400 seconds"]
            await rig.pod("crash", lambda p: state(p).get("restartCount", 0) >= 2)  # not in a day
            await eventually(lambda: holds(pulls() > before))
            await rig.remove("crash", "pull")
    run(host, body)


def test_what_a_pod_left_is_cleared_away_when_nobody_knows_it_any_more(host: Host) -> None:
    def mounts(uid: str) -> list[str]:
        assert host.holder is not None
        return [line for line in Path(f"/proc/{host.holder.pid}/mounts").read_text().splitlines() if uid in line]

    async def body(rig: Rig) -> None:
        await rig.api.create(named("secrets"), {"metadata": {"name": "s"}, "data": {"k": "dg=="}}, "default")
        async with rig.kubelet() as kubelet:
            await rig.create("left", sh(STAY, volumeMounts=[{"name": "m", "mountPath": "/m"},
                                                            {"name": "s", "mountPath": "/s"}]),
                             volumes=[{"name": "m", "emptyDir": {"medium": "Memory"}},
                                      {"name": "s", "secret": {"secretName": "s"}}])
            pod = await rig.pod("left", ready)
            uid, logs = pod["metadata"]["uid"], kubelet.context.node.log_folder(pod)
        folder = host.paths.kubelet / "pods" / uid
        assert len([line for line in mounts(uid) if str(folder) in line]) >= 2 and logs.exists()
        # The agent is away; the API forgets the pod, and somebody removes its sandbox behind our back.
        await rig.api.delete(PODS, "left", "default", grace=0)
        box = (await rig.runtime.observe(uid))[uid].sandbox
        await rig.runtime.stop_sandbox(box.id)
        await rig.runtime.remove_sandbox(box.id)
        assert folder.exists()
        async with rig.kubelet():
            await eventually(lambda: holds(not folder.exists() and not logs.exists()))
        assert not mounts(uid)
    run(host, body)


def test_a_name_that_is_reserved_is_freed(host: Host) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        spec, main = host.sandbox("named", host_network=True), host.shell("sleep 600")
        first = await runtime.run_sandbox(spec)
        await runtime.create_container(first, spec, main)
        again = await runtime.create_container(first, spec, main)  # the answer to the first was lost
        await runtime.start_container(again)
        pod = (await runtime.observe(spec.uid))[spec.uid]
        assert [(c.id, c.state) for c in pod.containers] == [(again, "running")]
        await runtime.stop_sandbox(first)
        second = await runtime.run_sandbox(spec)  # a dead one has the name
        pod = (await runtime.observe(spec.uid))[spec.uid]
        assert [(s.id, s.ready) for s in pod.sandboxes] == [(second, True)] and second != first
        await runtime.remove_sandbox(second)
        assert await gone(runtime, spec.uid)
    host.run(body)


def test_a_full_disk_is_named_and_pods_start_when_it_is_not(host: Host) -> None:
    async def body(rig: Rig) -> None:
        big = {"metadata": {"name": "big"}, "data": {"k": "x" * 100_000}}
        await rig.api.create(named("configmaps"), big, "default")
        with small_disk(rig.host.paths.kubelet):
            async with rig.kubelet():
                await rig.create("before", sh(STAY))
                await rig.pod("before", ready)
            async with rig.kubelet():
                ballast = rig.host.paths.kubelet / "ballast"
                with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)
                await rig.create("waits", sh(STAY, volumeMounts=[{"name": "c", "mountPath": "/c"}]),
                                 volumes=[{"name": "c", "configMap": {"name": "big"}}])
                await eventually(lambda: holds("No space left on device" in told(rig, "FailedMount")
                                               + told(rig, "FailedCreatePodSandBox")))
                ballast.unlink()
                await rig.pod("waits", ready)
                assert await rig.inside("waits", "wc -c < /c/k") == "100000"
                assert state(await rig.pod("before", ready))["restartCount"] == 0
                await rig.remove("before", "waits")
    run(host, body)


def immutable(flag: str, path: Path) -> bool:
    """Make that nobody may remove the file, or undo it; whether its file system could."""
    return subprocess.run(["chattr", flag, path], capture_output=True).returncode == 0


def test_a_volume_that_cannot_be_removed_says_why_and_the_pod_ends_when_it_can(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            await rig.create("sticky", sh("touch /e/kept; exec sleep 600", volumeMounts=[
                {"name": "e", "mountPath": "/e"}]), volumes=[{"name": "e", "emptyDir": {}}])
            pod = await rig.pod("sticky", ready)
            kept = kubelet.context.node.pod_folder(pod["metadata"]["uid"]) / "volumes/kubernetes.io~empty-dir/e/kept"
            await eventually(lambda: holds(kept.exists()))
            if not immutable("+i", kept):
                pytest.skip("this file system knows no immutable files")
            try:
                await rig.api.delete(PODS, "sticky", "default")
                await eventually(lambda: holds("Operation not permitted" in told(rig, "FailedUnMount")))
                assert not (await rig.runtime.observe()).get(pod["metadata"]["uid"])
                assert rig.api.objects["pods", "default", "sticky"]["metadata"]["deletionTimestamp"]
            finally:
                immutable("-i", kept)
            await rig.pod("sticky", lambda p: p is None)
            assert not kept.exists()
    run(host, body)


@contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """While it lasts, whoever looks at `folder` hears nothing, as where an NFS server is gone."""
    folder.mkdir()
    server = os.open(FUSE, os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if LIBC.mount(b"hung", str(folder).encode(), b"fuse.hung", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield
    finally:
        os.close(server)  # all who wait are told
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(not FUSE.exists(), reason="needs FUSE")
def test_a_file_system_that_hangs_holds_up_nobody_else(host: Host, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.within, "__kwdefaults__", {"seconds": 0.5})
    where = tmp_path / "gone"

    async def body(rig: Rig) -> None:
        with hanging(where):
            async with rig.kubelet():
                await rig.create("hung", sh(STAY, volumeMounts=[{"name": "h", "mountPath": "/h"}]),
                                 volumes=[{"name": "h", "hostPath": {"path": str(where), "type": "Directory"}}])
                why = f"{where} did not answer within 0.5 s: is the file system it lies on gone?"
                await eventually(lambda: holds(why in told(rig, "FailedMount")))
                await rig.create("well", sh(STAY))
                await rig.pod("well", ready)
                await rig.remove("hung", "well")  # neither does it hold up its own pod's end
    run(host, body)


def test_an_address_that_goes_makes_the_node_unreachable_until_it_is_back(host: Host) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        news = asyncio.Event()

        async def ip(*words: str) -> None:
            await asyncio.to_thread(host.call, "ip", *words)
        mine = ("192.0.2.9/24", "dev", "card")

        async def told(problem: str) -> None:
            async with asyncio.timeout(30):
                while watch.problem != problem:
                    news.clear()
                    await news.wait()
        await ip("link", "add", "card", "type", "veth", "peer", "name", "wire")
        await ip("address", "add", *mine)
        watch = AddressWatch(("192.0.2.9",), news.set, SYSTEM)
        task = asyncio.create_task(watch.run())
        await eventually(lambda: holds("192.0.2.9" in watch._had))
        try:
            await ip("address", "del", *mine)
            await told('node IP: "192.0.2.9" not found in the host\'s network interfaces')
            found = nodestatus.conditions(nodestatus.Health(unreachable=watch.problem), SYSTEM.timestamp(), {})
            assert (found[-1]["type"], found[-1]["status"], found[-1]["message"]) == ("Ready", "False", watch.problem)
            await ip("address", "add", *mine)
            await told("")
        finally:
            task.cancel()
            await ip("link", "del", "card")
    host.run(body)


def test_a_dead_runtime_makes_the_node_not_ready_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the break of its events: the next look by itself would be a day later."""
    monkeypatch.setattr("agent.kubelet.host.node.CHECK_SECONDS", 86400.0)

    async def body(rig: Rig) -> None:
        async def assigned(cidr: str) -> None:
            """No pods are run for it."""
        api: Any = rig.api
        nodes = Informer(api, NODES)
        node = NodeAgent(Machine("n1", ("10.0.0.1",), 2, 4 << 30, 100 << 30), api, rig.runtime, rig.images, SYSTEM,
                         nodes, assigned, "10.244.7.0/24")

        def found(seen: dict[str, Any] | None) -> dict[str, Any]:
            status = (seen or {}).get("status") or {}
            return next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {"status": "Unknown"})
        async with rig.kubelet() as kubelet:
            stands = asyncio.Event()
            kubelet.interrupted = lambda: (stands.set(), node.check())
            tasks = [asyncio.create_task(work) for work in (nodes.run(), node.run())]
            try:
                await stands.wait()
                await api.until(NODES, "n1", lambda n: found(n)["status"] == "True")
                await asyncio.to_thread(host.stop_containerd)
                try:
                    bad = found(await api.until(NODES, "n1", lambda n: found(n)["status"] == "False"))
                finally:
                    await asyncio.to_thread(host.start_containerd)
                assert bad["reason"] == "KubeletNotReady" and "connect" in bad["message"]
                assert bad["message"].startswith("container runtime is down: ")
                await api.until(NODES, "n1", lambda n: found(n)["status"] == "True")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    run(host, body)
