"""Resources of a pod as a whole: held by its group, seen by its containers, shared by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node.nodekubelet import Rig, run, sh
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
            above = Path("/sys/fs/cgroup", "" if groups.v2 else "memory", groups.folder(pod),
                         "memory.max" if groups.v2 else "memory.limit_in_bytes")
            assert above.read_text().strip() == str(96 * MI)  # noqa: ASYNC240 - a file of the kernel does not block
            await rig.remove("whole")
    run(host, body)
