"""crun beside runc: used when it works on the host, by every pod whose RuntimeClass does not say otherwise."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kubelet.cri import trial
from controlplane.machinery.resources import named
from cri_proto.messages import cri
from tests.node.nodekubelet import Rig, ready, run, sh
from tests.node.rig import Host
from tests.node.test_isolation import test_identities_capabilities_and_system_calls  # noqa: F401
from tests.node.test_podlife import (  # noqa: F401
    test_how_a_container_ended_is_told,
    test_resources_change_under_a_running_container,
)
from tests.node.test_runtime import test_exits_execs_and_out_of_memory_are_told_apart  # noqa: F401

pytestmark = pytest.mark.node
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host on which crun works."""
    if os.geteuid() != 0 or shutil.which("crun") is None:
        pytest.skip("needs root and crun")
    made = Host(hybrid=False)
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
            crun = shutil.which("crun")
            assert told == {"plain": crun, "asked": crun, "other": ""}
            await rig.remove("plain", "asked", "other")
    run(host, body)


def test_a_runtime_that_does_not_work_is_not_used(host: Host, tmp_path: Path) -> None:
    faults: list[str] = []

    async def tried() -> None:
        broken = tmp_path / "crun"
        broken.write_text("#!/bin/sh\necho it has no idea >&2\nexit 1\n")
        broken.chmod(0o755)
        faults.extend(trial.fault(program, systemd=False) for program in (str(shutil.which("crun")), str(broken)))
    host.inside(tried)
    assert faults == ["", "it has no idea"]
    assert not list(Path("/tmp").glob("pelamis-trial-*")) and not list(Path("/sys/fs/cgroup").glob("*/pelamis-trial-*"))
