"""Which devices there are and who has them: a book that outlives the agent.

Pure: plain values in, plain values out; who reads and writes the file is `manager`. Promises that a device is lent to
one container at a time (but for those of a pod's init containers, which its later containers take over) and that what
was lent stays so until its pod is gone, whatever becomes of its plugin.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery import quantity

HEALTHY = "Healthy"


@dataclass(frozen=True, slots=True)
class Device:
    healthy: bool
    nodes: tuple[int, ...] = ()  # of memory (NUMA), where the plugin tells


@dataclass(frozen=True, slots=True)
class Grant:
    """What a container has of one resource: the devices, and the plugin's answer, a ContainerAllocateResponse."""

    ids: tuple[str, ...]
    answer: bytes = b""
    prepare: bool = False  # the plugin is to be called before each start


Grants = dict[str, Grant]  # by resource


class Refused(Exception):  # noqa: N818 - reads as what happened
    """There are too few devices, or their plugin gives none; the message says why."""


@dataclass(slots=True)
class Book:
    devices: dict[str, dict[str, Device]] = field(default_factory=dict)  # resource -> id -> device
    given: dict[str, dict[str, Grants]] = field(default_factory=dict)  # pod uid -> container -> grants

    def of(self, uid: str, container: str) -> Grants:
        return self.given.get(uid, {}).get(container, {})

    def used(self, resource: str) -> set[str]:
        return {id for each in self.given.values() for grants in each.values() if resource in grants
                for id in grants[resource].ids}

    def holders(self, resource: str) -> set[str]:
        """uids of the pods that have devices of it."""
        return {uid for uid, each in self.given.items() if any(resource in grants for grants in each.values())}

    def amounts(self) -> dict[str, tuple[int, int]]:
        """How many devices there are, and how many of them are healthy, by resource."""
        return {name: (len(found), sum(d.healthy for d in found.values())) for name, found in self.devices.items()}

    def asked(self, container: Mapping[str, Any]) -> dict[str, int]:
        """What a container wants of resources that are devices of this node."""
        limits = (container.get("resources") or {}).get("limits") or {}
        counts = {name: quantity.parse(str(limits[name])).value() for name in sorted(limits) if name in self.devices}
        return {name: count for name, count in counts.items() if count}

    def choose(self, resource: str, count: int, own: Iterable[str] = (), taken: Iterable[str] = (),
               preferred: Iterable[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(those of the pod's `own` devices that are used again, new ones); of the free ones the `preferred` first.
        `taken` are promised already. Raises Refused."""
        again = sorted(self._healthy(resource).intersection(own))[:count]
        wanted, free = count - len(again), self.free(resource, taken)
        if wanted > len(free):
            raise Refused(f"requested number of devices unavailable for {resource}. Requested: {wanted}, "
                          f"Available: {len(free)}")
        liked = [id for id in dict.fromkeys(preferred) if id in free]
        return tuple(again), tuple([*liked, *sorted(free.difference(liked))][:wanted])

    def free(self, resource: str, taken: Iterable[str]) -> set[str]:
        """The healthy devices nobody has, and that are not promised already."""
        return self._healthy(resource) - self.used(resource) - set(taken)

    def _healthy(self, resource: str) -> set[str]:
        return {id for id, device in self.devices.get(resource, {}).items() if device.healthy}

    def release(self, alive: Callable[[str], bool]) -> bool:
        """Take back what pods have that are not alive; whether there was anything."""
        gone = [uid for uid in self.given if not alive(uid)]
        for uid in gone:
            del self.given[uid]
        return bool(gone)

    def health(self, uid: str) -> dict[str, list[dict[str, Any]]]:
        """`allocatedResourcesStatus` of each container of a pod."""
        return {container: [{"name": name, "resources": [{"resourceID": id, "health": self._word(name, id)}
                                                         for id in sorted(grant.ids)]}
                            for name, grant in sorted(grants.items())]
                for container, grants in self.given.get(uid, {}).items()}

    def _word(self, resource: str, id: str) -> str:
        device = self.devices.get(resource, {}).get(id)
        return "Unknown" if device is None else HEALTHY if device.healthy else "Unhealthy"

    # --- on disk

    def encode(self) -> dict[str, Any]:
        return {"devices": {name: sorted(found) for name, found in self.devices.items()},
                "given": {uid: {container: {name: {"ids": grant.ids, "prepare": grant.prepare,
                                                   "answer": base64.b64encode(grant.answer).decode()}
                                            for name, grant in grants.items()} for container, grants in each.items()}
                          for uid, each in self.given.items()}}

    @classmethod
    def decode(cls, kept: dict[str, Any]) -> Book:
        """Nothing is healthy until its plugin says so again. Raises KeyError, TypeError or ValueError."""
        return cls({name: dict.fromkeys(ids, Device(False)) for name, ids in kept["devices"].items()},
                   {uid: {container: {name: Grant(tuple(g["ids"]), base64.b64decode(g["answer"]), g["prepare"])
                                      for name, g in grants.items()} for container, grants in each.items()}
                    for uid, each in kept["given"].items()})
