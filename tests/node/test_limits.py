"""What a pod may take of the node, read from the kernel: its class, control groups, time, memory and local storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.compute.cgroups import MOUNT, Cgroups
from agent.kubelet.compute.slices import v2_weight
from agent.kubelet.cri.containerd import may_lower_oom_score, own_status
from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.eviction import Evictions
from agent.kubelet.pressure.keeping import Keeping
from controlplane.machinery.clock import SYSTEM
from tests.node.nodekubelet import STAY, Rig, eventually, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
MI = 1 << 20
OWN = "cd /sys/fs/cgroup; cat {v2} 2>/dev/null || cat {v1}"  # a container's own file, on either hierarchy


def sized(cpu: str, memory: str) -> dict[str, Any]:
    return {"resources": {"limits": {"cpu": cpu, "memory": memory}}}


class Groups:
    """Control groups as the kernel has them, whichever version it is."""

    def __init__(self, groups: Cgroups) -> None:
        self._groups = groups

    def read(self, folder: str, controller: str, v1: str, v2: str) -> str:
        path = MOUNT / folder / v2 if self._groups.v2 else MOUNT / controller / folder / v1
        return path.read_text().split()[0]

    def limits(self, folder: str) -> tuple[str, str, str]:
        """Microseconds in 100 ms, bytes, processes."""
        return (self.read(folder, "cpu", "cpu.cfs_quota_us", "cpu.max"),
                self.read(folder, "memory", "memory.limit_in_bytes", "memory.max"),
                self.read(folder, "pids", "pids.max", "pids.max"))

    def weighs(self, folder: str, shares: int) -> bool:
        weight = int(self.read(folder, "cpu", "cpu.shares", "cpu.weight"))
        return weight == (v2_weight(shares) if self._groups.v2 else shares)

    def processes(self, folder: str) -> list[str]:
        """What runs in the group."""
        top = MOUNT if self._groups.v2 else MOUNT / "memory"
        return [Path(f"/proc/{pid}/cmdline").read_text() for pid in (top / folder / "cgroup.procs").read_text().split()]


def test_each_class_has_its_place_its_weight_and_its_score(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            groups, seen = kubelet.context.cgroups, Groups(kubelet.context.cgroups)
            await groups.hold(1500, 512 * MI, 5000)
            await groups.weigh(100)
            await rig.create("guaranteed", sh(STAY, **sized("500m", "64Mi")))
            await rig.create("burstable", sh(STAY, resources={"requests": {"cpu": "100m", "memory": "256Mi"}}))
            await rig.create("besteffort", sh(STAY))
            # Where the runtime may give no less, it gives its own, or its shim's.
            least = ("-997",) if may_lower_oom_score(own_status()) else ("0", "1")
            places = {"guaranteed": ("", 512, least), "burstable": ("/burstable", 102, ("750",)),
                      "besteffort": ("/besteffort", 2, ("1000",))}
            for name, (place, shares, scores) in places.items():
                pod = await rig.pod(name, ready)
                assert pod["status"]["qosClass"].lower() == name
                folder = groups.folder(pod)
                assert folder == f"{groups.top}{place}/pod{pod['metadata']['uid']}" and seen.weighs(folder, shares)
                assert await rig.inside(name, "cat /proc/1/oom_score_adj") in scores
                id = state(pod)["containerID"].rpartition("/")[2]
                assert any("sleep 600" in line for line in seen.processes(groups.folder(pod, id)))
            assert seen.limits(groups.top)[1:] == (str(512 * MI), "5000") and seen.weighs(groups.top, 1536)
            assert seen.weighs(f"{groups.top}/burstable", 102) and seen.weighs(f"{groups.top}/besteffort", 2)
            await rig.remove(*places)
    run(host, body)


def test_a_pod_is_held_to_its_worst_moment_and_its_containers_to_their_own(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            groups, seen = kubelet.context.cgroups, Groups(kubelet.context.cgroups)
            groups.pids = 100
            init = [{"name": "side", "image": "busybox:1", "restartPolicy": "Always", **sh(STAY),
                     **sized("100m", "16Mi")},
                    {"name": "init", "image": "busybox:1", **sh("true"), **sized("1", "64Mi")}]
            await rig.create("sums", sh(STAY, **sized("500m", "64Mi")), sh(STAY, name="d", **sized("250m", "32Mi")),
                             initContainers=init, overhead={"cpu": "250m", "memory": "32Mi"})
            await rig.create("open", sh(STAY, **sized("500m", "64Mi")), sh(STAY, name="free"))
            pods = {name: await rig.pod(name, ready) for name in ("sums", "open")}
            # 1 CPU of the init container beside the sidecar is more than 850m of all that stay; memory is the sum.
            assert seen.limits(groups.folder(pods["sums"])) == ("135000", str(144 * MI), "100")
            assert seen.weighs(groups.folder(pods["sums"]), 1382)
            assert pods["sums"]["status"]["resources"] == {kind: {"cpu": "1350m", "memory": "144Mi"}
                                                           for kind in ("requests", "limits")}
            assert pods["sums"]["status"]["allocatedResources"] == {"cpu": "1350m", "memory": "144Mi"}
            assert seen.limits(groups.folder(pods["open"]))[0] in ("-1", "max")
            assert pods["open"]["status"]["resources"] == {"requests": {"cpu": "500m", "memory": "64Mi"}}
            for name, quota, memory in (("c", "50000", 64), ("d", "25000", 32), ("side", "10000", 16)):
                assert (await rig.inside("sums", OWN.format(v2="cpu.max", v1="cpu/cpu.cfs_quota_us"),
                                         name)).split()[0] == quota
                assert await rig.inside("sums", OWN.format(v2="memory.max", v1="memory/memory.limit_in_bytes"),
                                        name) == str(memory * MI)
            await rig.remove(*pods)
            assert not any((MOUNT / top / groups.folder(pod)).exists() for pod in pods.values()
                           for top in ("", "cpu", "memory", "pids"))
    run(host, body)


def test_time_is_held_back_and_who_is_out_of_memory_begins_again_alone(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("busy", sh("while :; do :; done", **sized("50m", "16Mi")))
            await rig.create("greedy", sh("[ -e /e/was ] && exec sleep 600; touch /e/was; tail /dev/zero",
                                          volumeMounts=[{"name": "e", "mountPath": "/e"}], **sized("1", "16Mi")),
                             sh(STAY, name="calm"), volumes=[{"name": "e", "emptyDir": {}}])
            before = await rig.pod("greedy", lambda p: "running" in state(p, "calm").get("state", {}))
            pod = await rig.pod("greedy", lambda p: ready(p) and state(p)["restartCount"] == 1)
            last = state(pod)["lastState"]["terminated"]
            assert (last["reason"], last["exitCode"]) == ("OOMKilled", 137)
            assert state(pod, "calm")["containerID"] == state(before, "calm")["containerID"]
            await rig.pod("busy", ready)

            async def throttled() -> bool:
                told = dict(line.split() for line in (await rig.inside("busy", OWN.format(
                    v2="cpu.stat", v1="cpu/cpu.stat"))).splitlines())
                return int(told["nr_throttled"]) > 0
            await eventually(throttled, 60)
            await rig.remove("busy", "greedy")
    run(host, body)


def test_who_takes_more_local_storage_than_it_may_goes_and_no_one_else(host: Host) -> None:
    def stores(script: str, limit: str = "") -> dict[str, Any]:
        return sh(f"{script}; {STAY}", volumeMounts=[{"name": "e", "mountPath": "/e"}],
                  resources={"limits": {"ephemeral-storage": limit}} if limit else {})

    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            context = kubelet.context
            told: list[str] = []
            accounting = Accounting(context.node.root, context.node.log_folder, context.cgroups, rig.runtime.layers)
            evictions = Evictions(Keeping(evictions=()), dict, kubelet.workers, accounting, None,
                                  lambda pod, reason, message, notes=None: told.append(reason), lambda: None, SYSTEM)
            write = f"head -c {3 * MI} /dev/zero"
            wanted = {
                "volume": (stores(f"{write} > /e/x"), "1Mi", 'Usage of EmptyDir volume "e" exceeds the limit "1Mi". '),
                "layer": (stores(f"{write} > /x", "2Mi"), "",
                          "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
                "logs": (stores(f"{write} | tr '\\0' '\\n'", "2Mi"), "",
                         "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
                "total": (stores(f"{write} > /e/x", "2Mi"), "",
                          "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ")}
            for name, (container, size, _) in wanted.items():
                await rig.create(name, container, volumes=[{"name": "e", "emptyDir": {"sizeLimit": size} if size
                                                            else {}}])
            await rig.create("one", stores(f"{write} > /x", "2Mi"), stores(":", "20Mi") | {"name": "d"},
                             volumes=[{"name": "e", "emptyDir": {}}])
            await rig.create("within", stores(f"{write} > /x; {write} > /e/x", "20Mi"), priority=5,
                             volumes=[{"name": "e", "emptyDir": {"sizeLimit": "5Mi"}}])
            await rig.create("critical", stores(f"{write} > /e/x"), priority=2_000_000_000,
                             volumes=[{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}])
            for name in ("within", "critical"):
                await rig.pod(name, ready)

            def phase(name: str) -> str:
                return str(rig.api.objects["pods", "default", name]["status"]["phase"])

            async def judged() -> bool:
                await evictions.look()
                return {phase(name) for name in (*wanted, "one")} == {"Failed"}
            await eventually(judged, 90)
            reasons = {name: why for name, (_, _, why) in wanted.items()}
            reasons["one"] = 'Container c exceeded its local ephemeral storage limit "2Mi". '
            for name, why in reasons.items():
                status = rig.api.objects["pods", "default", name]["status"]
                assert (status["reason"], status["message"]) == ("Evicted", why)
                assert "DisruptionTarget" not in {c["type"] for c in status["conditions"]}  # its own fault
            assert told == ["Evicted"] * len(reasons) and {phase("within"), phase("critical")} == {"Running"}
            kept = [(pod, seen) for pod, seen in kubelet.seen() if pod["metadata"]["name"] == "within"]

            async def counted() -> bool:
                (use,) = await accounting.disk(kept)
                return use.volumes["e"] >= 3 * MI and use.containers["c"] >= 3 * MI and 6 * MI <= use.disk < 12 * MI
            await eventually(counted)
            await rig.remove(*reasons, "within", "critical")
    run(host, body)
