"""What every pod worker shares: the runtime, the images, the API, this node and its folders.

A plain record without behaviour beyond events; built once by `agent.__main__` (or a test) and handed to each worker.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.admit import Place
from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.compute.cpumanager import CpuManager
from agent.kubelet.compute.userns import UserNamespaces
from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.cri.turns import Turns
from agent.kubelet.devices.devices import Devices
from agent.kubelet.images.credentials import Credentials
from agent.kubelet.images.images import Images
from agent.kubelet.model import DNS
from agent.kubelet.probing.checks import Checks
from agent.kubelet.probing.prober import PARALLEL
from agent.kubelet.specs import Node
from agent.kubelet.volumes.manager import Volumes
from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock


@dataclass(slots=True)
class Context:
    node: Node
    runtime: Runtime
    images: Images
    client: Client
    recorder: Recorder
    clock: Clock
    volumes: Volumes
    cgroups: Cgroups
    services: Informer
    checks: Checks
    place: Callable[[], Place] = lambda: Place("")  # this node as pods ask for it
    others: Callable[[str], list[dict[str, Any]]] = lambda uid: []  # active pods of this node but the one with `uid`
    resolvers: Callable[[], DNS] | None = None  # whom this host asks now; None: as `node` says
    credentials: Credentials | None = None  # this node's own, for every pod
    # Waits until what policies say of a pod with these addresses holds, where this agent keeps policies.
    isolated: Callable[[dict[str, Any], Collection[str]], Awaitable[None]] | None = None
    cpus: CpuManager | None = None  # where containers may have CPUs of their own
    probing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # of containers: type, exit code, reason
    turns: Turns = field(init=False)
    users: UserNamespaces = field(init=False)
    devices: Devices = field(init=False)

    def __post_init__(self) -> None:
        self.users = UserNamespaces(self.node.root / "pods", *self.node.subordinate)
        self.turns = Turns(self.clock, self.node.cpu / 1000)
        self.devices = Devices(self.node, self.client, self.clock)

    def tell(self, pod: dict[str, Any], kind: str, reason: str, message: str, container: str = "",
             annotations: dict[str, str] | None = None) -> None:
        """An event about the pod, or about one of its containers."""
        meta = pod["metadata"]
        about = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "namespace": meta.get("namespace", ""),
                 "uid": meta["uid"]}
        if meta.get("resourceVersion"):
            about["resourceVersion"] = meta["resourceVersion"]
        if container:
            group = next((g for g in ("initContainers", "ephemeralContainers")
                          if any(c["name"] == container for c in pod["spec"].get(g) or ())), "containers")
            about["fieldPath"] = f"spec.{group}{{{container}}}"
        self.recorder.event(about, kind, reason, message, annotations)
