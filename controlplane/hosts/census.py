"""What a host is like, as far as a cluster could change it: taken before the first change and after the last.

Owns the list of what is looked at and how two censuses are compared. `differences` is pure; `take` only reads. Promises
that one taken on an unchanged host is the same, so that "nothing is left" is a comparison and no claim. Called by
`install`, which keeps the first, and by `reset`, which prints the proof.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

Census = dict[str, list[str]]
COMMAND_SECONDS = 60
# Trees in which every file counts; a digest tells changed ones. What others write there all the time is left out.
TREES = ("etc", "usr/local", "opt", "usr/lib/systemd/system", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d")
CHANGING = re.compile(r"^(etc/(.*-|\.pwd\.lock|\.updated|mtab|resolv\.conf|adjtime|ld\.so\.cache|machine-id)|"
                      r".*/__pycache__/.*)$")  # Python's own notes beside any program that it ran
LOGINS = re.compile(r"session-\S+\.scope\b")  # who is logged in
# Trees of which only the first level counts.
TOPS = ("var/lib", "var/log", "run", "sys/fs/cgroup", "usr/sbin", "usr/bin")
CHANGING_TOPS = re.compile(r"^(var/log/(apt|dpkg\.log|alternatives\.log|journal)|run/(log|lock|systemd|udev|user|dbus|"
                           r"utmp|initctl|mount|credentials|xtables\.lock|cloud-init|sshd.*|agetty.*)|"
                           r"sys/fs/cgroup/.*\.(slice|scope|service|mount|socket)|sys/fs/cgroup/(cgroup|memory|cpu|io|"
                           r"pids|misc|cpuset|hugetlb|rdma|dmem)\..*)$")
SYSCTLS = ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/ipv4/conf/all/rp_filter",
           "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_tcp_timeout_established",
           "net/netfilter/nf_conntrack_tcp_timeout_close_wait", "net/bridge/bridge-nf-call-iptables")


def take(root: Path = Path("/")) -> Census:
    """The host as it is now: sections of sorted lines."""
    found: Census = {"files": sorted(_files(root)), "folders": sorted(_tops(root)), "users": sorted(_users(root)),
                     "settings": sorted(_settings(root))}
    for section, command in (("packages", ("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n")),
                             ("links", ("ip", "-o", "link")), ("addresses", ("ip", "-o", "address")),
                             ("routes", ("ip", "-o", "route", "show", "table", "all")),
                             ("routing rules", ("ip", "rule")), ("firewall", ("nft", "list", "ruleset")),
                             ("firewall (legacy)", ("iptables-legacy-save",)),
                             ("services", ("systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain"))):
        listed = _output(*command)
        if section == "firewall":
            listed = _ruleset("\n".join([*listed, ""])).splitlines()
        found[section] = sorted(_steady(section, line) for line in listed if _steady(section, line))
    found["mounts"] = sorted(_mounts(root))
    return found


def differences(before: Census, after: Census) -> dict[str, list[str]]:
    """Section → what is new ("+ …") or gone ("- …"); sections that are the same are absent. A setting that was not
    there before came with a kernel module, which stays until the next boot, at the module's own value. Pure."""
    found = {}
    known = {line.partition(" = ")[0] for line in before.get("settings", ())}
    after = {**after, "settings": [s for s in after.get("settings", ()) if s.partition(" = ")[0] in known]}
    for section in sorted(before.keys() | after.keys()):
        was, now = set(before.get(section, ())), set(after.get(section, ()))
        lines = [f"- {line}" for line in sorted(was - now)] + [f"+ {line}" for line in sorted(now - was)]
        if lines:
            found[section] = lines
    return found


# A built-in chain that lets all through and holds nothing: looking at a table with iptables is enough to make one.
_IDLE_CHAIN = re.compile(r"\tchain \S+ \{\n\t\ttype \w+ hook \w+ priority [^;]+; policy accept;\n\t\}\n\n?")
_IDLE_TABLE = re.compile(r"table \S+ \S+ \{\n\}\n")


def _ruleset(listed: str) -> str:
    """What nft lists, without what does nothing. Pure."""
    listed = re.sub(r"^\t?#.*\n", "", listed, flags=re.MULTILINE)
    return _IDLE_TABLE.sub("", _IDLE_CHAIN.sub("", listed))


def _steady(section: str, line: str) -> str:
    """A line without what changes by itself: counters, lifetimes, times, a carrier that comes and goes."""
    line = line.rstrip()
    if section == "services":
        return "" if LOGINS.match(line) else line.partition(" ")[0]
    if section == "links":
        return " ".join(line.split()[1:2])
    if section == "addresses":
        return " ".join(line.split()[1:4])
    if section == "routes":
        if "fe80::" in line or "ff00::" in line:
            return ""  # the kernel's own, a moment after a link comes up
        return re.sub(r" expires \S+| (linkdown|dead)\b", "", line)
    if section.startswith("firewall"):
        line = re.sub(r"\[\d+:\d+\]|counter packets \d+ bytes \d+", "", line).strip()
        return "" if line.startswith("#") else line
    return line


def _files(root: Path) -> Iterator[str]:
    for top in TREES:
        for folder, _, names in os.walk(root / top):
            for name in names:
                path = Path(folder) / name
                short = str(path.relative_to(root))
                if not CHANGING.match(short):
                    yield f"{short} {_digest(path)}"


def _digest(path: Path) -> str:
    try:
        if path.is_symlink():
            return f"-> {os.readlink(path)}"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "special"
    except OSError as error:
        return str(error.strerror)


def _tops(root: Path) -> Iterator[str]:
    for top in TOPS:
        folder = root / top
        for entry in folder.iterdir() if folder.is_dir() else ():
            short = str(entry.relative_to(root))
            if not CHANGING_TOPS.match(short):
                yield short


def _users(root: Path) -> Iterator[str]:
    for name in ("passwd", "group"):
        path = root / "etc" / name
        if path.exists():
            yield from (f"{name}: {line}" for line in path.read_text().splitlines())


def _settings(root: Path) -> Iterator[str]:
    for key in SYSCTLS:
        path = root / "proc/sys" / key
        if path.exists():
            yield f"{key} = {path.read_text().strip()}"


def _mounts(root: Path) -> Iterator[str]:
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if not target.startswith(("/run/user", "/run/credentials", "/run/systemd")):
            yield target


def _output(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
