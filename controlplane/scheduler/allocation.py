"""Which devices of a node satisfy ResourceClaims together: a search that steps back when it is stuck. Pure.

Owns the meaning of a claim's requests (counts, `All`, the first available alternative, administrators' access) and
constraints (one attribute alike or different), and the shape of the result. Promises that no device is given out twice,
that shared counters are never overdrawn, and that it ends: after STEPS it gives up. Called by `claims`.

Upstream: k8s.io/dynamic-resource-allocation/structured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects
from controlplane.scheduler import devices
from controlplane.scheduler.devices import Device, Id, Inventory
from controlplane.scheduler.snapshot import NodeInfo

STEPS = 10_000  # devices tried for the claims of one pod on one node: a fraction of a second
RESULTS = 32  # devices of one claim: the API's limit
Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One request or alternative. `name` is `request` or `request/alternative`; `given` has the fields of both."""

    name: str
    given: Mapping[str, Any]
    device_class: Obj

    @property
    def selectors(self) -> list[str]:
        listed = [*(objects.get(self.device_class, "spec.selectors", None) or ()), *(self.given.get("selectors") or ())]
        return [one["cel"]["expression"] for one in listed if one.get("cel")]

    @property
    def admin(self) -> bool:
        return bool(self.given.get("adminAccess"))

    @property
    def all(self) -> bool:
        return self.given.get("allocationMode") == "All"

    def takes(self, device: Device) -> bool:
        """Raises ValueError when a selector cannot be judged."""
        return devices.tolerated(device, self.given.get("tolerations") or []) and devices.roomy(
            device, (self.given.get("capacity") or {}).get("requests") or {}) and all(
            devices.matches(text, device.driver, device.blob) for text in self.selectors)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A claim without devices; `requests` are lists of alternatives."""

    claim: Obj
    requests: list[list[Request]]


@dataclass(slots=True)
class Given:
    number: int  # of the claim
    request: Request
    device: Device


class Search:
    """One try for the claims of one pod on one node; `taken` are the devices others have."""

    def __init__(self, wanted: Sequence[Wanted], node: NodeInfo, inventory: Inventory, taken: Set[Id]) -> None:
        self._wanted, self._node = wanted, node
        self._devices, self._whole = inventory.at(node), inventory.whole(node)
        self._taken = set(taken)
        self._slots = [(number, alternatives) for number, one in enumerate(wanted) for alternatives in one.requests]
        self._given: list[Given] = []
        self._left = dict(inventory.shared)
        for taken_id in taken:
            if device := inventory.devices.get(taken_id):
                self._draw(device, 1)
        self._steps = 0

    def run(self) -> list[Obj] | None:
        """An `allocation` per claim; None when the node has not enough. Raises ValueError for a selector that fails."""
        if not self._slot(0):
            return None
        return [self._result(number) for number in range(len(self._wanted))]

    def _slot(self, at: int) -> bool:
        if at == len(self._slots):
            return True
        number, alternatives = self._slots[at]
        for request in alternatives:
            fitting = [device for device in self._devices if request.takes(device)]
            if not request.all:
                if self._choose(at, number, request, fitting, 0, request.given.get("count") or 1):
                    return True
            elif fitting and self._whole and self._everything(at, number, request, fitting):
                return True
        return False

    def _choose(self, at: int, number: int, request: Request, fitting: list[Device], start: int, left: int) -> bool:
        if not left:
            return self._slot(at + 1)
        for index in range(start, len(fitting) - left + 1):
            if self._add(number, request, fitting[index]):
                if self._choose(at, number, request, fitting, index + 1, left - 1):
                    return True
                self._drop()
        return False

    def _everything(self, at: int, number: int, request: Request, fitting: list[Device]) -> bool:
        before = len(self._given)
        if all(self._add(number, request, device) for device in fitting) and self._slot(at + 1):
            return True
        while len(self._given) > before:
            self._drop()
        return False

    def _add(self, number: int, request: Request, device: Device) -> bool:
        self._steps += 1
        if self._steps > STEPS or sum(one.number == number for one in self._given) >= RESULTS:
            return False
        if not request.admin and (device.id in self._taken or not self._affordable(device)):
            return False
        if any(one.device is device and one.request.admin == request.admin and one.number == number
               for one in self._given) or not self._allowed(number, request, device):
            return False
        self._given.append(Given(number, request, device))
        if not request.admin:
            self._taken.add(device.id)
            self._draw(device, 1)
        return True

    def _drop(self) -> None:
        last = self._given.pop()
        if not last.request.admin:
            self._taken.discard(last.device.id)
            self._draw(last.device, -1)

    def _draw(self, device: Device, sign: int) -> None:
        for counters, name, amount in device.consumes():
            key = (device.driver, device.pool, counters, name)
            self._left[key] = self._left.get(key, 0) - sign * amount

    def _affordable(self, device: Device) -> bool:
        return all(self._left.get((device.driver, device.pool, counters, name), 0) >= amount
                   for counters, name, amount in device.consumes())

    def _allowed(self, number: int, request: Request, device: Device) -> bool:
        """Whether the claim's constraints let the device stand beside those chosen."""
        for rule in objects.get(self._wanted[number].claim, "spec.devices.constraints", None) or ():
            if not _concerns(rule, request.name):
                continue
            alike = rule.get("matchAttribute")
            value = device.attribute(alike or rule.get("distinctAttribute") or "")
            others = [one.device.attribute(alike or rule["distinctAttribute"]) for one in self._given
                      if one.number == number and _concerns(rule, one.request.name)]
            if value is None or (any(other != value for other in others) if alike else value in others):
                return False
        return True

    # --- the result --------------------------------------------------------------------------------------------

    def _result(self, number: int) -> Obj:
        mine = [one for one in self._given if one.number == number]
        claim = self._wanted[number].claim
        results = [{"request": one.request.name, "driver": one.device.driver, "pool": one.device.pool,
                    "device": one.device.name, **({"adminAccess": True} if one.request.admin else {}),
                    **({"tolerations": one.request.given["tolerations"]} if one.request.given.get("tolerations")
                       else {})} for one in mine]
        config: list[Obj] = []
        for request in {one.request.name: one.request for one in mine}.values():
            config += [{"source": "FromClass", "requests": [request.name], **part}
                       for part in objects.get(request.device_class, "spec.config", None) or ()]
        config += [{"source": "FromClaim", **part} for part in objects.get(claim, "spec.devices.config", None) or ()
                   if any(_concerns(part, one.request.name) for one in mine)]
        made: Obj = {"devices": {"results": results, **({"config": config} if config else {})}}
        if (selector := self._selector(mine)) is not None:
            made["nodeSelector"] = selector
        return made

    def _selector(self, mine: Sequence[Given]) -> Obj | None:
        """Where the devices can be used; None: everywhere."""
        places = [one.device.place for one in mine]
        if any(place.get("nodeName") for place in places):
            return {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In",
                                                            "values": [self._node.name]}]}]}
        terms = [term for place in places if place.get("nodeSelector") and not place.get("allNodes")
                 for term in place["nodeSelector"]["nodeSelectorTerms"]]
        joined = {field: found for field in ("matchExpressions", "matchFields")
                  if (found := _distinct(part for term in terms for part in term.get(field) or ()))}
        return {"nodeSelectorTerms": [joined]} if joined else None


def _distinct(parts: Any) -> list[Any]:
    found: list[Any] = []
    found.extend(part for part in parts if part not in found)
    return found


def _concerns(rule: Mapping[str, Any], request: str) -> bool:
    """Whether a constraint or configuration is about a request: by its name, or that of its alternatives."""
    names = rule.get("requests") or ()
    return not names or request in names or request.partition("/")[0] in names
