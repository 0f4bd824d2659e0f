"""What an install does on each release, by what its programs say and its files hold: as told in docs/hosts.md."""

import re
import tomllib
from pathlib import Path

import pytest

from agent.dns import upstreams
from agent.kubelet.cri import containerd
from controlplane.cli import packages
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.ledger import Ledger

DOCS = Path(__file__).resolve().parents[3] / "docs/hosts.md"
STUB = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"
REAL = "nameserver 192.168.56.1\nsearch lan\n"


def told(row: str) -> dict[str, str]:
    """A row of the table of releases: release → cell."""
    table = DOCS.read_text().partition("## Releases\n")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    return dict(zip(cells[0][1:], next(line for line in cells if line[0] == row)[1:]))


@pytest.mark.parametrize(("release", "says", "dialect", "files"), [
    ("Debian 12", "1.6.20~ds1 1.6.20~ds1-1+deb12u1", 2, ["", "", REAL]),
    ("Debian 13", "1.7.24~ds1 1.7.24~ds1-6+deb13u1", 2, [REAL, "", STUB]),
    ("Ubuntu 24.04", "1.7.28 ", 2, [REAL, "", STUB]),
    ("Docker's packages", "v2.1.5 fcd43222d6b07379a4be9786bda52438f0dd16a1", 3, ["", "", REAL])])
def test_containerd_and_resolvers(tmp_path, monkeypatch, release, says, dialect, files):
    for name in ("containerd", "runc"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho containerd github.com/containerd/containerd {says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(containerd, "systemd_cgroups", lambda: True)  # both versions of systemd, on cgroup v2 alone
    facts = containerd.facts(Paths(), str(tmp_path))
    written = tomllib.loads(containerd.config(Paths(), facts))
    assert written["version"] == dialect and "'SystemdCgroup': True" in str(written)
    assert upstreams.choose(files, []) == (("192.168.56.1", 53),), "never the stub, which may ask us"
    if (version := told("containerd").get(release)):
        assert says.startswith(version + ".")


def test_packages_of_a_fresh_host(tmp_path, monkeypatch):
    """The same names on every release; what Docker brought is not installed again, and crun alone only at first."""
    monkeypatch.setattr(packages, "SEARCH", str(tmp_path))
    assert packages.missing(new=False) == ["conntrack", "containerd", "crun", "iptables", "runc"]
    assert packages.missing(new=True, foreign=True) == ["conntrack", "iptables"]
    for name in ("containerd", "runc", "iptables-restore"):
        (tmp_path / name).touch(0o755)
    assert packages.missing(new=False) == ["conntrack", "crun"]
    (tmp_path / "conntrack").touch(0o755)
    assert packages.missing(new=True) == ["crun"] and packages.missing(new=False) == []


@pytest.mark.parametrize(("known", "taken"), [("containerd", "containerd"), ("containerd crun", "containerd crun")])
def test_a_release_without_crun_goes_on_without_it(tmp_path, monkeypatch, known, taken):
    said = tmp_path / "said"
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (tmp_path / "apt-cache").write_text(f'#!/bin/sh\ncase " {known} " in *" $2 "*) ;; *) exit 100;; esac\n')
    for name in ("dpkg", "dpkg-query"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    for name in ("apt-get", "apt-cache", "dpkg", "dpkg-query"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    packages.install(["containerd", "crun"], Ledger(tmp_path / "ledger"))
    assert said.read_text().splitlines()[-1].endswith(f"install -y --no-install-recommends {taken}")
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    with packages.as_welcome(["crun"]):
        packages.install(["crun"], Ledger(tmp_path / "ledger"))
    with pytest.raises(Finding), packages.as_welcome(["containerd", "crun"]):
        packages.install(["containerd", "crun"], Ledger(tmp_path / "ledger"))


class Killed(BaseException):
    pass


def test_an_install_killed_at_its_last_step_is_gone_through_again(tmp_path, monkeypatch):
    """Between apt and the distribution's containerd being left off: it would run beside ours at the next boot."""
    said, policy = tmp_path / "said", tmp_path / "policy-rc.d"
    for tool in (*packages.NEEDED, *packages.WELCOME):
        (tmp_path / tool).touch(0o755)
    for name in ("apt-get", "dpkg", "dpkg-query", "systemctl"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {said}\n'
                                     f'[ "$1" != -s ] || test -e {tmp_path}/there || echo Inst containerd\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages, "SEARCH", str(tmp_path))
    monkeypatch.setattr(packages, "POLICY", policy)
    ledger = Ledger(tmp_path / "ledger")

    def killed(unit):
        raise Killed
    with monkeypatch.context() as until, pytest.raises(Killed):
        until.setattr(packages, "_leave_off", killed)
        packages.install(["containerd"], ledger)
    policy.write_text(packages.NO_SERVICES)  # nobody took it away
    (tmp_path / "there").touch()
    again = packages.missing(new=False)
    assert again == ["conntrack", "containerd", "crun", "iptables", "runc"]
    packages.install(again, ledger)
    assert "systemctl --quiet disable containerd.service" in said.read_text().splitlines()
    assert not policy.exists() and packages.missing(new=True) == []
    policy.write_text("a person's own, of later")
    ledger.undo(keep=("package",))
    assert policy.exists() and [entry["kind"] for entry in ledger.entries()] == ["package"]


def test_every_python_told_of_may_run_it():
    least = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (DOCS.parents[1] / "pyproject.toml").read_text())
    for version in told("Python").values():
        assert tuple(map(int, version.split("."))) >= (int(least[1]), int(least[2]))


@pytest.mark.parametrize(("said", "reached"), [
    ("Ign:1 http://a b InRelease\nErr:1 http://a b InRelease\n  Temporary failure resolving 'a'\n", False),
    ("Err:1 http://gone x InRelease\n  404\nHit:2 http://a b InRelease\nReading package lists...\n", True),
    ("Reading package lists...\n", True)])
def test_a_mirror_that_nobody_reaches(tmp_path, monkeypatch, said, reached):
    """One of several that is gone is no obstacle; none at all is told at once, not once for each package."""
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if reached:
        packages.refresh()
    else:
        with pytest.raises(Finding, match="Temporary failure resolving 'a'"):
            packages.refresh()
