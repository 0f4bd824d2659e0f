"""The kubelet's cgroups: /kubepods, the QoS classes and one group per pod, made before and removed after the pod.

Owns their names (cgroupfs paths or systemd slices) and their limits, on cgroup v2 and v1: a handful of writes to a
kernel file system, or where systemd keeps the groups, what `slices` asks of it. Promises: `make` and `remove` are
idempotent and never touch a group outside the prefix. Containers' own groups belong to the runtime. Called by `steps`,
`resizer`, `sweep` and `housekeeping`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.kubelet.compute.resources import PERIOD, page, pod_resources, shares
from agent.kubelet.compute.slices import Slices, v2_weight
from agent.kubelet.model import LinuxResources
from controlplane.machinery.podresources import qos_class

log = logging.getLogger(__name__)

MOUNT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "cpuacct", "blkio", "devices", "freezer", "hugetlb", "net_cls",
                  "net_prio", "perf_event", "rdma", "misc", "unified", "systemd")
V2_WANTED = ("cpu", "memory", "pids", "cpuset", "io", "hugetlb")
PAGES = Path("/sys/kernel/mm/hugepages")  # a folder `hugepages-2048kB` for each size

_POD = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$")


def cgroup_parent(pod: dict[str, Any], prefix: str, *, systemd: bool) -> str:
    """The pod's cgroup as CRI wants it: a path for cgroupfs, a slice name for systemd. `prefix` is such as `kubepods`;
    a nested one (`a/kubepods`) is for cgroupfs only."""
    uid, kind = pod["metadata"]["uid"], qos_class(pod["spec"]).lower()
    if systemd:
        middle = "" if kind == "guaranteed" else f"-{kind}"
        return f"{prefix}{middle}-pod{uid.replace('-', '_')}.slice"
    middle = "" if kind == "guaranteed" else f"/{kind}"
    return f"/{prefix}{middle}/pod{uid}"


def _slice_path(name: str) -> str:
    """Where systemd keeps a slice: `a-b.slice` is `a.slice/a-b.slice`."""
    parts = name.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[:i + 1]) + ".slice" for i in range(len(parts)))


class Cgroups:
    """The pod groups of one kubelet. `pids` bounds the processes of each pod, 0 = not at all."""

    def __init__(self, prefix: str = "kubepods", *, systemd: bool = False, mount: Path = MOUNT, pids: int = 0) -> None:
        self.prefix, self.systemd, self.mount, self.pids = prefix, systemd, mount, pids
        self.v2 = (mount / "cgroup.controllers").exists()
        self._slices = Slices(v2=self.v2)
        self.pages = self._pages()
        self.unbounded: Callable[[str], bool] = lambda uid: False  # pods that no quota of CPU time holds up

    def _pages(self) -> tuple[str, ...]:
        """The sizes of huge pages whose use can be limited, as the kernel names them."""
        counted = "hugetlb" in (self.mount / "cgroup.controllers").read_text().split() if self.v2 \
            else self._mounted("hugetlb")
        sizes = [int(path.name.removeprefix("hugepages-").removesuffix("kB")) for path in PAGES.glob("hugepages-*")]
        return tuple(page(size << 10) for size in sorted(sizes)) if counted else ()

    def unified(self) -> tuple[tuple[str, str], ...]:
        """What containers have on version 2: out of memory, all processes of one end together; and where the kernel
        counts swap, none of it is used, as long as nobody can ask for it."""
        if not self.v2:
            return ()
        swap = (("memory.swap.max", "0"),) if any(self.mount.glob("*/memory.swap.max")) else ()
        return (("memory.oom.group", "1"), *swap)

    def parent(self, pod: dict[str, Any]) -> str:
        return cgroup_parent(pod, self.prefix, systemd=self.systemd)

    async def make(self, pod: dict[str, Any], limits: LinuxResources | None = None) -> str:
        """Make the pod's group with its limits and return its name for the runtime. OSError when the kernel or systemd
        refuses."""
        parent, limits = self.parent(pod), limits or pod_resources(pod)
        huge = {**dict.fromkeys(self.pages, 0), **dict(limits.hugepages)}
        limits = replace(limits, pids=self.pids, hugepages=tuple(huge.items()))
        await self._make({parent: replace(limits, cpu_quota=0) if self.unbounded(pod["metadata"]["uid"]) else limits})
        return parent

    async def _make(self, wanted: dict[str, LinuxResources]) -> None:
        if self.systemd:
            await self._slices.set(wanted)
        for name, limits in wanted.items():
            if not self.systemd:
                (self._make_v2 if self.v2 else self._make_v1)(name, limits)
            path = _slice_path(name) if self.systemd else name.strip("/")
            if self.systemd and self.v2 and limits.hugepages:
                self._hand_down(path, ("hugetlb",))  # of which systemd knows nothing
            for size, limit in limits.hugepages:
                if self.v2:
                    _write(self.mount / path / f"hugetlb.{size}.max", str(limit))
                else:
                    _write(self.mount / "hugetlb" / path / f"hugetlb.{size}.limit_in_bytes", str(limit))

    def _make_v2(self, parent: str, limits: LinuxResources) -> None:
        folder = self.mount / parent.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        self._hand_down(parent.strip("/"), V2_WANTED)
        _write(folder / "cpu.weight", str(v2_weight(limits.cpu_shares)))
        _write(folder / "cpu.max", f"{limits.cpu_quota or 'max'} {limits.cpu_period or PERIOD}")
        _write(folder / "memory.max", str(limits.memory_limit or "max"))
        _write(folder / "pids.max", str(limits.pids or "max"))

    def _hand_down(self, path: str, controllers: Iterable[str]) -> None:
        """Of the controllers those that there are, from the mount to the group at `path` and what is made in it."""
        for part in (*reversed(Path(path).parents), Path(path)):
            folder = self.mount / part
            with contextlib.suppress(OSError):
                offered = (folder / "cgroup.controllers").read_text().split()
                given = (folder / "cgroup.subtree_control").read_text().split()
                for name in controllers:
                    if name in offered and name not in given:
                        _write(folder / "cgroup.subtree_control", f"+{name}")

    def _make_v1(self, parent: str, limits: LinuxResources) -> None:
        relative = parent.strip("/")
        for controller in ("cpu", "memory", "pids", "hugetlb"):
            if self._mounted(controller):
                (self.mount / controller / relative).mkdir(parents=True, exist_ok=True)
        cpu = self.mount / "cpu" / relative
        if limits.cpu_shares:
            _write(cpu / "cpu.shares", str(limits.cpu_shares))
        if limits.cpu_quota:
            _write(cpu / "cpu.cfs_period_us", str(limits.cpu_period))
        _write(cpu / "cpu.cfs_quota_us", str(limits.cpu_quota or -1))
        _write(self.mount / "memory" / relative / "memory.limit_in_bytes", str(limits.memory_limit or -1))
        _write(self.mount / "pids" / relative / "pids.max", str(limits.pids or "max"))

    def _mounted(self, controller: str) -> bool:
        """Whether version 1 has it: a folder alone, which systemd leaves for what it cannot mount, is no hierarchy."""
        return (self.mount / controller / "cgroup.procs").exists()

    @property
    def top(self) -> str:
        """Where the group of all pods lies below the mount."""
        return _slice_path(f"{self.prefix}.slice") if self.systemd else self.prefix

    def folder(self, pod: dict[str, Any], container: str = "") -> str:
        """Where the pod's group, or that of the container with this id, lies below the mount (v1: a controller's)."""
        parent = self.parent(pod)
        top = _slice_path(parent) if self.systemd else parent.strip("/")
        if not container:
            return top
        if not self.systemd:
            return f"{top}/{container}"
        scope = f"{top}/cri-containerd-{container}.scope"
        inner = f"{scope}/container"  # crun leaves the scope to systemd, and gives the container one in it
        return inner if (self.mount / inner).is_dir() else scope

    def pids_of(self, pod: dict[str, Any]) -> int:
        """Processes and threads of the pod; 0 when its group is not to be found."""
        folder = (self.mount if self.v2 else self.mount / "pids") / self.folder(pod)
        try:
            return int((folder / "pids.current").read_text())
        except (OSError, ValueError):
            return 0

    def memory_of(self, pod: dict[str, Any], container: str) -> int:
        """Bytes the container (the pod, with "") uses and the kernel could not drop; 0 when its group is not to be
        found."""
        return self.working_set(self.folder(pod, container))

    def working_set(self, path: str) -> int:
        """The same of the group at `path` below the mount."""
        folder = (self.mount if self.v2 else self.mount / "memory") / path
        try:
            used = int((folder / ("memory.current" if self.v2 else "memory.usage_in_bytes")).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return used - int(stat.get("inactive_file" if self.v2 else "total_inactive_file", 0))
        except (OSError, ValueError):
            return 0

    def orphans(self, known: Callable[[str], bool], before: float) -> list[str]:
        """Uids of the pods that are not known and have groups here made `before` (seconds since the epoch): younger
        ones may be those of another kubelet on this host that is just starting a pod."""
        found = set()
        for top in self._tops():
            for place in {(top / name).parent for name in self._names("x")}:
                for path in place.iterdir() if place.is_dir() else ():
                    with contextlib.suppress(FileNotFoundError):
                        if (match := _POD.search(path.name)) and path.stat().st_mtime < before:
                            found.add(match[1].replace("_", "-"))
        return sorted(uid for uid in found if not known(uid))

    async def hold(self, cpu: int, memory: int, pids: int = 0) -> None:
        """Hold all pods together to so many milli-cores by weight, and so many bytes and processes by limit (0: no
        limit)."""
        await self._make({self._class(): LinuxResources(cpu_shares=shares(cpu), memory_limit=memory, pids=pids)})

    async def weigh(self, burstable: int) -> None:
        """Weigh the groups of the two lower classes: the milli-cores all Burstable pods ask for, and next to none."""
        await self._make({self._class(name): LinuxResources(cpu_shares=shares(milli))
                          for name, milli in (("burstable", burstable), ("besteffort", 0))})

    def _class(self, name: str = "") -> str:
        """The group of all pods, or of those of one class."""
        if self.systemd:
            return f"{self.prefix}{name and '-'}{name}.slice"
        return f"/{self.prefix}{name and '/'}{name}"

    async def remove(self, uid: str) -> None:
        """Remove the pod's group wherever it is; nothing when there is none or something still lives in it."""
        if self.systemd:
            await self._end(path for path in self._names(uid) if any((top / path).is_dir() for top in self._tops()))
        for top in self._tops():
            for name in self._names(uid):
                _remove_tree(top / name)

    async def clear(self) -> None:
        """Remove the groups above the pods, where no pod is left: those that systemd keeps, as it would for ever."""
        def idle(path: str) -> bool:
            folders = [top / path for top in self._tops() if (top / path).is_dir()]
            return bool(folders) and not any(entry.is_dir() for folder in folders for entry in folder.iterdir())
        if self.systemd:
            for name in ("besteffort", "burstable", ""):
                path = _slice_path(self._class(name))
                await self._end([path] if idle(path) else [])

    async def _end(self, paths: Iterable[str]) -> None:
        """Have systemd end the slices at these paths, with what is left in them."""
        try:
            await self._slices.end([path.rpartition("/")[2] for path in paths])
        except OSError as error:
            log.warning("systemd does not end the groups of pods that are gone: %s", error)

    def _tops(self) -> list[Path]:
        """Every hierarchy that is mounted."""
        return [self.mount] if self.v2 else [self.mount / c for c in V1_CONTROLLERS if (self.mount / c).is_dir()]

    def _names(self, uid: str) -> list[str]:
        if self.systemd:
            flat = uid.replace("-", "_")
            return [_slice_path(f"{self.prefix}{q}-pod{flat}.slice") for q in ("", "-burstable", "-besteffort")]
        return [f"{self.prefix}{q}/pod{uid}" for q in ("", "/burstable", "/besteffort")]


def _write(path: Path, text: str) -> None:
    """Passes over a file that is not there: this kernel lacks the controller, or systemd, who does not know all of
    them, hands it not down so far. (In control groups no file can be made, so that opening one is forbidden.)"""
    try:
        path.write_text(text)
    except OSError:
        if path.exists():
            raise


def _remove_tree(folder: Path) -> None:
    """rmdir bottom-up: files of a cgroup are not removable, only the folders are."""
    if not folder.is_dir():
        return
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
