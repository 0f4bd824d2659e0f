"""May they: one question per request, denied unless a rule allows it.

Owns the order of the authorizers (the configured modes: `Node` for kubelets, `RBAC` for whoever roles are bound to)
and upstream's wording of a refusal. Promises: an unknown verb, resource or user is denied; `system:masters` is always
allowed; the answer is computed from the watch cache without waiting. It knows nothing of admission, except that it
carries `admit_node` for the chain. Called by the server for every request, and by `reviews`.

Upstream: k8s.io/apiserver/pkg/authorization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlplane.apiserver import nodeauth
from controlplane.apiserver.authn import User
from controlplane.apiserver.context import Context
from controlplane.apiserver.rbac import RoleBook
from controlplane.apiserver.request import Request
from controlplane.machinery import rbac, rbacdefaults
from controlplane.machinery.errors import ApiError, Forbidden
from controlplane.machinery.rbac import Rule
from controlplane.machinery.selectors import parse_fields

MASTERS = "system:masters"


@dataclass(frozen=True, slots=True)
class Attributes:
    """The question. `plural` "" asks about the non-resource `path`. `fields` is the field selector of a list, watch or
    deletecollection, as text: rules about single objects hold for a list narrowed to them."""

    user: User
    verb: str
    group: str = ""
    version: str = ""
    plural: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    fields: str = ""

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    def exact(self, field: str) -> str:
        """The value a field selector pins `field` to, "" when it does not."""
        if not self.fields:
            return ""
        try:
            return parse_fields(self.fields).exact(field) or ""
        except ApiError:
            return ""  # the handler answers 400; until then nothing is pinned

    @property
    def object_name(self) -> str:
        """The one object asked for: by name, or by a selector on metadata.name."""
        return self.name or self.exact("metadata.name")


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""


def attributes_of(request: Request) -> Attributes:
    """The question a request asks. Its user must be set."""
    if not request.is_resource:
        return Attributes(request.user, request.verb, path=request.path)
    where = request.target
    return Attributes(request.user, request.verb, where.group, where.version, where.plural, request.subresource,
                      request.namespace, request.name, request.path,
                      request.query.get("fieldSelector") if not request.name and request.raw_query else "")


def refusal(attributes: Attributes, reason: str = "") -> Forbidden:
    """The 403, worded as upstream words it."""
    a = attributes
    tail = f": {reason}" if reason else ""
    if not a.plural:
        return Forbidden(f'forbidden: User "{a.user.name}" cannot {a.verb} path "{a.path}"{tail}', {})
    where = f'in the namespace "{a.namespace}"' if a.namespace else "at the cluster scope"
    return Forbidden.of(a.plural, a.name, f'User "{a.user.name}" cannot {a.verb} resource "{a.resource}" in API group '
                        f'"{a.group}" {where}{tail}', a.group)


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
            nodeauth.restrict(node, request, obj, old)


def _joined(faults: list[str]) -> str:
    """Several errors as one."""
    return faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]"
