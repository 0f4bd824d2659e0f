"""How full the volumes behind claims and those of storage drivers are: what drivers say, or the file system.

Owns one question per volume; promises that a volume nobody can measure is left out, and that one which hangs delays
nobody for ever. Called by `stats` and by the metrics, which ask no more than once a minute.

Upstream: pkg/kubelet/server/stats/volume_stat_calculator.go.
"""

from __future__ import annotations

from typing import Any

from agent.kubelet.env import ConfigError
from agent.kubelet.pressure import signals
from agent.kubelet.volumes import persistent
from agent.kubelet.volumes.claims import Claims, claim_name
from agent.kubelet.volumes.csi import CsiVolumes
from agent.kubelet.volumes.patience import within
from controlplane.machinery.errors import ApiError

Object = dict[str, Any]


class VolumeStats:
    def __init__(self, claims: Claims, csi: CsiVolumes) -> None:
        self._claims, self._csi = claims, csi

    async def of(self, pod: Object) -> list[Object]:
        """An entry for each: `name` in the pod, `pvcRef` when it is a claim's, and bytes and inodes by their names in
        /stats/summary."""
        published = {data["specVolID"]: (folder, data) for folder, data in self._csi.published(pod["metadata"]["uid"])}
        told = []
        for volume in pod["spec"].get("volumes") or ():
            claim = claim_name(pod, volume)
            if not claim and not volume.get("csi"):
                continue
            try:
                found = await self._one(pod, volume, claim, published)
            except (ConfigError, ApiError, OSError):
                continue
            if found:
                about = {"pvcRef": {"name": claim, "namespace": pod["metadata"]["namespace"]}} if claim else {}
                told.append({"name": volume["name"], **about, **found})
        return told

    async def _one(self, pod: Object, volume: Object, claim: str, published: dict[str, Any]) -> Object | None:
        name = volume["name"]
        if claim:
            claimed = await self._claims.resolve(pod, volume)
            name = claimed.volume["metadata"]["name"]
            if persistent.kind_of(claimed.volume) == "local" and not claimed.block:
                return shown(*await within(name, signals.filesystem, claimed.volume["spec"]["local"]["path"]))
        return await self._csi.usage(*published[name]) if name in published else None


def shown(space: signals.Reading, inodes: signals.Reading) -> Object:
    """A file system by the names of /stats/summary."""
    return {"availableBytes": space.available, "capacityBytes": space.capacity,
            "usedBytes": space.capacity - space.available, "inodesFree": inodes.available, "inodes": inodes.capacity,
            "inodesUsed": inodes.capacity - inodes.available}
