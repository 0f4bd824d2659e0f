"""CPUs of their own, seen from inside the containers: the pool shrinks, a restart keeps, and an end gives back."""

from __future__ import annotations

import pytest

from agent.kubelet.compute.cpumanager import CpuManager, listed, topology
from controlplane.machinery.clock import SYSTEM
from tests.node.nodekubelet import Rig, eventually, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
ALLOWED = "sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/1/status"


def test_whole_cpus_are_given_alone_and_given_back(host: Host) -> None:
    cores = topology()
    if len(cores) < 2:
        pytest.skip("needs two CPUs")
    everything, reserved = sorted(cores), frozenset(sorted(cores)[:-1])

    async def body(rig: Rig) -> None:
        resources = {"limits": {"cpu": "1", "memory": "32Mi"}}

        async def allowed(name: str) -> str:
            return await rig.inside(name, ALLOWED)

        for restarted in (False, True):
            async with rig.kubelet() as kubelet:
                context = kubelet.context
                cpus = context.cpus = CpuManager(context.node.root, cores, reserved, SYSTEM)
                context.cgroups.unbounded = cpus.exclusive

                async def follows(name: str, wanted: list[int], kubelet=kubelet, cpus=cpus) -> bool:
                    cpus._release(kubelet.alive)
                    await cpus.reconcile(kubelet.seen(), rig.runtime.update_container)
                    return await allowed(name) == listed(wanted)
                if not restarted:
                    await rig.create("shares", sh(STAY))
                    await rig.pod("shares", ready)
                    assert await allowed("shares") == listed(everything)
                    await rig.create("alone", sh(STAY, resources=resources))
                    await rig.pod("alone", ready)
                    assert await allowed("alone") == str(everything[-1])
                    assert await rig.inside("alone", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null "
                                                     "|| cut -d' ' -f1 /sys/fs/cgroup/cpu.max") in ("-1", "max")
                    await eventually(lambda follows=follows: follows("shares", everything[:-1]))
                    continue
                assert await allowed("alone") == str(everything[-1]) and cpus.exclusive(
                    rig.api.objects["pods", "default", "alone"]["metadata"]["uid"])
                await rig.create("late", sh(STAY, resources=resources))
                late = await rig.pod("late", lambda p: bool(p) and p["status"]["phase"] == "Failed")
                assert late["status"]["reason"] == "UnexpectedAdmissionError"
                assert "requested=1, available=0" in late["status"]["message"]
                await rig.remove("alone")
                await eventually(lambda follows=follows: follows("shares", everything))
                await rig.remove("shares", "late")
    run(host, body)
