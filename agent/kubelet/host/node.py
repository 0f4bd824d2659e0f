"""This host as a Node of the cluster: registered, its status told, its lease renewed.

Owns the Node object's status and the Lease in kube-node-lease. Promises a patch only when something changed or every
five minutes, a lease renewed every ten seconds, a Node that is made again when somebody deletes it, and Ready only
while the runtime and its network are: a runtime that goes is told within seconds. Waits for `spec.podCIDR` and
hands it on, again when it changes. Called by `agent.__main__`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.image.reference import ImageError
from agent.kubelet.admit import Place
from agent.kubelet.cri.runtime import CallError, Runtime
from agent.kubelet.host import nodestatus
from agent.kubelet.host.nodestatus import Health, Host
from agent.kubelet.host.registration import Registration
from agent.kubelet.images.images import Images
from agent.kubelet.model import Features
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.victims import binary
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import AlreadyExists, ApiError, NotFound
from controlplane.machinery.resources import named

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS, RENEW_SECONDS = 40, 10.0  # upstream's: four missed renewals and the node is not ready
CHECK_SECONDS = 30.0  # between looks at images and the runtime's own word, while all is well
AWAY_SECONDS = 2.0  # a runtime that is back by then was only restarted; pods of a node not ready leave their Services
REPORT_SECONDS = 300.0  # a status is patched this often even without change
RETRY_FIRST, RETRY_LIMIT = 0.3, 7.0  # the fourth try falls behind AWAY_SECONDS
NODES, LEASES = named("nodes"), named("leases.coordination.k8s.io")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _hugepages() -> tuple[tuple[str, int], ...]:
    """Bytes of huge pages set aside, by resource."""
    found = {"hugepages-1Gi": 0, "hugepages-2Mi": 0}
    for folder in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) << 10
        found[f"hugepages-{binary(size)}"] = size * int(_text(f"{folder}/nr_hugepages") or 0)
    return tuple(sorted(found.items()))


def describe_host(name: str, ips: tuple[str, ...], root: Path, runtime_version: str, port: int,
                  keeping: Keeping | None = None, features: Features | None = None, cloud: str | None = None,
                  registration: Registration | None = None) -> Host:
    """Read what this machine is."""
    memory = next((int(line.split()[1]) * 1024 for line in _text("/proc/meminfo").splitlines()
                   if line.startswith("MemTotal:")), 0)
    released = dict(line.split("=", 1) for line in _text("/etc/os-release").splitlines() if "=" in line)
    folder = os.statvfs(root)
    machine = platform.machine()
    return Host(name=name, ips=ips, cpus=os.cpu_count() or 1, memory=memory, disk=folder.f_blocks * folder.f_frsize,
                kernel=platform.release(), os_image=released.get("PRETTY_NAME", "Linux").strip('"'),
                architecture=ARCHITECTURES.get(machine, machine), machine_id=_text("/etc/machine-id"),
                system_uuid=_text("/sys/class/dmi/id/product_uuid") or _text("/etc/machine-id"),
                boot_id=_text("/proc/sys/kernel/random/boot_id"), runtime_version=runtime_version, port=port,
                hugepages=_hugepages(), keeping=keeping or Keeping(), features=features or Features(),
                cloud=cloud, registration=registration or Registration())


class NodeAgent:
    """`assigned(pod_cidr)` is awaited when the node has its range, and again when that becomes another."""

    def __init__(self, host: Host, client: Client, runtime: Runtime, images: Images, clock: Clock,
                 nodes: Informer, assigned: Callable[[str], Awaitable[None]], pod_cidr: str = "",
                 sysctls: tuple[str, ...] = ()) -> None:
        self.host = host
        self.pressures: Callable[[], frozenset[str]] = frozenset  # conditions of the node that hold now
        self.problem: Callable[[], str] = str  # what keeps the node from being reached, "" = nothing
        self.closing: Callable[[], bool] = bool  # whether the host is about to go down
        self.volumes: Callable[[], list[str]] = list  # of storage drivers, mounted here
        self.devices: Callable[[], dict[str, tuple[int, int]]] = dict  # by resource: how many, how many healthy
        self._client, self._runtime, self._images, self._clock = client, runtime, images, clock
        self._nodes, self._assigned, self._pod_cidr = nodes, assigned, pod_cidr
        self._sysctls = sysctls
        self._labels: dict[str, str] = {}
        self._known: dict[str, Any] = {}
        self._fixed = bool(pod_cidr)
        self._uid = ""
        self._lease: dict[str, Any] | None = None
        self._told_at = 0.0
        self._away_since = math.inf  # when the runtime was first found not to be there
        self._wake = asyncio.Event()
        self._range = asyncio.Event()
        self.registered = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._nodes.subscribe(self._heard)
            group.create_task(self._statuses(), name="node status")
            group.create_task(self._leases(), name="node lease")
            if self._pod_cidr:
                self._range.set()
            while True:  # a Node that is made anew may be given another range
                await self._range.wait()
                self._range.clear()
                await self._assigned(self._pod_cidr)
                self.check()

    @property
    def place(self) -> Place:
        """This node as the pods bound to it ask for it; its own reckoning until the API has told."""
        allocatable = self._known.get("allocatable") or nodestatus.allocatable(self.host)
        return Place(self.host.name, self._labels or nodestatus.labels(self.host), allocatable, self._sysctls,
                     pressures=self.pressures(), closing=self.closing(), devices=frozenset(self.devices()))

    @property
    def owner(self) -> dict[str, Any] | None:
        """The owner reference of what belongs to this node; None before it is registered."""
        return {"apiVersion": "v1", "kind": "Node", "name": self.host.name, "uid": self._uid,
                "controller": True} if self._uid else None

    def reassign(self) -> None:
        """Have `assigned` awaited again, when what it sets up depends on more than the range."""
        if self._pod_cidr:
            self._range.set()

    def check(self) -> None:
        """Look at the node's health now, not at the next interval."""
        self._wake.set()

    def _heard(self, kind: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if new is None or kind == "DELETED":
            self._uid, self._known = "", {}
            self._wake.set()
            return
        self._known = new.get("status") or {}
        self._uid = new["metadata"]["uid"]
        self._labels = new["metadata"].get("labels") or {}
        spec = new.get("spec") or {}
        cidr = ",".join(spec.get("podCIDRs") or [spec.get("podCIDR") or ""])
        if cidr and cidr != self._pod_cidr and not self._fixed:
            self._pod_cidr = cidr
            self._range.set()

    # --- status

    async def _statuses(self) -> None:
        """Register, then patch when something changed; woken by `check` and at intervals, which are short while the API
        or the runtime is away."""
        delay = RETRY_FIRST
        while True:
            self._wake.clear()
            well = False
            try:
                well = await self._tell()
            except ApiError as error:
                log.log(logging.WARNING if delay == RETRY_FIRST else logging.DEBUG,
                        "cannot tell the API of this node: %s", error.message)
            pause = CHECK_SECONDS if well else delay
            delay = RETRY_FIRST if well else min(delay * 2, RETRY_LIMIT)
            try:
                async with asyncio.timeout(self._clock.jitter(pause, 0.1)):
                    await self._wake.wait()
                delay = RETRY_FIRST
            except TimeoutError:
                pass

    async def _tell(self) -> bool:
        """Whether runtime and network are well."""
        now = self._clock.timestamp()
        if not self._uid or not self.registered.is_set():  # the watch may tell of the Node before we asked for it
            await self._register(await self.health(), now)
        health = await self.health()  # after a restart the API has just told of the pods' range
        clock = self._clock.monotonic()
        self._away_since = min(self._away_since, clock) if health.runtime else math.inf
        if health.runtime and clock - self._away_since < AWAY_SECONDS:
            return False
        status = nodestatus.status(self.host, health, now, self._known)
        if clock - self._told_at >= REPORT_SECONDS or nodestatus.differs(self._known, status):
            await self._patch(status)
        return not (health.runtime or health.network)

    async def _patch(self, status: dict[str, Any]) -> None:
        try:
            answer = await self._client.patch(NODES, self.host.name, nodestatus.patch(self._known, status),
                                              subresource="status")
        except NotFound:
            self._uid = ""
            self._wake.set()
            return
        self._known = answer.get("status") or {}
        self._told_at = self._clock.monotonic()

    async def _register(self, health: Health, now: str) -> None:
        """Make the Node, or take over the one there is with our labels."""
        wanted = nodestatus.node(self.host, now, health)
        try:
            made = await self._client.create(NODES, wanted)
            log.info("registered node %s", self.host.name)
        except AlreadyExists:
            made = await self._client.get(NODES, self.host.name)
            has = made["metadata"].get("labels") or {}
            missing = {k: v for k, v in nodestatus.labels(self.host).items() if has.get(k) != v}
            if missing:
                made = await self._client.patch(NODES, self.host.name, {"metadata": {"labels": missing}})
        self._heard("ADDED", None, made)
        self.registered.set()

    async def health(self) -> Health:
        """How this node is now."""
        runtime = network = ""
        images: tuple[tuple[tuple[str, ...], int], ...] = ()
        try:
            conditions = await self._runtime.status()
            good, reason, message = conditions.get("RuntimeReady", (False, "", "no RuntimeReady condition"))
            runtime = "" if good else (f"container runtime not ready: RuntimeReady=false reason:{reason} "
                                       f"message:{message}")
            good, _, message = conditions.get("NetworkReady", (True, "", ""))
            network = "" if good else message or "unknown"
            images = tuple(((*i.digests, *i.tags), i.size) for i in await self._images.list() if i.tags or i.digests)
        except (CallError, ImageError) as error:
            runtime = runtime or f"container runtime is down: {error}"
        if not network and not self._pod_cidr:
            network = "this node has no pod range yet"
        return Health(runtime=runtime, network=network, pressures=self.pressures(), volumes=tuple(self.volumes()),
                      images=images, closing=self.closing(), unreachable=self.problem(),
                      devices=tuple((name, *counts) for name, counts in sorted(self.devices().items())))

    # --- lease

    async def _leases(self) -> None:
        """Renew for ever; a failure is tried again soon, since four missed renewals make the node unreachable."""
        await self.registered.wait()
        while True:
            try:
                await self._renew()
                pause = RENEW_SECONDS
            except ApiError as error:
                log.debug("cannot renew the node lease: %s", error.message)
                self._lease = None
                pause = self._clock.jitter(1.0)
            await self._clock.sleep(pause)

    async def _renew(self) -> None:
        spec = {"holderIdentity": self.host.name, "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": self._clock.micro_timestamp()}
        if self._lease is None:
            try:
                self._lease = await self._client.get(LEASES, self.host.name, LEASE_NAMESPACE)
            except NotFound:
                owner = {"apiVersion": "v1", "kind": "Node", "name": self.host.name, "uid": self._uid}
                self._lease = await self._client.create(LEASES, {
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
                    "metadata": {"name": self.host.name, "namespace": LEASE_NAMESPACE,
                                 "ownerReferences": [owner] if self._uid else []}}, LEASE_NAMESPACE)
                return
        self._lease = await self._client.update(LEASES, {**self._lease, "spec": {**(self._lease.get("spec") or {}),
                                                                                **spec}})
