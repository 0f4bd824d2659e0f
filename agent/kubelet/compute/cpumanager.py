"""CPUs of their own for containers: who has which, kept over restarts, and what is left for all others.

Owns the static CPU manager policy: a container of a Guaranteed pod that asks for whole CPUs gets them to itself, and
the shared pool of everybody else shrinks by them; reserved CPUs always stay in the pool. Promises that assignments
outlive the agent by their file, that no CPU is given twice, and that running containers follow the pool. Choosing is
pure; the rest is a file and the runtime's update. Called by `kubelet`, `steps` and `housekeeping`.

Upstream: pkg/kubelet/cm/cpumanager (policy_static.go, cpu_assignment.go).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from agent.kubelet.compute.resources import milli
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.model import LinuxResources, ObservedPod
from agent.kubelet.restarts import is_sidecar
from controlplane.machinery import files
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.podresources import qos_class, whole

log = logging.getLogger(__name__)
FILE = "cpu_manager_state"
STATIC, NONE = "static", "none"
RECONCILE_SECONDS = 10.0  # upstream's
SYSTEM_CPUS = Path("/sys/devices/system/cpu")
Cpus = frozenset[int]


def parse(text: str) -> Cpus:
    """`0-1,4` as a set. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def listed(cpus: Iterable[int]) -> str:
    """The set as the kernel lists it."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def wanted(pod: dict[str, Any], container: dict[str, Any]) -> int:
    """How many CPUs the container gets to itself; 0 when it shares."""
    spec, asked = pod["spec"], milli(container.get("resources"), "limits", "cpu") or 0
    return asked // 1000 if asked % 1000 == 0 and not whole(spec) and qos_class(spec) == "Guaranteed" else 0


def take(count: int, free: Cpus, cores: Mapping[int, tuple[int, int]]) -> Cpus:
    """`count` of the free CPUs: whole cores first, then from cores that are already divided. `cores` is the (socket,
    core) of each CPU. Raises ValueError when there are too few."""
    if count > len(free):
        raise ValueError(f"not enough cpus available to satisfy request: requested={count}, available={len(free)}")
    together: dict[tuple[int, int], list[int]] = {}
    for cpu, core in sorted(cores.items()):
        together.setdefault(core, []).append(cpu)
    taken: list[int] = []
    for _, cpus in sorted(together.items()):
        if free.issuperset(cpus) and len(cpus) <= count - len(taken):
            taken += cpus
    rest = sorted(free.difference(taken), key=lambda c: (len(free.intersection(together[cores[c]])), cores[c], c))
    return frozenset(taken + rest[:count - len(taken)])


def assign(pod: dict[str, Any], free: Cpus, cores: Mapping[int, tuple[int, int]]) -> dict[str, Cpus]:
    """The CPUs of each container that gets its own. Init containers use those of the containers after them. Raises
    ValueError when there are too few."""
    spec, made = pod["spec"], dict[str, Cpus]()
    init = spec.get("initContainers") or ()
    for container in [*(c for c in init if is_sidecar(c)), *spec["containers"]]:
        if count := wanted(pod, container):
            made[container["name"]] = take(count, free, cores)
            free -= made[container["name"]]
    own: Cpus = frozenset().union(*(made[c["name"]] for c in spec["containers"] if c["name"] in made))
    for container in init:
        if not is_sidecar(container) and (count := wanted(pod, container)):
            more = max(0, count - len(own))
            made[container["name"]] = take(count - more, own, cores) | take(more, free, cores)
    return made


def topology(root: Path = SYSTEM_CPUS) -> dict[int, tuple[int, int]]:
    """(socket, core) of every CPU that is online."""
    def number(cpu: int, name: str) -> int:
        return int((root / f"cpu{cpu}/topology" / name).read_text())
    return {cpu: (number(cpu, "physical_package_id"), number(cpu, "core_id"))
            for cpu in parse((root / "online").read_text())}


class CpuManager:
    """`reserved` CPUs are given to nobody alone. Raises Finding when the kept state is of another machine."""

    def __init__(self, root: Path, cores: Mapping[int, tuple[int, int]], reserved: Cpus, clock: Clock) -> None:
        self._file, self._cores, self._reserved, self._clock = root / FILE, cores, reserved, clock
        self._given: dict[str, dict[str, Cpus]] = {}  # pod uid -> container -> CPUs
        self._applied: dict[str, str] = {}  # container id -> CPUs, as the runtime was told
        self._load()

    def _load(self) -> None:
        try:
            kept = orjson.loads(self._file.read_bytes())
            given = {uid: {name: parse(cpus) for name, cpus in each.items()} for uid, each in kept["entries"].items()}
            known = parse(kept["defaultCpuSet"]).union(*(c for each in given.values() for c in each.values()))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Finding(f"{self._file} cannot be read", str(error), "drain this node and delete the file") from error
        if known != frozenset(self._cores):
            raise Finding(f'current set of available CPUs "{listed(self._cores)}" doesn\'t match with CPUs in state '
                          f'"{listed(known)}"', "the machine has changed",
                          f"drain this node and delete {self._file}")
        self._given = given

    def _save(self) -> None:
        entries = {uid: {name: listed(cpus) for name, cpus in each.items()} for uid, each in self._given.items()}
        files.write(self._file, orjson.dumps({"policyName": STATIC, "defaultCpuSet": listed(self.shared),
                                              "entries": entries}))

    @property
    def shared(self) -> Cpus:
        """The pool of all that have none of their own."""
        return frozenset(self._cores).difference(*(c for each in self._given.values() for c in each.values()))

    def admit(self, pod: dict[str, Any], alive: Callable[[str], bool]) -> tuple[str, str] | None:
        """Give the pod its CPUs; else the reason and message of its failure. What pods have that are not `alive` is
        free."""
        uid = pod["metadata"]["uid"]
        self._release(alive)
        try:
            made = assign(pod, self.shared - self._reserved, self._cores)
        except ValueError as error:
            return "UnexpectedAdmissionError", f"Allocate failed due to {error}, which is unexpected"
        if made:
            self._given[uid] = made
            self._save()
        return None

    def _release(self, alive: Callable[[str], bool]) -> None:
        gone = [uid for uid in self._given if not alive(uid)]
        for uid in gone:
            del self._given[uid]
        if gone:
            self._save()

    def exclusive(self, uid: str, name: str = "") -> bool:
        """Whether the container, or any of the pod, has CPUs of its own: then no quota holds it up on them."""
        return name in self._given.get(uid, {}) if name else uid in self._given

    @property
    def assignable(self) -> Cpus:
        """What containers may get to themselves as long as nobody has any."""
        return frozenset(self._cores) - self._reserved

    def own(self, uid: str, name: str) -> Cpus:
        """The CPUs that the container has to itself."""
        return self._given.get(uid, {}).get(name, frozenset())

    def of(self, uid: str, name: str) -> str:
        """The CPUs the container may run on."""
        return listed(self._given.get(uid, {}).get(name) or self.shared)

    def fit(self, limits: LinuxResources, uid: str, name: str) -> dict[str, Any]:
        """What is different of a container's limits."""
        return {"cpus": self.of(uid, name), "cpu_quota": 0 if self.exclusive(uid, name) else limits.cpu_quota}

    async def run(self, seen: Callable[[], Iterable[tuple[dict[str, Any], ObservedPod]]], alive: Callable[[str], bool],
                  update: Callable[[str, LinuxResources], Awaitable[None]]) -> None:
        """Have running containers follow the pool, until cancelled."""
        while True:
            self._release(alive)
            await self.reconcile(seen(), update)
            await self._clock.sleep(RECONCILE_SECONDS)

    async def reconcile(self, seen: Iterable[tuple[dict[str, Any], ObservedPod]],
                        update: Callable[[str, LinuxResources], Awaitable[None]]) -> None:
        """Tell the runtime what differs from what it was told."""
        before, self._applied = self._applied, {}
        for pod, observed in seen:
            for container in observed.containers:
                if container.state != "running":
                    continue
                cpus = self.of(pod["metadata"]["uid"], container.name)
                try:
                    if before.get(container.id) != cpus:
                        await update(container.id, LinuxResources(cpus=cpus))
                    self._applied[container.id] = cpus
                except CallError as error:  # the next round tries again
                    log.warning("cannot set the CPUs of container %s: %s", container.name, error)
