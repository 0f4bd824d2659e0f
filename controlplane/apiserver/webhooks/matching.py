"""Which requests a webhook or an admission policy is meant for. Pure.

Owns the rules (operations, groups, versions, resources with subresources, scope), their equivalence across versions of
a kind, the namespace and object selectors, and the kinds nobody may stand before: the configuration of admission
itself, or a mistake in it could not be mended. Called by the webhooks and by the policies.

Upstream: k8s.io/apiserver/pkg/admission/plugin/webhook/{rules,predicates} and policy/matching.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlplane.machinery import selectors
from controlplane.machinery.resources import Registry, Resource

if TYPE_CHECKING:
    from controlplane.apiserver.admission import Attributes
    from controlplane.machinery.selectors import LabelSelector

GROUP = "admissionregistration.k8s.io"
_EXEMPT = frozenset(f"{plural}.{GROUP}" for plural in (
    "mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies",
    "validatingadmissionpolicybindings", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings"))
Object = dict[str, Any]


def exempt(attributes: Attributes) -> bool:
    """Whether no webhook and no policy is asked about this."""
    return attributes.resource.name in _EXEMPT


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as rules see it."""

    operation: str
    group: str
    version: str
    plural: str
    subresource: str
    name: str
    namespaced: bool

    @classmethod
    def of(cls, attributes: Attributes, resource: Resource) -> Asked:
        """`resource` is the request's own or an equivalent."""
        return cls(attributes.operation, resource.group, resource.version, resource.plural, attributes.subresource,
                   attributes.name, resource.namespaced)


def matches(rule: Object, asked: Asked, version: bool = True) -> bool:
    """Whether a rule covers the request, if asked whatever its `version`. Names (`resourceNames`) count where a rule
    has them."""
    def among(field: str, value: str) -> bool:
        given = rule.get(field) or []
        return "*" in given or value in given

    scope, names = rule.get("scope") or "*", rule.get("resourceNames") or []
    return among("operations", asked.operation) and among("apiGroups", asked.group) \
        and (not version or among("apiVersions", asked.version)) and (not names or asked.name in names) \
        and (scope == "*" or (scope == "Namespaced") == asked.namespaced) \
        and any(_resource(pattern, asked.plural, asked.subresource) for pattern in rule.get("resources") or [])


def _resource(pattern: str, plural: str, subresource: str) -> bool:
    wanted, _, part = pattern.partition("/")
    return wanted in ("*", plural) and (part == subresource or part == "*")


def equivalents(registry: Registry, resource: Resource) -> list[Resource]:
    """The same kind in its other versions."""
    return [other for other in registry
            if (other.group, other.plural) == (resource.group, resource.plural) and other.version != resource.version]


@dataclass(frozen=True, slots=True)
class Matcher:
    """Rules and selectors of one webhook, policy or binding. Without `rules`, any request."""

    rules: tuple[Object, ...]
    excluded: tuple[Object, ...]
    equivalent: bool
    namespaces: LabelSelector
    objects: LabelSelector

    @classmethod
    def build(cls, given: Mapping[str, Any], rules: Iterable[Object], excluded: Iterable[Object] = ()) -> Matcher:
        """From an object with `matchPolicy`, `namespaceSelector`, `objectSelector`. Raises ApiError."""
        return cls(tuple(rules), tuple(excluded), given.get("matchPolicy", "Equivalent") == "Equivalent",
                   selectors.from_label_selector(given.get("namespaceSelector") or {}),
                   selectors.from_label_selector(given.get("objectSelector") or {}))

    def match(self, attributes: Attributes, registry: Registry, space: Mapping[str, str]) -> Resource | None:
        """The resource under which the request is covered (its own, or an equivalent), None when it is not.

        `space` holds the labels of the request's namespace."""
        own = attributes.resource
        found = self._ruled(attributes, own)
        if not found and self.equivalent and any(matches(rule, Asked.of(attributes, own), False)
                                                 for rule in self.rules):
            found = next((other for other in equivalents(registry, own) if self._ruled(attributes, other)), None)
        if found is None or not self._selected(attributes, space):
            return None
        return found

    def _ruled(self, attributes: Attributes, resource: Resource) -> Resource | None:
        asked = Asked.of(attributes, resource)
        if any(matches(rule, asked) for rule in self.excluded):
            return None
        return resource if not self.rules or any(matches(rule, asked) for rule in self.rules) else None

    def _selected(self, attributes: Attributes, space: Mapping[str, str]) -> bool:
        namespaced = attributes.resource.namespaced or attributes.resource.name == "namespaces"
        if namespaced and not self.namespaces.empty:
            own = attributes.obj if attributes.resource.name == "namespaces" and not attributes.subresource else None
            if not self.namespaces.matches(dict(_labels(own) if own is not None else space)):
                return False
        if self.objects.empty:
            return True
        return any(self.objects.matches(_labels(obj)) for obj in (attributes.obj, attributes.old) if obj is not None)


def _labels(obj: Object | None) -> dict[str, str]:
    return ((obj or {}).get("metadata") or {}).get("labels") or {}
