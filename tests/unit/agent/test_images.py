"""Names of images, credentials for registries, and what containerd's configuration says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agent.image.reference import ImageError, normalise
from agent.kubelet.cri import containerd
from agent.kubelet.images.images import auth_message, credentials
from controlplane.machinery.paths import Paths


@pytest.mark.parametrize(("given", "full"), [
    ("busybox", "docker.io/library/busybox:latest"),
    ("busybox:1", "docker.io/library/busybox:1"),
    ("team/app", "docker.io/team/app:latest"),
    ("index.docker.io/team/app", "docker.io/team/app:latest"),
    ("localhost/app", "localhost/app:latest"),
    ("registry:5000/app:1.0", "registry:5000/app:1.0"),
    ("quay.io/a/b@sha256:" + "a" * 64, "quay.io/a/b@sha256:" + "a" * 64),
    ("quay.io/a/b:2@sha256:" + "a" * 64, "quay.io/a/b:2@sha256:" + "a" * 64),
    ("[::1]:5000/app", "[::1]:5000/app:latest"),
])
def test_names_get_their_full_form(given: str, full: str) -> None:
    assert normalise(given) == full
    assert normalise(full) == full


@pytest.mark.parametrize("bad", ["", "Busybox", "a b", "a:", ":1", "a//b", "a:b:c", "-a", "a@sha256:zz", "a" * 256])
def test_bad_names_are_refused_in_upstreams_words(bad: str) -> None:
    with pytest.raises(ImageError) as refused:
        normalise(bad)
    assert refused.value.reason == "InvalidImageName"
    assert f'couldn\'t parse image name "{bad}": invalid reference format' in refused.value.message


def test_the_closest_registry_path_comes_first() -> None:
    secrets = [{"https://index.docker.io/v1/": {"username": "hub"}},
               {"quay.io": {"username": "wide"}, "quay.io/team": {"auth": "bmFycm93OnBhc3M="}}, {"other": {}}]
    assert [c.get("username") for c in credentials("docker.io/library/busybox:1", secrets)] == ["hub"]
    found = credentials("quay.io/team/app:1", secrets)
    assert [auth_message(c).username for c in found] == ["narrow", "wide"]
    assert auth_message(found[0]).password == "pass"
    assert credentials("quay.io.evil.example/team/app:1", secrets) == []


def test_configuration_is_toml_in_both_dialects_and_stays_below_our_folders() -> None:
    paths = Paths(Path("/somewhere"))
    for major, version in ((1, 2), (2, 3)):
        text = containerd.config(paths, containerd.Facts(major, systemd_cgroups=True, may_lower_oom_score=False,
                                                          crun="/usr/bin/crun"))
        parsed = tomllib.loads(text)
        assert parsed["version"] == version
        for value in (parsed["root"], parsed["state"], parsed["grpc"]["address"]):
            assert value.startswith("/somewhere/")
        flat = str(parsed["plugins"])
        assert "'SystemdCgroup': True" in flat and "'restrict_oom_score_adj': True" in flat
        assert "'crun': {'runtime_type': 'io.containerd.runc.v2', 'options': {'SystemdCgroup': True, 'BinaryName': " \
            "'/usr/bin/crun'}}" in flat
        assert "'/somewhere/etc/pelamis/certs.d'" in flat and "'pelamis.local/pause:1'" in flat
        assert "'default_runtime_name': 'crun'" in flat
        lame = containerd.Facts(major, systemd_cgroups=False, may_lower_oom_score=True, crun_fault='no "cgroup"')
        plain = tomllib.loads(containerd.config(paths, lame))
        assert "'default_runtime_name': 'runc'" in str(plain["plugins"]) and "'crun'" not in str(plain["plugins"])


def test_the_hosts_own_registries_count_until_they_go(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    containerd_knows = ["both", "mine"]
    for folder in (ours / "mine", ours / "both", theirs / "both", theirs / "theirs"):
        folder.mkdir(parents=True)
    containerd.adopt_registries(ours, theirs)
    assert sorted(e.name for e in ours.iterdir()) == [*containerd_knows, "theirs"]
    assert (ours / "theirs").samefile(theirs / "theirs") and not (ours / "both").is_symlink()
    (theirs / "theirs").rmdir()
    containerd.adopt_registries(ours, theirs)
    assert sorted(e.name for e in ours.iterdir()) == containerd_knows


def test_capabilities_are_read_from_the_kernels_mask() -> None:
    assert containerd.may_lower_oom_score("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert not containerd.may_lower_oom_score("CapEff:\t000001fffeffffff\n")
