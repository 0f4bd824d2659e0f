"""A few objects of one kind, made ready for every request and kept current by the watch cache itself.

Owns, per namespace, what `make` gave for each stored object of one resource (quotas, limits, webhooks, policies). It
promises that asking costs one dictionary look-up while nothing changes, next to nothing while there are no such objects
at all, and that a change holds from the moment its write is answered. Never writes. Called by admission plugins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from controlplane.store.cache import Cache, prefix_of

if TYPE_CHECKING:
    from controlplane.store.item import Event, Item

T = TypeVar("T")


class Index(Generic[T]):
    """`resource` is a resource's name (`limitranges`); `make` must not raise. It is filled at the first question."""

    def __init__(self, cache: Cache, resource: str, make: Callable[[Item], T]) -> None:
        self._cache, self._resource, self._make = cache, resource, make
        self._followed = self._any = False
        self._made: dict[str, tuple[T, ...]] = {}

    def of(self, namespace: str = "") -> tuple[T, ...]:
        """What was made of the objects of a namespace (of all of them when ""), in the order of their keys."""
        if not self._any:
            if self._followed:
                return ()
            self._follow()
        found = self._made.get(namespace)
        if found is None:
            items = self._cache.list(prefix_of(self._resource, namespace))
            found = self._made[namespace] = tuple(self._make(item) for item in items)
        return found

    def _follow(self) -> None:
        self._followed = True
        self._cache.observe(prefix_of(self._resource), self._changed)
        self._any = self._cache.count(prefix_of(self._resource)) > 0

    def _changed(self, event: Event) -> None:
        self._made.pop("", None)
        namespace: Any = event.item.key.split("/")[1:-1]
        if namespace:
            self._made.pop(namespace[0], None)
        self._any = self._cache.count(prefix_of(self._resource)) > 0
        if not self._any:
            self._made.clear()
