"""Nobody grants what they do not hold: the check behind every write of a role or a binding.

Owns that one rule: who writes a role must hold all of its rules, or the verb `escalate`; who writes a binding must hold
all rules of the role it names, or the verb `bind`. An update that changes no grant is not checked, so that owners and
controllers may touch the metadata. Reads roles through the authorizer's index. Called by the admission chain.

Upstream: pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.authentication.user import MASTERS
from controlplane.apiserver.authorization import access
from controlplane.machinery import rbac
from controlplane.machinery.errors import Forbidden, NotFound
from controlplane.machinery.rbac import Rule

GROUP = "rbac.authorization.k8s.io"
ALL = (Rule(("*",), ("*",), ("*",)), Rule(("*",), urls=("*",)))
Object = dict[str, Any]


class RoleEscalation(Plugin):
    async def validate(self, attributes: Attributes) -> None:
        if attributes.resource.group != GROUP or attributes.operation not in (CREATE, UPDATE):
            return
        authorizer = self.context.authorizer
        if authorizer is None or attributes.obj is None or MASTERS in attributes.user.groups:
            return
        new, old = attributes.obj, attributes.old or {}
        if attributes.resource.plural in ("roles", "clusterroles"):
            self._role(attributes, new, old)
        elif any((new.get(field) or None) != (old.get(field) or None) for field in ("roleRef", "subjects")):
            self._binding(attributes, new)

    def _may(self, attributes: Attributes, verb: str, plural: str, name: str) -> bool:
        asked = access.Attributes(attributes.user, verb, GROUP, "v1", plural, "", attributes.namespace, name)
        return bool(self.context.authorizer.decide(asked).allowed)

    def _role(self, attributes: Attributes, new: Object, old: Object) -> None:
        aggregation = new.get("aggregationRule")
        if (new.get("rules") or []) == (old.get("rules") or []) and aggregation == old.get("aggregationRule"):
            return
        if self._may(attributes, "escalate", attributes.resource.plural, attributes.name):
            return
        self._confirm(attributes, rbac.of_role(new))
        if aggregation:
            try:
                self._confirm(attributes, ALL)
            except Forbidden:
                raise attributes.forbidden("must have cluster-admin privileges to use an aggregationRule") from None

    def _binding(self, attributes: Attributes, new: Object) -> None:
        role = new["roleRef"]
        plural = "roles" if role["kind"] == "Role" else "clusterroles"
        if self._may(attributes, "bind", plural, role["name"]):
            return
        rules = self.context.authorizer.roles.rules(role, attributes.namespace)
        if rules is None:
            raise NotFound.of(plural, role["name"], GROUP)
        self._confirm(attributes, rules)

    def _confirm(self, attributes: Attributes, wanted: tuple[Rule, ...]) -> None:
        user = attributes.user
        held, faults = self.context.authorizer.rules(user, attributes.namespace)
        lacking = rbac.missing(held, wanted)
        if not lacking:
            return
        listed = "\n".join(sorted({str(rule) for rule in rbac.compact(lacking)}))
        why = (f'user "{user.name}" (groups={rbac.quoted(user.groups)}) is attempting to grant RBAC permissions not '
               f"currently held:\n{listed}")
        raise attributes.forbidden(why + (f"; resolution errors: [{', '.join(faults)}]" if faults else ""))
