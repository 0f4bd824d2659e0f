"""Resources of a pod as a whole: held by its group, seen by its containers, shared by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.node.nodekubelet import PODS, Rig, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
LIMIT = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
MI = 1 << 20


def test_containers_share_what_the_pod_may_use(host: Host) -> None:
    async def body(rig: Rig) -> None:
        whole = {"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "96Mi"}}
        async with rig.kubelet() as kubelet:
            groups = kubelet.context.cgroups
            await rig.create("whole", sh(STAY), sh(STAY, name="own", resources={"limits": {"memory": "32Mi"}}),
                             sh("sleep 1; tail /dev/zero", name="greedy"), resources=whole)
            pod = await rig.pod("whole", lambda p: "OOMKilled" in str((p or {}).get("status")))
            killed = [s["name"] for s in pod["status"]["containerStatuses"] if "OOMKilled" in str(s)]
            assert killed == ["greedy"] and "/burstable/" in groups.folder(pod)
            assert await rig.inside("whole", LIMIT) == str(96 * MI)
            assert await rig.inside("whole", LIMIT, "own") == str(32 * MI)
            assert above(groups, pod) == str(96 * MI)
            await rig.remove("whole")
    run(host, body)


def above(groups: Any, pod: dict[str, Any]) -> str:
    """The memory limit of the pod's group."""
    return Path("/sys/fs/cgroup", "" if groups.v2 else "memory", groups.folder(pod),
                "memory.max" if groups.v2 else "memory.limit_in_bytes").read_text().strip()


def test_a_pod_grows_and_shrinks_as_a_whole(host: Host) -> None:
    def whole(memory: str) -> dict[str, Any]:
        return {"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": memory}}

    async def body(rig: Rig) -> None:
        async def resize(memory: str) -> Any:
            await rig.api.patch(PODS, "grows", {"spec": {"resources": whole(memory)}}, "default")
            return await rig.pod("grows", lambda p: ready(p) and p["status"]["resources"] == whole(memory)
                                 and "PodResize" not in str(p["status"]["conditions"]))

        async with rig.kubelet() as kubelet:
            groups = kubelet.context.cgroups
            await rig.create("grows", sh(STAY, env=[{"name": "MOST", "valueFrom": {"resourceFieldRef": {
                                 "resource": "limits.memory"}}}]),
                             sh(STAY, name="own", resources={"limits": {"memory": "32Mi"}}),
                             sh(STAY, name="again", resizePolicy=[
                                 {"resourceName": "memory", "restartPolicy": "RestartContainer"}]),
                             resources=whole("64Mi"))
            before = await rig.pod("grows", ready)
            assert before["status"]["allocatedResources"] == {"cpu": "100m", "memory": "16Mi"}
            assert above(groups, before) == await rig.inside("grows", LIMIT) == str(64 * MI)
            assert await rig.inside("grows", "echo $MOST") == str(64 * MI)
            after = await resize("128Mi")
            assert above(groups, after) == await rig.inside("grows", LIMIT) == str(128 * MI)
            assert await rig.inside("grows", LIMIT, "own") == str(32 * MI)
            assert {s["name"]: s["restartCount"] for s in after["status"]["containerStatuses"]} == {
                "c": 0, "own": 0, "again": 1}
            assert await rig.inside("grows", LIMIT, "again") == str(128 * MI)
        async with rig.kubelet() as kubelet:  # nothing of it is forgotten, and nothing done again
            after = await resize("48Mi")
            assert above(kubelet.context.cgroups, after) == await rig.inside("grows", LIMIT) == str(48 * MI)
            assert {s["name"]: s["restartCount"] for s in after["status"]["containerStatuses"]} == {
                "c": 0, "own": 0, "again": 2}
            await rig.remove("grows")
    run(host, body)
