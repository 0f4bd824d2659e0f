"""Priority: the number behind a Pod's priority class, or behind the default class; and one default class at most.

Owns the two system classes' numbers, which hold even before their objects exist. Reads PriorityClasses through an
`Index`, so a Pod without a class costs one look-up. Called by the admission chain.

Upstream: plugin/pkg/admission/priority.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.index import Index
from controlplane.apiserver.reading.lists import object_key
from controlplane.machinery.resources import named
from controlplane.machinery.validate.policies import SYSTEM_PRIORITIES

CLASSES = "priorityclasses.scheduling.k8s.io"
PREEMPTS = "PreemptLowerPriority"
Object = dict[str, Any]


class Priority(Plugin):
    """Pods get `priority` and `preemptionPolicy` when they are created; nobody may claim another number."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._defaults: Index[Object | None] = Index(
            context.cache, CLASSES, lambda item: item.obj if item.obj.get("globalDefault") else None)

    async def mutate(self, attributes: Attributes) -> None:
        if attributes.obj is None or not attributes.concerns("pods", CREATE):
            return
        spec: Object = attributes.obj.setdefault("spec", {})
        name, value, policy = self._class_of(spec.get("priorityClassName") or "", attributes)
        if spec.get("priority") not in (None, value):
            raise attributes.forbidden(f"the integer value of priority ({spec['priority']}) must not be provided in "
                                       f"pod spec; priority admission controller computed {value} from the given "
                                       "PriorityClass name")
        if spec.get("preemptionPolicy") not in (None, policy):
            raise attributes.forbidden("the string value of PreemptionPolicy (" + spec["preemptionPolicy"] + ") must "
                                       f"not be provided in pod spec; priority admission controller computed {policy} "
                                       "from the given PriorityClass name")
        if name:
            spec["priorityClassName"] = name
        spec["priority"], spec["preemptionPolicy"] = value, policy

    def _class_of(self, name: str, attributes: Attributes) -> tuple[str, int, str]:
        """Name, number and preemption policy. Raises Forbidden."""
        if not name:
            marked = [c for c in self._defaults.of() if c is not None]
            if not marked:
                return "", 0, PREEMPTS
            chosen = min(marked, key=lambda c: c.get("value") or 0)  # a race may leave two: the humbler one holds
            return chosen["metadata"]["name"], chosen.get("value") or 0, chosen.get("preemptionPolicy") or PREEMPTS
        item = self.context.cache.get(object_key(named(CLASSES), "", name))
        if item is not None:
            return name, item.obj.get("value") or 0, item.obj.get("preemptionPolicy") or PREEMPTS
        if name in SYSTEM_PRIORITIES:
            return name, SYSTEM_PRIORITIES[name], PREEMPTS
        raise attributes.forbidden(f"no PriorityClass with name {name} was found")

    async def validate(self, attributes: Attributes) -> None:
        if attributes.obj is None or not attributes.concerns(CLASSES, CREATE, UPDATE) \
                or not attributes.obj.get("globalDefault"):
            return
        for marked in self._defaults.of():
            if marked is not None and marked["metadata"]["name"] != attributes.obj["metadata"]["name"]:
                raise attributes.forbidden(f"PriorityClass {marked['metadata']['name']} is already marked as default. "
                                           "Only one default can exist")
