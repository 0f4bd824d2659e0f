"""The volumes of a node's pods, put together: what `manager` needs of the API, and the storage drivers' list.

Owns nothing but the wiring. Called once by the agent; tests build what they need themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.kubelet.admit import Place
from agent.kubelet.volumes.claims import Claims
from agent.kubelet.volumes.csi import CsiVolumes
from agent.kubelet.volumes.csidrivers import StorageDrivers
from agent.kubelet.volumes.imagevolumes import ImageVolumes
from agent.kubelet.volumes.manager import Volumes
from agent.kubelet.volumes.mounts import Mounts
from agent.kubelet.volumes.objects import Objects
from agent.kubelet.volumes.tokens import Tokens
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock
from cri_proto.client import Connection

if TYPE_CHECKING:
    from agent.kubelet.volumes.podcertificates import PodCertificates


def build(root: Path, node: str, client: Client, clock: Clock, objects: Objects, place: Callable[[], Place],
          owner: Callable[[], dict[str, Any] | None], containerd: Connection | None,
          outside: Path | None = None) -> tuple[Volumes, StorageDrivers]:
    """The volumes, and the list of storage drivers. `place()` is the node as volumes ask for it, `owner()` its owner
    reference, None before it is registered; `containerd` is the runtime when it is that one; `outside` is `root` as
    storage drivers know it."""
    drivers = StorageDrivers(node, client, owner)
    mounts = Mounts()
    images = ImageVolumes(containerd, mounts, clock) if containerd is not None else None
    tokens = Tokens(client, clock)
    volumes = Volumes(root, objects, tokens, mounts, images=images, claims=Claims(client, place),
                      csi=CsiVolumes(root, node, client, drivers.socket, tokens, outside, mounts, clock))

    def certify() -> PodCertificates:
        from agent.kubelet.volumes.podcertificates import PodCertificates
        return PodCertificates(client, clock, node, owner)

    volumes.certify = certify
    return volumes, drivers
