"""A runtime that was there before: what it tells of itself is judged, with the lines to write."""

import json

import pytest

from controlplane.hosts import foreign
from controlplane.machinery.paths import Paths

PATHS = Paths()
FINE = {"cni": {"confDir": "/etc/pelamis/cni/net.d", "binDir": "/var/lib/pelamis/cni/bin"},
        "containerd": {"runtimes": {"runc": {"options": {"SystemdCgroup": True}}}}}


def test_a_runtime_that_fits():
    told = {"config": json.dumps(FINE)}
    assert foreign.faults("containerd", "1.6.20~ds1", told, PATHS, systemd=True) == []
    newer = {**FINE, "cni": {"confDir": "/etc/pelamis/cni/net.d", "binDirs": ["/var/lib/pelamis/cni/bin"]}}
    assert foreign.faults("containerd", "v2.1.0", {"config": json.dumps(newer)}, PATHS, systemd=True) == []
    assert foreign.faults("cri-o", "1.30.0", {}, PATHS, systemd=True) == [], "what is not told is not judged"


@pytest.mark.parametrize(("version", "changed", "systemd", "fact", "fix"), [
    ("1.5.9", {}, True, "containerd is 1.5.9", "upgrade"),
    ("1.6.20", {"cni": {"confDir": "/etc/cni/net.d", "binDir": "/opt/cni/bin"}}, True, "/etc/cni/net.d",
     'conf_dir = "/etc/pelamis/cni/net.d"'),
    ("1.6.20", {}, False, "by systemd", "SystemdCgroup = false")])
def test_a_runtime_that_does_not(version, changed, systemd, fact, fix):
    found = foreign.faults("containerd", version, {"config": json.dumps({**FINE, **changed})}, PATHS, systemd)
    assert len(found) == 1 and fact in found[0].fact and fix in found[0].fix


def test_root_that_may_not_protect_its_processes():
    told = {"config": json.dumps(FINE)}
    found, = foreign.faults("containerd", "1.6.20", told, PATHS, True, may_lower_oom_score=False)
    assert "oom_score_adj" in found.fact and "restrict_oom_score_adj = true" in found.fix
    told = {"config": json.dumps({**FINE, "restrictOOMScoreAdj": True})}
    assert foreign.faults("containerd", "1.6.20", told, PATHS, True, may_lower_oom_score=False) == []
