"""On containerd 2.x, whatever the host's own containerd is: the tests that rest on what its releases do differently.

The whole tier runs on every release by night. Here it is the dialect of the configuration, pulls and mirrors, events
and exits, image volumes, CDI devices, streams, and a restart.

This module and the one of crun come after the others: gRPC's threads stay in the network of the first host they saw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kubelet.compute.userns import LENGTH
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import named
from tests.node.nodekubelet import Rig, ready, run, sh
from tests.node.rig import Host
from tests.node.test_devices_of_claims import test_devices_of_a_claim_are_prepared_and_given_back  # noqa: F401
from tests.node.test_images import (  # noqa: F401
    test_a_mirror_stands_in_for_a_registry,
    test_pulling_from_a_registry_and_its_failures,
)
from tests.node.test_podextras import (  # noqa: F401
    test_a_runtime_class_chooses_the_handler,
    test_an_image_is_mounted_as_a_volume_and_goes_with_its_pod,
)
from tests.node.test_podlife import test_resources_change_under_a_running_container  # noqa: F401
from tests.node.test_runtime import (  # noqa: F401
    test_a_container_lives_and_dies,
    test_containers_and_events_survive_a_restart_of_containerd,
    test_exits_execs_and_out_of_memory_are_told_apart,
)
from tests.node.test_serve import test_exec_by_websocket_tells_output_and_exit_code  # noqa: F401

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with containerd 2.x."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        made = Host(version="2")
    except Finding as error:
        pytest.skip(f"containerd 2.x is not to be had: {error}")
    try:
        yield made
    finally:
        made.close()


def test_pods_have_users_of_their_own(host: Host) -> None:
    stay = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
    mounts = [{"name": "e", "mountPath": "/e"}, {"name": "c", "mountPath": "/c"}]
    volumes = [{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "words"}}]

    def files(rig: Rig, name: str) -> Path:
        uid = rig.api.objects["pods", "default", name]["metadata"]["uid"]
        return host.paths.kubelet / "pods" / uid

    async def body(rig: Rig) -> None:
        await rig.api.create(named("configmaps"), {"metadata": {"name": "words"}, "data": {"k": "v"}}, "default")
        async with rig.kubelet():
            for name in ("one", "two"):
                await rig.create(name, sh(stay, volumeMounts=mounts), volumes=volumes, hostUsers=False)
            await rig.create("plain", sh(stay))
            for name in ("one", "two", "plain"):
                await rig.pod(name, ready)
            maps = [await rig.inside(name, "cat /proc/1/uid_map") for name in ("one", "two", "plain")]
            roots = [int(text.split()[1]) for text in maps]
            assert roots[2] == 0 and set(roots[:2]) == {LENGTH, 2 * LENGTH}
            assert await rig.inside("one", "touch /e/x; stat -c %u:%g /e/x /c/k /etc/hosts; cat /c/k; id -u") == (
                "0:0\n0:0\n0:0\nv0")
            # On the host the files are root's, and the process is nobody it knows.
            assert (files(rig, "one") / "volumes/kubernetes.io~empty-dir/e/x").stat().st_uid == 0
            assert owners(files(rig, "one").name) == {roots[0]}
        async with rig.kubelet():  # a restarted one remembers, and gives the block of a pod that is gone again
            await rig.remove("one")
            await rig.create("three", sh(stay), hostUsers=False)
            await rig.pod("three", ready)
            assert await rig.inside("three", "awk '{print $2}' /proc/1/uid_map") == str(roots[0])
            await rig.remove("two", "three", "plain")
    run(host, body)


def owners(uid: str) -> set[int]:
    """Whose the pod's processes are on the host, but for pause."""
    return {path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if uid in _read(path / "cgroup")
            and "sleep" in _read(path / "cmdline")}


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
