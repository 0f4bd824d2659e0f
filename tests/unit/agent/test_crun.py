"""Who is to see version 1 of control groups alone, by what is mounted where."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.kubelet.cri.crun import APART, Crun, way

V1 = "31 23 0:28 / /sys/fs/cgroup rw {} - tmpfs tmpfs rw\n33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
BOTH = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw {} - cgroup2 cgroup2 rw\n"
ROOT = "27 1 254:0 / / rw,relatime {} - ext4 /dev/vda rw\n"
RUN = "28 27 0:24 / /run rw,nosuid {} - tmpfs tmpfs rw\n"
PLACES = (Path("/"), Path("/run"), Path("/var/lib/pelamis"))


@pytest.mark.parametrize(("mounts", "shared", "who"), [
    (ROOT + V1, True, ""),
    (ROOT + "31 23 0:28 / /sys/fs/cgroup rw {} - cgroup2 cgroup2 rw\n", True, ""),
    (ROOT + BOTH, True, "containerd"),
    (ROOT + RUN + BOTH, True, "containerd"),
    (ROOT + BOTH, False, "crun"),
    (ROOT + RUN.replace("{}", "master:1") + BOTH, True, "crun")])
def test_who_is_set_apart(mounts: str, shared: bool, who: str) -> None:
    assert way(mounts.replace("{}", "shared:7 " if shared else ""), PLACES) == who


def test_one_of_both_is_called_apart(tmp_path: Path) -> None:
    kept, each = Crun("/usr/bin/crun", apart=True), Crun("/usr/bin/crun", apart=True, script=tmp_path / "crun")
    assert (kept.before, each.before, Crun("/usr/bin/crun").before) == (APART, (), ())
    assert kept.command == each.command == (*APART, "/usr/bin/crun")
    kept.write()
    assert not (tmp_path / "crun").exists()
    each.write()
    assert each.program == str(tmp_path / "crun") and (tmp_path / "crun").stat().st_mode & 0o777 == 0o755
