"""How each kind of ledger entry is undone.

Owns the way back, one small function per kind, each of which succeeds when the thing is already gone: an interrupted
purge runs again from the top. Nothing here decides what to undo; `Ledger.undo` walks the entries newest first and calls
`undo(entry, backups)`, which returns the line a person reads, or raises OSError or `Finding`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding
from netsetup import nftables, ownroutes, rtnetlink, xtables

Entry = dict[str, Any]
MNT_DETACH = 2
GONE = (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT)
PACKAGE_TIMEOUT = 600  # seconds: a package manager may wait for another's lock
NO_SUCH_NAME = 6  # exit code of userdel and groupdel
_libc = ctypes.CDLL(None, use_errno=True)


def undo(entry: Entry, backups: Path) -> str:
    """Undo one entry; the line that tells what was done."""
    return STEPS[entry["kind"]](entry, backups)


def mounts() -> list[tuple[str, str]]:
    """(target, file system type) of every mount, in the order they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        target = fields.split(" ")[4].encode().decode("unicode_escape")
        found.append((target, rest.split(" ", 1)[0]))
    return found


def unmount(target: str) -> None:
    if _libc.umount2(os.fsencode(target), MNT_DETACH):
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), target)


def unmount_below(path: str) -> None:
    """Detach every mount at or below `path`, the last made first."""
    for target, _ in reversed(mounts()):
        if target == path or target.startswith(path.rstrip("/") + "/"):
            unmount(target)


def _directory(entry: Entry, _: Path) -> str:
    path = os.path.realpath(entry["path"])
    if path == "/" or len(Path(path).parts) < 2:
        raise ValueError(f"refusing to remove {path}")
    if os.path.isdir(path):
        unmount_below(path)  # or removing the tree would empty whatever is still mounted in it
        _remove_tree(Path(path), entry.get("spare", ()), frozenset(entry.get("known", ())))
    return f"removed {'what is ours in ' if entry.get('known') else ''}{path}"


def _remove_tree(path: Path, spare: Collection[Path], known: Collection[str]) -> None:
    """Remove a folder, but for the trees to spare in it, the paths known from before, and the way to both."""
    for child in path.iterdir():
        if child in spare:
            continue
        if child.is_dir() and not child.is_symlink():
            _remove_tree(child, spare, known)
        elif str(child) not in known:
            child.unlink()
    if str(path) not in known and not any(path.iterdir()):
        path.rmdir()


def _file(entry: Entry, backups: Path) -> str:
    path = Path(entry["path"])
    if entry.get("backup"):
        kept = backups / entry["backup"]
        if not kept.exists():
            return f"{path} was restored before"
        if path.parent.is_dir():
            shutil.copy2(kept, path)
        return f"restored {path}"
    path.unlink(missing_ok=True)
    return f"removed {path}"


def _symlink(entry: Entry, _: Path) -> str:
    path = entry["path"]
    if os.path.islink(path):
        os.unlink(path)
    if entry.get("old") and not os.path.lexists(path):
        os.symlink(entry["old"], path)
    return f"removed link {path}"


def _mount(entry: Entry, _: Path) -> str:
    unmount_below(entry["target"])
    return f"unmounted {entry['target']}"


def _cgroup(entry: Entry, _: Path) -> str:
    path = entry["path"]
    tops = [target for target, kind in mounts() if kind in ("cgroup", "cgroup2")]
    places = [path] if any(path.startswith(top + "/") for top in tops) else [f"{top}/{path.strip('/')}" for top in tops]
    for place in places:
        for folder, _children, _files in os.walk(place, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
    return f"removed control group {path}"


def _link(entry: Entry, _: Path) -> str:
    with rtnetlink.RtNetlink() as netlink:
        if entry.get("prefix"):
            names = [n for n in netlink.link_names() if n.startswith(entry["prefix"])]
        else:
            names = [entry["name"]]
        netlink.send([rtnetlink.delete_link(name) for name in names], ignore=GONE)
    return f"removed link {entry.get('name') or entry['prefix'] + '*'}"


def _route(entry: Entry, _: Path) -> str:
    with rtnetlink.RtNetlink() as netlink:
        index = 0
        if entry.get("device"):
            try:
                index = netlink.link(entry["device"])[0]
            except OSError as error:
                if error.errno in GONE:
                    return f"route to {entry['destination']} went with {entry['device']}"
                raise
        if entry["destination"] == "*":
            ownroutes.remove_all(netlink)
        else:
            message = rtnetlink.delete_route(entry["destination"], index, entry.get("gateway") or "",
                                             entry.get("protocol") or 0)
            netlink.send([message], ignore=GONE)
    return f"removed route to {entry['destination']}"


def _address(entry: Entry, _: Path) -> str:
    with rtnetlink.RtNetlink() as netlink:
        try:
            index = netlink.link(entry["device"])[0]
        except OSError as error:
            if error.errno not in GONE:
                raise
        else:
            netlink.send([rtnetlink.delete_address(entry["address"], index)], ignore=GONE)
    return f"removed address {entry['address']}"


def _sysctl(entry: Entry, _: Path) -> str:
    path = Path("/proc/sys") / entry["key"]
    if path.exists():  # a setting of one link goes with the link
        path.write_text(entry["old"] + "\n")
    return f"restored sysctl {entry['key'].replace('/', '.')} = {entry['old']}"


def _iptables(entry: Entry, _: Path) -> str:
    count = xtables.remove_chains(entry["prefix"], entry.get("family", 4))
    for table in entry.get("absent") or ():
        xtables.drop_if_empty(table, entry.get("family", 4))
    return f"removed {count} iptables chains {entry['prefix']}*"


def _nftables(entry: Entry, _: Path) -> str:
    nftables.delete(entry["table"])
    return f"removed nf_tables table {entry['table']}"


def _netns(entry: Entry, _: Path) -> str:
    folder = Path("/run/netns")
    paths = [folder / entry["name"]] if entry.get("name") else list(folder.glob(entry["prefix"] + "*"))
    for path in paths:
        unmount(str(path))
        path.unlink(missing_ok=True)
    return f"removed network namespace {entry.get('name') or entry['prefix'] + '*'}"


def _package(entry: Entry, _: Path) -> str:
    """Remove a Debian package, unless something that came later needs it: then it is no longer ours to remove.

    `along` names the packages installed in the same go, which may need each other; `known` says that its configuration
    was there before, and stays."""
    name = entry["name"]
    if shutil.which("apt-get") is None:
        return f"package {name} is gone, and apt with it"
    state = _state(name)
    if not state or state.startswith("un"):
        return f"package {name} went with another"  # and apt, without lists, would not even know the name
    if state.endswith("R"):
        return _torn(name)
    planned = [line.split()[1] for line in _apt("-s", "remove", name).splitlines() if line.startswith("Remv ")]
    others = sorted(set(planned) - {name, *entry.get("along", ())})
    if others:
        return f"kept package {name}: {', '.join(others)} needs it now"
    if planned:
        _apt("remove" if entry.get("known") else "purge", "-y", name)
    return f"removed package {name}"


def _state(name: str) -> str:
    """dpkg's letters for a package: "ii" is installed, "un" not at all, a third letter R half unpacked; "" unknown."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", name], capture_output=True, text=True,
                          timeout=PACKAGE_TIMEOUT, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _torn(name: str) -> str:
    """Remove what dpkg was killed at: apt would want it whole first."""
    command = ["dpkg", "--purge", "--force-remove-reinstreq", "--force-depends", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT, check=False)
    if done.returncode:
        raise Finding(f"dpkg could not remove {name}", done.stderr.strip()[-500:], " ".join(command))
    return f"removed package {name}"


def _user(entry: Entry, _: Path) -> str:
    """Remove a system user, and its group where that is left over."""
    for command in (["userdel", entry["name"]], ["groupdel", entry["name"]]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT, check=False)
        if done.returncode not in (0, NO_SUCH_NAME):
            raise Finding(f"{command[0]} could not remove {entry['name']}", done.stderr.strip(), " ".join(command))
    return f"removed user {entry['name']}"


def _apt(*arguments: str) -> str:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT, check=False,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
    if done.returncode:
        raise Finding(f"apt-get could not remove {arguments[-1]}", done.stderr.strip()[-500:], " ".join(command))
    return done.stdout


STEPS: dict[str, Callable[[Entry, Path], str]] = {
    "directory": _directory, "file": _file, "symlink": _symlink, "mount": _mount, "cgroup": _cgroup, "link": _link,
    "route": _route, "address": _address, "sysctl": _sysctl, "iptables": _iptables, "nftables": _nftables,
    "netns": _netns, "package": _package, "user": _user,
}
