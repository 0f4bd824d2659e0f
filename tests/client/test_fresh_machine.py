"""From a bare Debian to a cluster and back: packages installed for real, `up` killed at every step, nothing left."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.client.cluster import eventually
from tests.client.fresh import Fresh

pytestmark = pytest.mark.client

PELAMIS = "/root/pelamis/pelamis"
# What package managers and Python keep for themselves, and this test's own checkout.
OTHERS = ("/root", "/tmp", "/proc", "/sys", "/dev", "/var/lib/apt", "/var/cache", "/var/log/apt", "/var/log/dpkg.log",
          "/var/log/alternatives.log", "/var/lib/dpkg", "/etc/ld.so.cache")
STEPS = ("preparing certificates", "starting containerd", "waiting for node", "making what belongs",
         "building and importing", "applying a Deployment")


@pytest.fixture(scope="module")
def machine():
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes a machine of its own")
    made = Fresh()
    try:
        no_python_for_us(made)
        made.run(PELAMIS, "kubeconfig", check=False)  # Python and our libraries: they come before the ledger, and stay
        yield made
    finally:
        made.close()


def no_python_for_us(machine: Fresh) -> None:
    """What a release says whose Python is too old, and one that reaches no mirror; neither installs anything."""
    old, proxy = machine.root / "usr/local/bin/apt-cache", machine.root / "etc/apt/apt.conf.d/00test"
    old.write_text("#!/bin/sh\necho '  Candidate: 3.9.2-3'\n")
    old.chmod(0o755)
    said = machine.run(PELAMIS, "up", check=False)
    old.unlink()
    assert said.returncode == 1 and "older than 3.11" in said.stderr and "use Debian 12" in said.stderr, said
    way = proxy.read_text()
    proxy.unlink()
    said = machine.run("env", "-u", "http_proxy", "-u", "https_proxy", PELAMIS, "up", check=False)
    proxy.write_text(way)
    assert said.returncode == 1 and "no mirror of Debian is reached" in said.stderr, said
    assert not (machine.root / "usr/bin/python3").exists()


def snapshot(machine: Fresh) -> dict[str, list[str]]:
    def lines(*command: str) -> list[str]:
        return sorted(machine.run(*command, check=False).stdout.splitlines())
    rules = subprocess.run(["nsenter", f"--net=/run/netns/{machine.netns}", "nft", "list", "ruleset"],
                           capture_output=True, text=True, check=True).stdout
    skipped = [word for path in OTHERS for word in ("-path", path, "-prune", "-o")]
    return {"packages": lines("dpkg-query", "-W"), "files": lines("find", "/", *skipped, "-print"),
            "links": [p.name for p in Path(f"/proc/{machine.pid}/root/sys/class/net").iterdir()],
            "routes": lines("cat", "/proc/net/route"), "rules": rules.splitlines(),
            "tables": lines("cat", "/proc/net/ip_tables_names"), "mounts": lines("cat", "/proc/mounts"),
            "groups": lines("find", "/sys/fs/cgroup", "-type", "d"),
            "settings": lines("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/route_localnet")}


def kill_up_when(machine: Fresh, reached: Callable[[str], bool]) -> None:
    """Start `up --demo`, and kill it with all that it started as soon as `reached` of what it printed."""
    run = subprocess.Popen(machine.enter(PELAMIS, "up", "--demo"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.stdout is not None
    os.set_blocking(run.stdout.fileno(), False)
    said = ""

    def there() -> bool:
        nonlocal said
        said += (run.stdout.read() or b"").decode()
        if run.poll() is not None:
            pytest.fail(f"it ended: {said}")
        return reached(said)
    eventually(there, seconds=240)
    for process in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    run.wait()
    run.stdout.close()


def torn(machine: Fresh, package: str) -> None:
    """Have dpkg know of a package what it does when it was killed while it unpacked it."""
    machine.run("sed", "-i", f"/^Package: {package}$/,/^$/ s/^Status: .*/Status: install reinstreq half-installed/",
                "/var/lib/dpkg/status")
    assert f"{package} iHR" in machine.run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n").stdout


def processes(machine: Fresh) -> dict[str, int]:
    rows = json.loads(machine.run(PELAMIS, "status", "-o", "json").stdout)["components"]
    return {row["name"]: row["pid"] for row in rows}


def test_from_nothing_through_every_kill_to_a_cluster_and_back(machine):
    before = snapshot(machine)
    unpacked = machine.root / "usr/bin/containerd"
    assert not unpacked.exists()
    kill_up_when(machine, lambda said: unpacked.exists())
    for step in STEPS:
        kill_up_when(machine, lambda said, step=step: step in said)
    torn(machine, "runc")
    done = machine.run(PELAMIS, "up", "--demo").stdout
    assert "all 3 replicas answered, to " in done and "The cluster is ready." in done
    assert "crun" in machine.run("dpkg-query", "-W").stdout  # taken along, as Debian has it

    running = processes(machine)
    assert "installing" not in machine.run(PELAMIS, "up", "--demo").stdout
    assert processes(machine) == running

    purged = machine.run(PELAMIS, "down", "--purge").stdout
    assert "package containerd went with another" in purged and "this machine is as it was" in purged
    after = snapshot(machine)
    for what in before:
        assert set(after[what]) ^ set(before[what]) == set(), what


def test_a_package_that_something_needs_by_then_stays(machine):
    machine.run(PELAMIS, "up")
    machine.run("apt-get", "install", "-y", "--no-install-recommends", "podman")  # it needs conmon and runc or crun
    purged = machine.run(PELAMIS, "down", "--purge").stdout
    kept = [line for line in purged.splitlines() if line.strip().startswith("kept package")]
    assert kept, purged
    assert "this machine is as it was" in purged
