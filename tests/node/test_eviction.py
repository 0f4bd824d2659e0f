"""A node that runs short, with real pods on a real containerd: the right one goes, and what it held is free again."""

from __future__ import annotations

import pytest

from agent.kubelet.pressure.accounting import Accounting
from agent.kubelet.pressure.eviction import Evictions
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.thresholds import Reading, parse
from controlplane.machinery.clock import SYSTEM
from tests.node.nodekubelet import Rig, eventually, holds, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
MI = 1 << 20


def test_the_pod_that_uses_most_goes_and_its_disk_is_free(host: Host) -> None:
    async def body(rig: Rig) -> None:
        free, told = {"nodefs.available": Reading(90, 100), "memory.available": Reading(90, 100)}, []

        async def reclaim(resource: str) -> None:
            told.append(resource)

        async with rig.kubelet() as kubelet:
            context = kubelet.context
            evictions = Evictions(
                Keeping(parse("nodefs.available<10%,memory.available<10%")), lambda: free, kubelet.workers,
                Accounting(context.node.root, context.node.log_folder, context.cgroups, rig.runtime.layers), reclaim,
                lambda pod, reason, message, notes=None: told.append(reason), lambda: None, SYSTEM)
            volume = {"volumeMounts": [{"name": "e", "mountPath": "/e"}]}
            await rig.create("small", sh("head -c 100000 /dev/zero > /e/x; sleep 600", **volume),
                             volumes=[{"name": "e", "emptyDir": {}}])
            await rig.create("large", sh("head -c 5000000 /dev/zero > /e/x; touch /e/done; sleep 600", **volume),
                             volumes=[{"name": "e", "emptyDir": {}}])
            await rig.create("hungry", sh("x=$(head -c 30000000 /dev/zero | tr '\\0' x); touch /tmp/done; sleep 600; "
                                          "echo $x"))
            large = await rig.pod("large", ready)
            for name in ("small", "hungry"):
                await rig.pod(name, ready)
            files = context.node.pod_folder(large["metadata"]["uid"]) / "volumes"
            await eventually(lambda: holds(bool(list(files.glob("*/e/done")))))
            await rig.inside("hungry", "while [ ! -e /tmp/done ]; do sleep 0.05; done")
            await evictions.look()
            assert told == [] and not evictions.conditions
            free["nodefs.available"] = Reading(5, 100)
            await evictions.look()
            ended = await rig.pod("large", lambda p: bool(p) and p["status"]["phase"] == "Failed")
            assert ended["status"]["reason"] == "Evicted" and "DisruptionTarget" in {
                c["type"] for c in ended["status"]["conditions"]}
            assert told == ["EvictionThresholdMet", "ephemeral-storage", "Evicted"]
            assert evictions.conditions == {"DiskPressure"}
            await eventually(lambda: holds(not files.exists()))  # its room is free before it is deleted
            free.update({"nodefs.available": Reading(90, 100), "memory.available": Reading(5, 100)})
            await evictions.look()
            ended = await rig.pod("hungry", lambda p: bool(p) and p["status"]["phase"] == "Failed")
            assert ended["status"]["message"].startswith("The node was low on resource: memory.")
            assert "Container c was using" in ended["status"]["message"]
            assert ready(rig.api.objects["pods", "default", "small"])
            await rig.remove("small", "large", "hungry")
    run(host, body)
