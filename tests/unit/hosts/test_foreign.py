"""A runtime that was there before: what it tells of itself is judged, with the lines to write."""

import asyncio
import json

import pytest
from aiohttp import web

from controlplane.hosts import foreign
from controlplane.machinery.paths import Paths

PATHS = Paths()
FINE = {"cni": {"confDir": "/etc/pelamis/cni/net.d", "binDir": "/var/lib/pelamis/cni/bin"},
        "containerd": {"runtimes": {"runc": {"options": {"SystemdCgroup": True}}}}}


def test_a_runtime_that_fits():
    assert foreign.faults("containerd", "1.6.20~ds1", json.dumps(FINE), PATHS, systemd=True) == []
    newer = {**FINE, "cni": {"confDir": "/etc/pelamis/cni/net.d", "binDirs": ["/var/lib/pelamis/cni/bin"]}}
    assert foreign.faults("containerd", "v2.1.0", json.dumps(newer), PATHS, systemd=True) == []
    assert foreign.faults("cri-o", "1.30.0", "", PATHS, systemd=True) == [], "what is not told is not judged"


@pytest.mark.parametrize(("version", "changed", "systemd", "fact", "fix"), [
    ("1.5.9", {}, True, "containerd is 1.5.9", "upgrade"),
    ("1.6.20", {"cni": {"confDir": "/etc/cni/net.d", "binDir": "/opt/cni/bin"}}, True, "/etc/cni/net.d",
     'conf_dir = "/etc/pelamis/cni/net.d"'),
    ("2.1.0", {"cni": {"confDir": "/etc/pelamis/cni/net.d", "binDirs": ["/opt/cni/bin"]}}, True,
     "plugins in /opt/cni/bin", 'bin_dir = "/var/lib/pelamis/cni/bin"'),
    ("1.6.20", {}, False, "by systemd", "SystemdCgroup = false")])
def test_a_runtime_that_does_not(version, changed, systemd, fact, fix):
    found = foreign.faults("containerd", version, json.dumps({**FINE, **changed}), PATHS, systemd)
    assert len(found) == 1 and fact in found[0].fact and fix in found[0].fix


# As CRI-O itself writes it, but for what does not matter here.
CRIO = """
[crio]
  root = "/var/lib/containers/storage"
  [crio.runtime]
    cgroup_manager = "systemd"
  [crio.network]
    network_dir = "/etc/pelamis/cni/net.d/"
    plugin_dirs = ["/opt/cni/bin/", "/var/lib/pelamis/cni/bin/"]
"""


@pytest.mark.parametrize(("version", "change", "systemd", "fact", "fix"), [
    ("1.30.0", ("", ""), True, "", ""), ("1.25.4", ("", ""), True, "cri-o is 1.25.4", "upgrade"),
    ("1.30.0", ("/etc/pelamis/cni/net.d/", "/etc/cni/net.d/"), True, "looks for pod networks in /etc/cni/net.d",
     'network_dir = "/etc/pelamis/cni/net.d"'),
    ("1.30.0", (', "/var/lib/pelamis/cni/bin/"', ""), True, "looks for network plugins in /opt/cni/bin",
     'plugin_dirs = ["/var/lib/pelamis/cni/bin"]'),
    ("1.30.0", ("", ""), False, "by systemd", 'cgroup_manager = "cgroupfs"'),
    ("1.30.0", ('"systemd"', '"cgroupfs"'), True, "itself", 'cgroup_manager = "systemd"')])
def test_crio_tells_its_configuration_on_its_own_socket(tmp_path, version, change, systemd, fact, fix):
    async def asked() -> str:
        async def config(request: web.Request) -> web.Response:
            return web.Response(text=CRIO.replace(*change), content_type="application/toml")
        app = web.Application()
        app.router.add_get("/config", config)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(tmp_path / "crio.sock")).start()
            return await foreign.crio_config(tmp_path / "crio.sock")
        finally:
            await runner.cleanup()
    found = foreign.faults("cri-o", version, asyncio.run(asked()), PATHS, systemd)
    assert [fact in f.fact and fix in f.fix for f in found] == ([True] if fact else []), found
    assert asyncio.run(foreign.crio_config(tmp_path / "none.sock")) == ""


def test_root_that_may_not_protect_its_processes():
    told = json.dumps(FINE)
    found, = foreign.faults("containerd", "1.6.20", told, PATHS, True, may_lower_oom_score=False)
    assert "oom_score_adj" in found.fact and "restrict_oom_score_adj = true" in found.fix
    told = json.dumps({**FINE, "restrictOOMScoreAdj": True})
    assert foreign.faults("containerd", "1.6.20", told, PATHS, True, may_lower_oom_score=False) == []
