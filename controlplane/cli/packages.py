"""What a node needs from Debian: which tools are missing, and installing them without starting any service.

Exactly the packages that were not there before are noted in the ledger, so `down --purge` can take them away again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

# tool -> Debian package that brings it
NEEDED = {"containerd": "containerd", "runc": "runc", "iptables-restore": "iptables", "conntrack": "conntrack"}
WELCOME = {"crun": "crun"}  # starts containers faster than runc; a release without it goes on without it
RUNTIME = {"containerd", "runc", "crun"}  # what a host does not need that brings a runtime of its own
POLICY = Path("/usr/sbin/policy-rc.d")  # invoke-rc.d asks it before it starts a freshly installed service
NO_SERVICES = "#!/bin/sh\n# written by pelamis while it installs packages\nexit 101\n"
APT_SECONDS = 900  # a slow mirror is no reason to give up early
OPTIONS = ("-o", "DPkg::Lock::Timeout=120", "-o", "APT::Keep-Downloaded-Packages=false")
UNFINISHED = ("U", "F", "H", "HR", "UR", "FR")  # unpacked, half configured, half installed; R: to be unpacked again
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"


def missing(*, new: bool, foreign: bool = False) -> list[str]:
    """The packages whose tool is not on this machine, or that dpkg was killed at, sorted; all of them when an install
    was killed before its end, which is then gone through again. What is only welcome is taken along with others, or on
    a `new` host: where there is none, nobody is asked again. `foreign`: the host brings a runtime, and needs none."""
    wanted = {tool: package for tool, package in {**NEEDED, **WELCOME}.items() if not foreign or package not in RUNTIME}
    if _at_work():
        return sorted(wanted.values())
    found = states() if shutil.which("dpkg-query", path=SEARCH) else {}
    lacking = {package for tool, package in wanted.items()
               if shutil.which(tool, path=SEARCH) is None or found.get(package, "")[1:] in UNFINISHED}
    return sorted(lacking) if new or lacking - set(WELCOME.values()) else []


@contextmanager
def as_welcome(packages: Sequence[str]) -> Iterator[None]:
    """What cannot be had for packages that are all only welcome is no failure."""
    try:
        yield
    except Finding:
        if not set(packages) <= set(WELCOME.values()):
            raise


def offered(packages: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """`packages` without those that are only welcome and that apt does not know."""
    return [package for package in packages if package not in WELCOME.values() or subprocess.run(
        ["apt-cache", *options, "show", package], capture_output=True, timeout=APT_SECONDS).returncode == 0]


def states() -> dict[str, str]:
    """dpkg's two letters for every package it knows: "ii" is installed, "rc" removed with its configuration kept."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n"], capture_output=True,
                            text=True, check=True)
    return dict(line.split()[:2] for line in listed.stdout.splitlines())


@contextmanager
def no_services(ledger: Ledger | None = None) -> Iterator[None]:
    """Keep the distribution from starting its own containerd: we run an instance of our own."""
    if POLICY.exists() and not _at_work():  # somebody else's, and not ours to replace
        yield
        return
    if ledger is not None:
        ledger.record("file", path=POLICY)
    POLICY.write_text(NO_SERVICES)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if ledger is not None:
            ledger.forget("file", path=POLICY)


def _at_work() -> bool:
    """Whether an install of packages is under way, or was killed."""
    return POLICY.exists() and POLICY.read_text() == NO_SERVICES


@contextmanager
def only_from(folder: Path) -> Iterator[tuple[str, ...]]:
    """Options that make apt see the packages of `folder`, which has their index, and no others. The host's own lists
    stay as they are."""
    with tempfile.TemporaryDirectory() as scratch:
        for wanted in ("lists/partial", "cache/archives/partial"):
            Path(scratch, wanted).mkdir(parents=True)
        Path(scratch, "sources.list").write_text(f"deb [trusted=yes] file:{folder.resolve()} ./\n")
        settings = (f"Dir::Etc::SourceList={scratch}/sources.list", "Dir::Etc::SourceParts=/dev/null",
                    f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache", "APT::Sandbox::User=root")
        yield tuple(word for setting in settings for word in ("-o", setting))


def refresh(options: Sequence[str] = ()) -> None:
    """Have apt look what there is. Raises Finding when it reaches nobody, since an install would then try every mirror
    for every package; one source of several that does not answer is no obstacle."""
    said = apt("update", options=options).splitlines()
    errors = [reason.strip() for line, reason in pairwise(said) if line.startswith("Err:")]
    if errors and not any(line.startswith(("Hit:", "Get:")) for line in said):
        raise Finding("no mirror of Debian is reached", errors[0], "check this machine's network (apt-get update), or "
                      "bring packages in a bundle: pelamis bundle create --help")


def apt(*arguments: str, options: Sequence[str] = ()) -> str:
    """What apt-get says. Raises Finding when it fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(["apt-get", "-q", *OPTIONS, *options, *arguments], env=env,
                              capture_output=True, text=True, timeout=APT_SECONDS)
    except subprocess.TimeoutExpired:
        raise Finding(f"apt-get {arguments[0]} took longer than {APT_SECONDS} s", "the mirror may be unreachable",
                      "check /etc/apt/sources.list and the network, then run the command again") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Finding(f"apt-get {' '.join(arguments)} failed", said[-1] if said else "",
                      "run it by hand, then run the command again")
    return done.stdout


def install(packages: list[str], ledger: Ledger, options: Sequence[str] = ()) -> list[str]:
    """Install Debian packages; returns every package that is new. `options` are apt's (`only_from`). Raises Finding
    when apt cannot."""
    if shutil.which("apt-get") is None:
        raise Finding(f"missing: {', '.join(packages)}, and this is no Debian machine (no apt-get)",
                      fix="install containerd, runc, iptables and conntrack with your package manager")
    with no_services(ledger):
        return _install(packages, ledger, options)


def _install(packages: list[str], ledger: Ledger, options: Sequence[str]) -> list[str]:
    refresh(options)
    _finish_interrupted(options)
    before, packages = states(), offered(packages, options)
    plan = subprocess.run(["apt-get", *options, "-s", "install", "--no-install-recommends", *packages],
                          capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, timeout=APT_SECONDS)
    fresh = sorted({line.split()[1] for line in plan.stdout.splitlines() if line.startswith("Inst ")}
                   - {name for name, state in before.items() if state == "ii"})
    for name in fresh:
        ledger.record("package", name=name, along=fresh, known=name in before)
    apt("install", "-y", "--no-install-recommends", *packages, options=options)
    if any(entry["kind"] == "package" and entry["name"] == "containerd" for entry in ledger.entries()):
        _leave_off("containerd.service")
    return fresh


def _leave_off(unit: str) -> None:
    """Its package would have it run beside ours from the next boot on."""
    if shutil.which("systemctl", path=SEARCH) is not None:
        subprocess.run(["systemctl", "--quiet", "disable", unit], capture_output=True, timeout=APT_SECONDS, check=False)


def _finish_interrupted(options: Sequence[str]) -> None:
    """An install that was killed half-way leaves packages that are not set up, or one that is not whole and has to be
    unpacked again: apt refuses to go on before that is done."""
    done = _set_up()
    torn = sorted(name for name, state in states().items() if state.endswith("R"))
    if torn:
        apt("install", "--reinstall", "-y", "--no-install-recommends", *torn, options=options)
        done = _set_up()
    if done.returncode:
        raise Finding("an earlier package installation was interrupted and cannot be finished",
                      done.stderr.strip()[-500:], "dpkg --configure -a")


def _set_up() -> subprocess.CompletedProcess[str]:
    return subprocess.run(["dpkg", "--configure", "-a"], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=APT_SECONDS)
