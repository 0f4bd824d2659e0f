"""runc alone, on a host where crun does not work: what differs between the two works there as well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kubelet.cri import containerd, trial
from tests.node.rig import Host
from tests.node.test_bad_pods import test_what_is_wrong_with_a_pod_is_told  # noqa: F401
from tests.node.test_isolation import (  # noqa: F401
    test_identities_capabilities_and_system_calls,
    test_mounts_spread_as_their_propagation_says,
)
from tests.node.test_limits import test_each_class_has_its_place_its_weight_and_its_score  # noqa: F401
from tests.node.test_podlife import (  # noqa: F401
    test_how_a_container_ended_is_told,
    test_resources_change_under_a_running_container,
)
from tests.node.test_runtime import test_exits_execs_and_out_of_memory_are_told_apart  # noqa: F401

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a crun that refuses."""
    if os.geteuid() != 0 or shutil.which("containerd") is None:
        pytest.skip("needs root and containerd")
    broken = tmp_path_factory.mktemp("programs") / "crun"
    broken.write_text("#!/bin/sh\necho it has no idea >&2\nexit 1\n")
    broken.chmod(0o755)
    made = Host(run_containerd=False)
    try:
        made.programs = f"{broken.parent}:{made.programs}"
        made.serve()
        yield made
    finally:
        made.close()


def test_a_runtime_that_does_not_work_is_not_used(host: Host, tmp_path: Path) -> None:
    written = containerd.config_path(host.paths).read_text()
    assert 'default_runtime_name = "runc"' in written
    assert "crun is installed and cannot be used: it has no idea" in written
    systemd, silent = containerd.systemd_cgroups(), tmp_path / "silent"
    silent.write_text('#!/bin/sh\ncase "$*" in *features) echo unknown command >&2; exit 1;; esac; exec runc "$@"\n')
    silent.chmod(0o755)
    assert trial.fault(tmp_path, str(silent), systemd=systemd) == ""
    assert trial.fault(tmp_path, str(silent), systemd=systemd, features=True) == "unknown command"
    assert not remains(tmp_path)


def test_what_a_killed_trial_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0 or shutil.which("runc") is None:
        pytest.skip("needs root and runc")
    runc, systemd = str(shutil.which("runc")), containerd.systemd_cgroups()

    def killed() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trial, "clear", lambda *_, **__: None)
            assert trial.fault(tmp_path, runc, systemd=systemd) == ""
        assert remains(tmp_path)

    killed()
    assert trial.fault(tmp_path, runc, systemd=systemd) == "" and not remains(tmp_path)
    killed()
    trial.clear(tmp_path, runc, systemd=systemd)
    assert not remains(tmp_path)


def remains(run: Path) -> list[Path]:
    return [*run.glob("trial"), *Path("/sys/fs/cgroup").glob(f"**/*{trial.name(run)}*")]
