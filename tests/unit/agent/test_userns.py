"""Blocks of ids: one for each pod, the same after a restart, free again when the pod's folder has gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.kubelet.compute.userns import LENGTH, UserNamespaces, delegated
from controlplane.machinery.errors import Finding


def test_no_two_pods_share_a_block_and_none_is_forgotten(tmp_path: Path) -> None:
    first = UserNamespaces(tmp_path, count=2)
    assert [first.of(uid) for uid in ("a", "b", "a")] == [LENGTH, 2 * LENGTH, LENGTH]
    again = UserNamespaces(tmp_path, count=2)
    assert again.of("b") == 2 * LENGTH
    with pytest.raises(OSError, match="all 2 blocks are in use"):
        again.of("c")
    shutil.rmtree(tmp_path / "a")
    assert again.of("c") == LENGTH


def test_an_administrator_may_set_ids_aside(tmp_path: Path) -> None:
    users, groups = tmp_path / "subuid", tmp_path / "subgid"
    assert delegated(users, groups) is None
    users.write_text("vagrant:100000:65536\nkubelet:131072:1048576\n")
    groups.write_text("kubelet:131072:1048576\n")
    assert delegated(users, groups) == (131072, 16)
    groups.write_text("kubelet:131072:65536\n")
    with pytest.raises(Finding, match="cannot be used for pods"):
        delegated(users, groups)
