"""crun where mounts do not spread, as in most containers: with both versions of control groups it is called apart each
time. The other tests run it too, where mounts spread. runc is beside it, for pods whose RuntimeClass says so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.machinery.resources import named
from cri_proto.messages import cri
from tests.node.nodekubelet import STAY, Rig, ready, run, sh
from tests.node.rig import Host
from tests.node.test_isolation import test_identities_capabilities_and_system_calls  # noqa: F401
from tests.node.test_podlife import (  # noqa: F401
    test_how_a_container_ended_is_told,
    test_resources_change_under_a_running_container,
)
from tests.node.test_runtime import test_exits_execs_and_out_of_memory_are_told_apart  # noqa: F401

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with private mounts."""
    if os.geteuid() != 0 or shutil.which("crun") is None:
        pytest.skip("needs root and crun")
    made = Host(spreading=False)
    try:
        yield made
    finally:
        made.close()


async def program(rig: Rig, name: str) -> str:
    """The low-level runtime that made the pod's container, as containerd's shim was told."""
    uid = rig.api.objects["pods", "default", name]["metadata"]["uid"]
    box = (await rig.runtime.observe(uid))[uid].sandbox
    answer = await rig.images.connection.runtime.PodSandboxStatus(
        cri.PodSandboxStatusRequest(pod_sandbox_id=box.id, verbose=True), timeout=30)
    return str(json.loads(answer.info["info"])["runtimeOptions"].get("binary_name", ""))


def test_crun_runs_what_asks_for_no_other(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            for name in ("crun", "runc"):
                await rig.api.create(named("runtimeclasses.node.k8s.io"), {
                    "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
                    "handler": name})
            await rig.create("plain", sh(STAY))
            await rig.create("asked", sh(STAY), runtimeClassName="crun")
            await rig.create("other", sh(STAY), runtimeClassName="runc")
            for name in ("plain", "asked", "other"):
                await rig.pod(name, ready)
            told = {name: await program(rig, name) for name in ("plain", "asked", "other")}
            assert told == {"plain": told["asked"], "asked": told["asked"], "other": ""}
            assert Path(told["asked"]).name == "crun"
            await rig.remove("plain", "asked", "other")
    run(host, body)


def test_what_the_host_mounts_later_is_seen(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        host.call("mount", "-t", "tmpfs", "later", str(tmp_path))
        host.call("touch", str(tmp_path / "inside"))
        async with rig.kubelet():
            await rig.create("mounted", sh(STAY, volumeMounts=[{"name": "v", "mountPath": "/v"}]),
                             volumes=[{"name": "v", "hostPath": {"path": str(tmp_path)}}])
            await rig.pod("mounted", ready)
            assert await rig.inside("mounted", "ls /v") == "inside"
            await rig.remove("mounted")
        host.call("umount", str(tmp_path))
    run(host, body)
