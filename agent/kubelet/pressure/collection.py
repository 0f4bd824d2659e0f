"""Removes images nobody uses when the disk fills up, and dead containers when it is short.

Owns when an image was last used, as far as this process has seen. Promises that an image is only removed when no
container of this node has it and no pod wants it, that what could not be had again stays – images the runtime pins, and
imported ones, which no registry has told a digest of –, and that images go in the order they were last used. Looks
every five minutes. Run by the agent; `eviction` calls `reclaim`.

Upstream: pkg/kubelet/images/image_gc_manager.go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from agent.image.reference import ImageError, normalise
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.images.images import Image, Images
from agent.kubelet.model import ObservedPod
from agent.kubelet.plan import finished, of_pod
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.signals import filesystem
from agent.kubelet.pressure.thresholds import Reading
from controlplane.machinery.clock import Clock

log = logging.getLogger(__name__)
LOOK_SECONDS = 300.0  # upstream's
Seen = tuple[dict[str, Any], ObservedPod]


@dataclass(slots=True)
class Known:
    """When an image came to be known, and when it was last in use; seconds since the epoch."""

    came: float
    used: float = 0.0


def names(image: Image) -> set[str]:
    return {image.id, *image.tags, *image.digests}


def wanted(pods: Iterable[Seen]) -> set[str]:
    """What containers and pods call the images they need."""
    found: set[str] = set()
    for pod, seen in pods:
        found |= {name for c in seen.containers for name in (c.image, c.image_id) if name}
        for container in of_pod(pod):
            try:
                found.add(normalise(container.get("image") or ""))
            except ImageError:
                continue  # no such image can be here
    return found


def keeps(image: Image) -> bool:
    """Whether the image stays whoever uses it."""
    return image.pinned or not image.digests


def too_much(space: Reading, high: int, low: int) -> int:
    """Bytes to free to come from above `high` per cent down to `low`; 0 when that is not needed."""
    if not space.capacity or 100 - space.available * 100 // space.capacity < high:
        return 0
    return max(0, space.capacity * (100 - low) // 100 - space.available)


def chosen(images: Iterable[Image], used: set[str], known: dict[str, Known], now: float, age: float) -> list[Image]:
    """The images that may go, the one that was not used for longest first."""
    idle = [i for i in images if not keeps(i) and not names(i) & used and i.id in known
            and now - known[i.id].came >= age]
    return sorted(idle, key=lambda i: (known[i.id].used, known[i.id].came))


class Collector:
    """`pods()` is every pod of this node with what the runtime has of it, `tell(reason, message)` an event of the
    node, `remove(id)` removes a container."""

    def __init__(self, keeping: Keeping, images: Images, pods: Callable[[], Iterable[Seen]],
                 remove: Callable[[str], Awaitable[None]], tell: Callable[[str, str], None], clock: Clock) -> None:
        self._keeping, self._images, self._pods = keeping, images, pods
        self._remove, self._tell, self._clock = remove, tell, clock
        self._known: dict[str, Known] = {}
        self.place, self.size = "", 0  # where images lie, and how many bytes they take

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except (OSError, CallError, ImageError) as error:
                log.warning("cannot collect images: %s", error)
            await self._clock.sleep(self._clock.jitter(LOOK_SECONDS, 0.1))

    async def look(self) -> None:
        """Remember who is used, and make room when the disk is too full."""
        used, present = await self._note()
        place, self.size = await self._images.filesystem()
        self.place = place or self.place
        if not self.place:
            return
        excess = too_much(filesystem(self.place)[0], self._keeping.image_high, self._keeping.image_low)
        if not excess:
            return
        freed = await self._free(used, present, excess)
        if freed < excess:
            self._tell("FreeDiskSpaceFailed", f"Failed to garbage collect required amount of images. Attempted to free "
                                              f"{excess} bytes, but only found {freed} bytes eligible to free.")

    async def reclaim(self, resource: str) -> None:
        """Clear what no pod needs: dead containers of ended pods, then every unused image."""
        for pod, seen in list(self._pods()):
            if finished(pod, seen):
                for container in seen.containers:
                    if container.state == "exited":
                        await self._remove(container.id)
        await self._free(*await self._note())

    async def _note(self) -> tuple[set[str], list[Image]]:
        now, used = self._clock.now(), wanted(self._pods())
        present = await self._images.list()
        self._known = {i.id: self._known.get(i.id, Known(now)) for i in present}
        for image in present:
            if names(image) & used:
                self._known[image.id].used = now
        return used, present

    async def _free(self, used: set[str], present: list[Image], excess: int | None = None) -> int:
        """Remove images until `excess` bytes are free (None: all that may go); bytes freed."""
        freed = 0
        for image in chosen(present, used, self._known, self._clock.now(), self._keeping.image_age):
            if excess is not None and freed >= excess:
                break
            log.info("removing image %s, which nobody uses", next(iter(image.tags), image.id))
            await self._images.remove(image.id)
            freed += image.size
        return freed
