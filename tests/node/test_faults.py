"""Under churn, kubelet, containerd, shims and pause processes are killed at random: no container is lost or doubled.

Runs for PELAMIS_FAULT_SECONDS (45), and for five minutes in the nightly tier; PELAMIS_FAULT_SEED repeats a run, which
prints its seed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.cri.runtime import CallError
from controlplane.machinery.errors import NotFound
from tests.node.nodekubelet import PODS, Rig, run, sh
from tests.node.rig import Host, processes_of

pytestmark = pytest.mark.node
SECONDS = float(os.environ.get("PELAMIS_FAULT_SECONDS", "45"))
SEED = int(os.environ.get("PELAMIS_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
PODS_AT_ONCE = 6
SETTLE_SECONDS = 150  # crash back-offs of half a minute included
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"


def named_like(host: Host, words: tuple[bytes, ...]) -> list[int]:
    """Processes of this test host whose command line begins with one of `words`."""
    assert host.holder is not None
    found = []
    for pid in processes_of(os.readlink(f"/proc/{host.holder.pid}/ns/net")):
        try:
            program = os.path.basename(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
        except OSError:
            continue
        if program in words:
            found.append(pid)
    return found


class Chaos:
    """Makes and deletes pods, and kills; `dice` decides what and when."""

    def __init__(self, host: Host, rig: Rig, seconds: float) -> None:
        self.host, self.rig, self.seconds, self.dice = host, rig, seconds, random.Random(SEED)
        self.made, self.done = 0, Counter[str]()
        self.doubled: list[str] = []
        self.restart: asyncio.Future[None] | None = None

    async def churn(self) -> None:
        while True:
            alive = [n for (plural, _, n), p in self.rig.api.objects.items()
                     if plural == "pods" and not p["metadata"].get("deletionTimestamp")]
            if len(alive) < PODS_AT_ONCE:
                self.made += 1
                await self.rig.create(f"p{self.made}", sh(STAY), sh(STAY, name="d"),
                                      initContainers=[{"name": "i", "image": "busybox:1", "command": ["true"]}])
            else:
                try:
                    await self.rig.api.delete(PODS, self.dice.choice(alive), "default")
                except NotFound:
                    pass
            await asyncio.sleep(self.dice.uniform(0.1, 0.8))

    async def kill(self) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0.5, 2.0))
            what = self.dice.choice(("shim", "pause", "containerd", "main"))
            self.done[what] += 1
            if what == "containerd":
                self.restart = asyncio.get_running_loop().run_in_executor(None, self.restart_containerd,
                                                                          self.dice.uniform(0.0, 1.0))
                await asyncio.shield(self.restart)
                continue
            words = {"shim": (b"containerd-shim-runc-v2",), "pause": (b"pause",), "main": (b"sh",)}[what]
            pids = await asyncio.to_thread(named_like, self.host, words)
            for pid in self.dice.sample(pids, min(1, len(pids))):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def restart_containerd(self, away: float) -> None:
        self.host.stop_containerd(signal.SIGKILL)
        time.sleep(away)
        self.host.start_containerd()

    async def watch(self) -> None:
        """No name of a pod ever runs twice."""
        while True:
            try:
                self.check(await self.rig.runtime.observe())
            except CallError:
                pass  # containerd is away just now
            await asyncio.sleep(0.25)

    def check(self, seen: dict[str, Any]) -> None:
        for pod in seen.values():
            running = Counter(c.name for c in pod.containers if c.state == "running")
            self.doubled += [f"{pod.name}/{name}" for name, count in running.items() if count > 1]

    async def live(self) -> None:
        """Kubelets, one after the other, while all else goes on."""
        tasks = [asyncio.create_task(t()) for t in (self.churn, self.kill, self.watch)]
        try:
            end = asyncio.get_running_loop().time() + self.seconds
            while (left := end - asyncio.get_running_loop().time()) > 0:
                async with self.rig.kubelet():
                    self.done["kubelet"] += 1
                    await asyncio.wait(tasks, timeout=min(left, self.dice.uniform(3, 12)))
                assert not any(t.done() for t in tasks), [t for t in tasks if t.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.restart is not None:
                await self.restart  # the end may not leave the host without its runtime


def settled(pods: list[dict[str, Any]], seen: dict[str, Any]) -> str:
    """What the API and the runtime do not agree on yet; "" when everything runs as wished and is told as it is."""
    strangers = set(seen) - {p["metadata"]["uid"] for p in pods}
    if strangers:
        return f"pods nobody asked for: {[seen[u].name for u in strangers]}"
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        if pod["metadata"].get("deletionTimestamp"):
            return f"{name} is still ending"
        running = {c.name: c.id for c in seen[pod["metadata"]["uid"]].containers if c.state == "running"} \
            if pod["metadata"]["uid"] in seen else {}
        told = {s["name"]: s["containerID"].rpartition("/")[2] for s in status.get("containerStatuses") or ()
                if "running" in s["state"]}
        if set(running) != {"c", "d"} or told != running or status.get("phase") != "Running":
            return f"{name}: running {running}, told {told}, phase {status.get('phase')}"
    return ""


def assault(host: Host, seconds: float) -> None:
    """Live with chaos for so long, then see that all is as it was asked for."""
    print(f"PELAMIS_FAULT_SEED={SEED}")

    async def body(rig: Rig) -> None:
        chaos = Chaos(host, rig, seconds)
        await chaos.live()
        async with rig.kubelet():
            problem = "never looked"
            try:
                async with asyncio.timeout(SETTLE_SECONDS):
                    while problem:
                        await asyncio.sleep(0.1)
                        try:
                            seen = await rig.runtime.observe()
                        except CallError as error:  # the last kill was containerd's, and it is only just back
                            problem = str(error)
                            continue
                        chaos.check(seen)
                        pods = [p for (plural, _, _), p in rig.api.objects.items() if plural == "pods"]
                        problem = settled(pods, seen)
            except TimeoutError:
                raise AssertionError(f"seed {SEED}, {dict(chaos.done)}: {problem}") from None
            assert not chaos.doubled, (SEED, chaos.doubled)
            assert chaos.made > PODS_AT_ONCE and len(chaos.done) == 5, chaos.done
            await rig.remove(*(p["metadata"]["name"] for p in pods))
            assert not await rig.runtime.observe()
    run(host, body)


def test_nothing_is_lost_or_doubled_whatever_is_killed(host: Host) -> None:
    assault(host, SECONDS)
