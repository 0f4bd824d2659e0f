"""The devices that drivers publish in ResourceSlices, and which of them a request means. Pure.

Owns `Inventory`: the newest complete slices of each pool, and the devices a node can reach. A device is asked about by
CEL selectors over `device.driver`, `.attributes` and `.capacity`; the answer is remembered as long as the device stays
as it is. Promises to offer no device of a pool that is only half published. Called by `allocation` and `claims`.

Upstream: k8s.io/dynamic-resource-allocation/{structured,cel}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from controlplane.machinery import objects, placement, quantity
from controlplane.machinery.cel import expression as cel
from controlplane.scheduler.snapshot import NodeInfo

ANSWERS = 16_384  # answers of selectors remembered: 128 devices of each of a hundred nodes
_DOMAINS = re.compile(r"""\.(attributes|capacity)\s*\[\s*(?:"([^"]*)"|'([^']*)')\s*\]""")
_VARIABLES = (("device", "MAP"),)
Obj = dict[str, Any]
Id = tuple[str, str, str]  # driver, pool, device


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """`place` has the fields that say which nodes reach it: nodeName, nodeSelector or allNodes."""

    driver: str
    pool: str
    name: str
    given: Obj
    place: Mapping[str, Any]
    blob: bytes

    @property
    def id(self) -> Id:
        return self.driver, self.pool, self.name

    def attribute(self, name: str) -> Any:
        """The value of a fully qualified attribute, with its type; None when the device has none."""
        found = self.given.get("attributes") or {}
        domain, _, short = name.rpartition("/")
        value = found.get(name) or (found.get(short) if domain == self.driver else None)
        return next(((kind, repr(one)) for kind, one in value.items()), None) if value else None

    def consumes(self) -> Iterable[tuple[str, str, int]]:
        """(counter set, counter, amount) it takes of what its pool's devices share."""
        for part in self.given.get("consumesCounters") or ():
            for name, counter in (part.get("counters") or {}).items():
                yield part["counterSet"], name, quantity.parse(str(counter["value"])).nano


@dataclass(slots=True)
class Pool:
    generation: int = -1
    slices: list[Obj] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.slices) == self.slices[0]["spec"]["pool"].get("resourceSliceCount", 1)


class Inventory:
    def __init__(self, slices: Iterable[Obj]) -> None:
        pools: dict[tuple[str, str], Pool] = {}
        for one in slices:
            spec = one["spec"]
            pool = pools.setdefault((spec["driver"], spec["pool"]["name"]), Pool())
            generation = spec["pool"].get("generation", 0)
            if generation > pool.generation:
                pool.generation, pool.slices = generation, []
            if generation == pool.generation:
                pool.slices.append(one)
        self.devices: dict[Id, Device] = {}
        self.shared: dict[tuple[str, str, str, str], int] = {}  # driver, pool, counter set, counter -> amount
        self._local: dict[str, list[Device]] = {}
        self._wide: list[Device] = []
        self._half: list[Mapping[str, Any]] = []  # places of slices whose pool is not complete
        for key in sorted(pools):
            self._read(*key, pools[key])

    def _read(self, driver: str, name: str, pool: Pool) -> None:
        for one in sorted(pool.slices, key=objects.name):
            spec = one["spec"]
            if not pool.complete:
                self._half.append(spec)
                continue
            for counters in spec.get("sharedCounters") or ():
                for counter, value in (counters.get("counters") or {}).items():
                    amount = quantity.parse(str(value["value"])).nano
                    self.shared[driver, name, counters["name"], counter] = amount
            for given in spec.get("devices") or ():
                place = given if spec.get("perDeviceNodeSelection") else spec
                made = Device(driver, name, given["name"], given, place, orjson.dumps(given))
                self.devices[made.id] = made
                node = place.get("nodeName")
                (self._local.setdefault(node, []) if node else self._wide).append(made)

    def at(self, node: NodeInfo) -> list[Device]:
        """The devices the node can reach, in a fixed order: its own before those it shares."""
        return [*self._local.get(node.name, ()), *(one for one in self._wide if reaches(one.place, node))]

    def whole(self, node: NodeInfo) -> bool:
        """Whether all pools the node reaches are published in full."""
        return not any(reaches(place, node) for place in self._half)


def reaches(place: Mapping[str, Any], node: NodeInfo) -> bool:
    if place.get("allNodes"):
        return True
    if place.get("nodeName"):
        return bool(place["nodeName"] == node.name)
    return placement.takes(place.get("nodeSelector"), node)


def tolerated(device: Device, tolerations: list[Obj]) -> bool:
    return placement.untolerated(tolerations, device.given.get("taints") or []) is None


def roomy(device: Device, wanted: Mapping[str, Any]) -> bool:
    """Whether the device's capacities are at least those wanted."""
    have = device.given.get("capacity") or {}
    return all(name in have and quantity.parse(str(have[name]["value"])).nano >= quantity.parse(str(value)).nano
               for name, value in wanted.items())


# --- selectors ---------------------------------------------------------------------------------------------------

@lru_cache(ANSWERS)
def matches(expression: str, driver: str, blob: bytes) -> bool:
    """Whether a selector takes a device, given as it is in its slice. Raises ValueError when it cannot be judged."""
    found = cel.compile_(expression, _VARIABLES).evaluate({"device": _shown(expression, driver, blob)}, cel.Budget())
    if not isinstance(found, bool):
        raise ValueError(f"must evaluate to bool, not {type(found).__name__}")
    return found


def _shown(expression: str, driver: str, blob: bytes) -> Obj:
    """The device as an expression sees it: by domain and name; a domain it asks for is there, if only empty."""
    from controlplane.machinery.cel import library
    given = orjson.loads(blob)
    parts: dict[str, dict[str, Obj]] = {"attributes": {}, "capacity": {}}
    for kind, one, other in _DOMAINS.findall(expression):
        parts[kind].setdefault(one or other, {})
    parts["attributes"].setdefault(driver, {})
    parts["capacity"].setdefault(driver, {})
    for name, value in (given.get("attributes") or {}).items():
        domain, _, short = name.rpartition("/")
        parts["attributes"].setdefault(domain or driver, {})[short] = _plain(value)
    for name, value in (given.get("capacity") or {}).items():
        domain, _, short = name.rpartition("/")
        parts["capacity"].setdefault(domain or driver, {})[short] = library.parse_quantity(str(value["value"]))
    return {"driver": driver, **parts, "allowMultipleAllocations": bool(given.get("allowMultipleAllocations"))}


def _plain(value: Mapping[str, Any]) -> Any:
    from controlplane.machinery.cel import library
    if "version" in value:
        return library.parse_semver(value["version"])
    if "versions" in value:
        return [library.parse_semver(one) for one in value["versions"]]
    return next(iter(value.values()), None)
