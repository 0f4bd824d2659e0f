"""Reads the facts of this host: /proc, /sys, a few commands that only show. Changes nothing.

Promises that what cannot be read is absent from the facts instead of an error, and that no command takes longer than
COMMAND_SECONDS. Called by `doctor` and `support`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from controlplane.cli import preflight
from controlplane.doctor.checks import NODE_PORTS, SERVER_PORTS
from controlplane.doctor.facts import Card, Disk, Host
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

COMMAND_SECONDS = 10
GROUPS = Path("/sys/fs/cgroup")
# Kernel modules by what proves them when they are built in: a file that exists.
MODULES = {"overlay": "", "br_netfilter": "/proc/sys/net/bridge", "nf_conntrack": "/proc/sys/net/netfilter",
           "vxlan": "/sys/module/vxlan"}
USERNS = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
OPTIONAL = ("br_netfilter",)  # ours is a routed network: no bridge
DOCKER = Path("/run/docker.sock")
OUR_TABLES = ("pelamis", "kube-proxy", "KUBE")


def host(paths: Paths) -> Host:
    """The facts of this host."""
    found = cards()
    file, resolvers = _resolvers()
    kind, controllers = _cgroups()
    return Host(
        distribution=_distribution(), userns_restricted=read(USERNS).strip() == "1",
        cgroups=kind, controllers=controllers, swap=_swap(), modules_missing=_modules(),
        clock_synchronised=_synchronised(), now=SYSTEM.now(), disks=tuple(_disks(paths)), resolvers=resolvers,
        resolver_file=file, cards=found, default_address=_default_address(),
        listeners=_listeners((*SERVER_PORTS, *NODE_PORTS)), iptables=_iptables(), legacy_tables=_legacy(),
        firewalls=tuple(n for n in ("ufw", "firewalld") if _active(n)), dropping=_dropping(),
        others=(*(["docker"] if DOCKER.exists() else []), *preflight.others()))


def output(*command: str) -> str | None:
    """What a command printed; None when it is not there, fails or hangs."""
    program = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=COMMAND_SECONDS,
                              env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _distribution() -> str:
    lines = read("/etc/os-release").splitlines()
    return next((line.removeprefix("ID=").strip('"') for line in lines if line.startswith("ID=")), "")


def _cgroups() -> tuple[str, tuple[str, ...]]:
    if (GROUPS / "cgroup.controllers").exists():
        return "v2", tuple(read(GROUPS / "cgroup.controllers").split())
    # A folder alone is no hierarchy; cpu and cpuacct are links to the one they share.
    found = tuple(p.name for p in GROUPS.iterdir() if p.resolve().is_mount())
    if not found:
        return "", ()
    return ("hybrid" if (GROUPS / "unified").is_dir() else "v1"), found


def _swap() -> tuple[str, ...]:
    return tuple(line.split()[0] for line in read("/proc/swaps").splitlines()[1:])


def _modules() -> tuple[str, ...]:
    loaded = {line.split()[0] for line in read("/proc/modules").splitlines()}
    lacking = []
    for name, proof in MODULES.items():
        if name in OPTIONAL or name in loaded or (proof and Path(proof).exists()):
            continue
        if name in read("/proc/filesystems") or Path(f"/sys/module/{name}").exists():
            continue
        if output("modprobe", "-n", name) is None and _builtin(name) is False:
            lacking.append(name)
    return tuple(lacking)


def _builtin(name: str) -> bool | None:
    """Whether the kernel has it built in; None when that is not written down here."""
    listed = read(f"/lib/modules/{os.uname().release}/modules.builtin")
    return f"/{name}.ko" in listed if listed else None


def _synchronised() -> bool | None:
    said = output("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    return None if said is None or not said.strip() else said.strip() == "yes"


def _disks(paths: Paths) -> list[Disk]:
    found: dict[int, Disk] = {}
    for place in (paths.lib, paths.log, Path("/")):
        while not place.exists():
            place = place.parent
        numbers = os.statvfs(place)
        found.setdefault(place.stat().st_dev, Disk(str(place), numbers.f_bavail * numbers.f_frsize,
                                                   numbers.f_blocks * numbers.f_frsize, numbers.f_favail,
                                                   numbers.f_files))
    return list(found.values())


def _resolvers() -> tuple[str, tuple[str, ...]]:
    from agent.kubelet.config import RESOLV_FILES
    from agent.kubelet.hosts import parse_resolv
    for file in RESOLV_FILES:
        text = read(file)
        if text:
            return file, tuple(parse_resolv(text).servers)
    return "/etc/resolv.conf", ()


def cards() -> tuple[Card, ...]:
    listed: list[dict[str, Any]] = json.loads(output("ip", "-j", "address") or "[]")
    return tuple(Card(c["ifname"], tuple(a["local"] for a in c.get("addr_info", ()) if a.get("family") == "inet"),
                      c.get("mtu", 0)) for c in listed if c.get("ifname") not in (None, "lo"))


def _default_address() -> str:
    try:
        return preflight.node_ip("")
    except Finding:
        return ""


def _listeners(ports: tuple[int, ...]) -> dict[int, str]:
    import psutil
    found = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.laddr.port in ports and connection.pid:
            try:
                found[connection.laddr.port] = f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                continue
    return found


def _iptables() -> str:
    said = output("iptables", "--version") or ""
    return "nf_tables" if "nf_tables" in said else "legacy" if "legacy" in said else ""


def _legacy() -> tuple[str, ...]:
    """The legacy tables that hold rules or chains of somebody."""
    found = []
    for table in read("/proc/net/ip_tables_names").split():
        rules = output("iptables-legacy", "-t", table, "-S") or ""
        if any(line.startswith(("-A", "-N")) for line in rules.splitlines()):
            found.append(table)
    return tuple(sorted(found))


def _active(service: str) -> bool:
    said = output("systemctl", "is-active", service)
    if service == "ufw" and said is not None:
        return "ENABLED=yes" in read("/etc/ufw/ufw.conf")
    return said is not None and said.strip() == "active"


def _dropping() -> tuple[str, ...]:
    """Base chains of others on the way of packets whose policy is drop."""
    try:
        listed = json.loads(output("nft", "-j", "list", "chains") or "{}")
    except ValueError:
        return ()
    found = []
    for entry in listed.get("nftables", ()):
        chain = entry.get("chain")
        if chain and chain.get("policy") == "drop" and chain.get("hook") in ("forward", "input") and not any(
                chain["table"].startswith(name) for name in OUR_TABLES):
            found.append(f"{chain['family']} {chain['table']} {chain['name']}")
    return tuple(found)
