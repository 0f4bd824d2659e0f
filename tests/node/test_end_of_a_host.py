"""Pods that end for others' sake, when the host goes down or runs short: the right ones, in their time, and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.admit import CRITICAL
from agent.kubelet.host.shutdown import MESSAGE, Shutdown
from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.eviction import Evictions
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.thresholds import Reading, parse
from controlplane.machinery.clock import SYSTEM
from netsetup.ledger import Ledger
from tests.node.nodekubelet import STAY, Rig, eventually, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node


def conditions(pod: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c.get("reason", "") for c in pod["status"]["conditions"]}


def test_critical_pods_end_after_the_others_and_none_outlives_its_time(host: Host, tmp_path: Path) -> None:
    def writes(name: str) -> dict[str, Any]:
        """It notes when it ends, and whether another's volume was still there when it was asked to."""
        look = "ls -d /pods/*/volumes/kubernetes.io~empty-dir/of-web >> /h/log; " if name == "dns" else ""
        return sh(f"trap '{look}sleep 1; echo {name} >> /h/log; exit 0' TERM; while :; do sleep 600 & wait $!; done",
                  volumeMounts=[{"name": "h", "mountPath": "/h"}, {"name": f"of-{name}", "mountPath": "/pods"}])

    async def body(rig: Rig) -> None:
        pods = {"hostPath": {"path": str(host.paths.kubelet / "pods"), "type": "DirectoryOrCreate"}}

        def where(**more: Any) -> dict[str, Any]:
            volumes = [{"name": "h", "hostPath": {"path": str(tmp_path)}},
                       *({"name": name, **source} for name, source in more.items())]
            return {"volumes": volumes, "terminationGracePeriodSeconds": 30}
        async with rig.kubelet() as kubelet:
            await rig.create("dns", writes("dns"), priority=CRITICAL, **where(**{"of-dns": pods}))
            await rig.create("web", writes("web"), priority=10, **where(**{"of-web": {"emptyDir": {}}}))
            await rig.create("deaf", sh("trap '' TERM; while :; do sleep 600; done"),
                             terminationGracePeriodSeconds=3600)
            for name in ("dns", "web", "deaf"):
                await rig.pod(name, ready)
            going: list[bool] = []
            keeping = Keeping(shutdown_by_priority=((0, 2.0), (10, 60.0), (CRITICAL, 60.0)))
            shutdown = Shutdown(keeping, kubelet.workers, lambda: going.append(True), SYSTEM,
                                Ledger(tmp_path / "ledger"))
            await shutdown.end()
            assert going and (tmp_path / "log").read_text().split() == ["web", "dns"]
            for name, code in (("dns", 0), ("web", 0), ("deaf", 137)):
                pod = await rig.pod(name, lambda p: p["status"]["phase"] == "Failed")
                assert (pod["status"]["reason"], pod["status"]["message"]) == ("Terminated", MESSAGE)
                assert conditions(pod)["DisruptionTarget"] == "TerminationByKubelet"
                assert state(pod)["state"]["terminated"]["exitCode"] == code
            rig.place = replace(rig.place, closing=shutdown.going)
            await rig.create("late", sh(STAY))
            late = await rig.pod("late", lambda p: p["status"]["phase"] == "Failed")
            assert late["status"]["reason"] == "NodeShutdown"
            await rig.remove("dns", "web", "deaf", "late")
    run(host, body)


def test_a_soft_threshold_leaves_a_pod_its_time_up_to_a_bound(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet() as kubelet:
            context, free = kubelet.context, {"memory.available": Reading(90, 100)}

            async def evicted(name: str, bound: float) -> int:
                """The exit code of the only pod, which goes for a soft threshold."""
                evictions = Evictions(
                    Keeping(parse("", "memory.available<20%", "memory.available=1s"), max_grace=bound), lambda: free,
                    kubelet.workers,
                    Accounting(context.node.root, context.node.log_folder, context.cgroups, rig.runtime.layers), None,
                    lambda pod, reason, message, notes=None: None, lambda: None, SYSTEM)
                await rig.pod(name, ready)
                free["memory.available"] = Reading(10, 100)
                await evictions.look()
                assert evictions.conditions == {"MemoryPressure"}
                assert ready(rig.api.objects["pods", "default", name])  # at first it is only told

                async def failed() -> bool:
                    await evictions.look()
                    return bool(rig.api.objects["pods", "default", name]["status"]["phase"] == "Failed")
                await eventually(failed, 60)
                pod = rig.api.objects["pods", "default", name]
                await rig.remove(name)
                return int(state(pod)["state"]["terminated"]["exitCode"])
            hour = {"terminationGracePeriodSeconds": 3600}
            await rig.create("polite", sh("trap 'sleep 2; exit 7' TERM; while :; do sleep 600 & wait $!; done"), **hour)
            assert await evicted("polite", 60.0) == 7  # a hard threshold leaves one second
            await rig.create("deaf", sh("trap '' TERM; while :; do sleep 600; done"), **hour)
            assert await evicted("deaf", 2.0) == 137  # not after an hour
    run(host, body)


def test_a_critical_pod_finds_room_on_a_full_node(host: Host) -> None:
    def asks(cpu: str, memory: str) -> dict[str, Any]:
        return {"requests": {"cpu": cpu, "memory": memory}}

    async def body(rig: Rig) -> None:
        rig.place = replace(rig.place, allocatable={"cpu": "1", "memory": "1Gi", "pods": "10"})
        async with rig.kubelet():
            slow = "trap 'sleep 1; exit 0' TERM; while :; do sleep 600 & wait $!; done"
            await rig.create("guaranteed", sh(slow, resources={"limits": {"cpu": "100m", "memory": "100Mi"}}),
                             terminationGracePeriodSeconds=30)
            await rig.create("burstable", sh(slow, resources=asks("100m", "100Mi")), terminationGracePeriodSeconds=30)
            await rig.create("best-effort", sh(STAY))
            for name in ("guaranteed", "burstable", "best-effort"):
                await rig.pod(name, ready)
            await rig.create("refused", sh(STAY, resources=asks("1", "1Gi")))
            refused = await rig.pod("refused", lambda p: p["status"]["phase"] == "Failed")
            assert refused["status"]["reason"] == "OutOfcpu"
            await rig.create("critical", sh(STAY, resources=asks("1", "1Gi")), priority=CRITICAL)
            began = state(await rig.pod("critical", ready))["state"]["running"]["startedAt"]
            for name in ("guaranteed", "burstable"):
                pod = await rig.pod(name, lambda p: p["status"]["phase"] == "Failed")
                assert (pod["status"]["reason"], pod["status"]["message"]) == (
                    "Preempting", "Preempted in order to admit critical pod")
                assert conditions(pod)["DisruptionTarget"] == "TerminationByKubelet"
                ended = state(pod)["state"]["terminated"]
                assert ended["exitCode"] == 0 and ended["finishedAt"] <= began  # it had its time, and before the other
            assert ready(rig.api.objects["pods", "default", "best-effort"])
            await rig.remove("guaranteed", "burstable", "best-effort", "refused", "critical")
    run(host, body)
