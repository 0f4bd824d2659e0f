"""ClusterRoles that gather the rules of others by label: `admin`, `edit`, `view`, and whatever users make.

Promises that the rules of such a role are exactly those of the ClusterRoles its selectors match, each once, in the
order of their names, soon after any of them changes; rules somebody writes into it by hand go. Called by `manager`.

Upstream: pkg/controller/clusterroleaggregation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.controllers.runtime import Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import named
from controlplane.machinery.selectors import from_label_selector

CLUSTER_ROLES = named("clusterroles.rbac.authorization.k8s.io")
Obj = dict[str, Any]


def gathered(role: Obj, roles: Iterable[Obj]) -> list[Obj]:
    """The rules a role that aggregates should have. Pure."""
    found: list[Obj] = []
    for selector in (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or ():
        matches = from_label_selector(selector).matches
        for other in sorted(roles, key=objects.name):
            if objects.name(other) != objects.name(role) and matches(objects.labels(other)):
                found += [rule for rule in other.get("rules") or () if rule not in found]
    return found


class RoleAggregation(Controller):
    name = "clusterrole-aggregation-controller"

    def __init__(self, context: Context) -> None:
        self.roles = context.informers.of(CLUSTER_ROLES, indexes={"aggregating": _aggregating})
        super().__init__(context, self.roles)
        self.roles.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "MODIFIED" and old is not None and all(
                old.get(f) == new.get(f) for f in ("rules", "aggregationRule")) \
                and objects.labels(old) == objects.labels(new):
            return
        for role in self.roles.by("aggregating", "yes"):
            self.queue.add(objects.name(role))

    async def reconcile(self, name: str) -> float | None:
        role = self.roles.get("", name)
        if role is None or objects.deleting(role) or not role.get("aggregationRule"):
            return None
        rules = gathered(role, self.roles.items())
        if rules == (role.get("rules") or []):
            return None
        patch = {"metadata": {"uid": objects.uid(role)}, "rules": rules}
        try:
            await self.client.patch(CLUSTER_ROLES, name, patch, kind="merge")
        except NotFound:
            pass  # it went meanwhile
        return None


def _aggregating(role: Obj) -> list[str]:
    return ["yes"] if role.get("aggregationRule") else []
