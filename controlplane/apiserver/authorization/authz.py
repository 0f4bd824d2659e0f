"""May they: one question per request, denied unless a rule allows it.

Owns the order of the authorizers (the configured modes: `Node` for kubelets, `RBAC` for whoever roles are bound to);
`access` is the form of question and answer. Promises: an unknown verb, resource or user is denied; `system:masters` is
always allowed; the answer is computed from the watch cache without waiting. It knows nothing of admission, except that
it carries `admit_node` for the chain. Called by the server for every request, and by `reviews`.

Upstream: k8s.io/apiserver/pkg/authorization.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.authentication.user import MASTERS, User
from controlplane.apiserver.authorization import nodeauth
from controlplane.apiserver.authorization.access import Attributes, Decision, refusal
from controlplane.apiserver.authorization.rbac import RoleBook
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request
from controlplane.machinery import rbac, rbacdefaults
from controlplane.machinery.rbac import Rule


class Authorizer:
    """Answers by the modes of `options.authorization_mode`."""

    def __init__(self, context: Context) -> None:
        self._modes = context.options.authorization_mode
        self._nodes = nodeauth.NodeAuthorizer(context)
        self.roles = RoleBook(context.cache)

    def authorize(self, attributes: Attributes) -> None:
        """Return when allowed. Raises Forbidden."""
        decision = self.decide(attributes)
        if not decision.allowed:
            raise refusal(attributes, decision.reason)

    def decide(self, attributes: Attributes) -> Decision:
        """The answer with its reason, as access reviews give it."""
        if MASTERS in attributes.user.groups:
            return Decision(True)
        why = ""
        for mode in self._modes:
            if mode == "AlwaysAllow":
                return Decision(True)
            if mode == "RBAC":
                grants = self.roles.grants(attributes.user, attributes.namespace)
                if allowed := grants.why(attributes):
                    return Decision(True, allowed)
                if grants.faults:
                    why = why or f"RBAC: {_joined(grants.faults)}"
            if mode == "Node" and nodeauth.node_of(attributes.user):
                why = self._nodes.fault(attributes)
                if not why:
                    return Decision(True)
                if why == nodeauth.NO_RULE:
                    why = ""
        return Decision(False, why)

    def rules(self, user: User, namespace: str) -> tuple[list[Rule], list[str]]:
        """Everything a user's roles allow in a namespace, and what could not be resolved."""
        if "AlwaysAllow" in self._modes:
            return [rbac.parse("* [*] *"), rbac.parse("* URL *")], []
        rules: list[Rule] = []
        if nodeauth.node_of(user) and "Node" in self._modes:
            rules += rbacdefaults.node_rules()
        if "RBAC" not in self._modes:
            return rules, []
        grants = self.roles.grants(user, namespace)
        return rules + [rule for rule, _ in grants.held], grants.faults

    def admit_node(self, request: Request, obj: dict[str, Any] | None, old: dict[str, Any] | None) -> None:
        """NodeRestriction. Raises Forbidden when a node reaches beyond itself and its pods."""
        node = nodeauth.node_of(request.user)
        if node and "Node" in self._modes and MASTERS not in request.user.groups:
            self._nodes.admit(node, request, obj, old)


def _joined(faults: list[str]) -> str:
    """Several errors as one."""
    return faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]"
