"""Which admission policies apply to a request, under which bindings, with which parameters.

Owns the indexes of policies and bindings of one kind (validating or mutating), kept current by the watch cache; a
policy without a binding does nothing. Promises that a request costs one look-up while there are no bindings. Called by
the two plugins.

Upstream: k8s.io/apiserver/pkg/admission/plugin/policy/{generic,matching}.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver.admission import Attributes
from controlplane.apiserver.context import Context
from controlplane.apiserver.index import Index
from controlplane.apiserver.policies import authorizer, expressions
from controlplane.apiserver.policies.expressions import Scope
from controlplane.apiserver.reading.lists import collection_prefix, object_key
from controlplane.apiserver.webhooks import reviews
from controlplane.apiserver.webhooks.matching import Matcher, exempt
from controlplane.machinery import selectors
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource, named
from controlplane.store.item import Item

LOG = logging.getLogger("apiserver.admission")
NOT_FOUND = "no params found for policy binding with `Deny` parameterNotFoundAction"
Object = dict[str, Any]


class Misconfigured(Exception):  # noqa: N818 - the policy's failure policy says what it means
    """A policy cannot be evaluated; the text says why."""


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    spec: Object
    matcher: Matcher
    variables: dict[str, str]

    @property
    def fails_open(self) -> bool:
        return self.spec.get("failurePolicy") == "Ignore"


@dataclass(frozen=True, slots=True)
class Binding:
    name: str
    spec: Object
    matcher: Matcher | None


@dataclass(frozen=True, slots=True)
class Case:
    """One policy to evaluate for a request under one binding."""

    policy: Policy
    binding: Binding
    resource: Resource  # as which the request matched


def _policy(item: Item) -> Policy | None:
    spec = item.obj.get("spec") or {}
    constraints = spec.get("matchConstraints") or {}
    try:
        matcher = _matcher(constraints)
    except ApiError as error:
        LOG.warning("%s cannot be read: %s", item.key, error.message)
        return None
    return Policy(item.obj["metadata"]["name"], spec, matcher,
                  {v.get("name", ""): v.get("expression", "") for v in spec.get("variables") or []})


def _binding(item: Item) -> Binding | None:
    spec = item.obj.get("spec") or {}
    try:
        matcher = _matcher(spec["matchResources"]) if spec.get("matchResources") else None
    except ApiError as error:
        LOG.warning("%s cannot be read: %s", item.key, error.message)
        return None
    return Binding(item.obj["metadata"]["name"], spec, matcher)


def _matcher(given: Object) -> Matcher:
    return Matcher.build(given, given.get("resourceRules") or [], given.get("excludeResourceRules") or [])


class Book:
    """The policies of one kind: `validating` or `mutating`."""

    def __init__(self, context: Context, kind: str) -> None:
        self._context = context
        group = "admissionregistration.k8s.io"
        self._policies: Index[Policy | None] = Index(context.cache, f"{kind}admissionpolicies.{group}", _policy)
        self._bindings: Index[Binding | None] = Index(context.cache, f"{kind}admissionpolicybindings.{group}", _binding)

    def cases(self, attributes: Attributes) -> list[Case]:
        """What to evaluate, policies by name, bindings by name."""
        bindings = self._bindings.of()
        if not bindings or exempt(attributes):
            return []
        space, found = self._labels(attributes), []
        for policy in self._policies.of():
            bound = [b for b in bindings if policy is not None and b is not None
                     and b.spec.get("policyName") == policy.name]
            if not bound or policy is None:
                continue
            resource = policy.matcher.match(attributes, self._context.registry, space)
            if resource is not None:
                found += [Case(policy, b, resource) for b in bound if b is not None and (
                    b.matcher is None or b.matcher.match(attributes, self._context.registry, space) is not None)]
        return found

    def _space(self, attributes: Attributes) -> Item | None:
        if not attributes.namespace or not attributes.resource.namespaced:
            return None
        return self._context.cache.get(object_key(named("namespaces"), "", attributes.namespace))

    def _labels(self, attributes: Attributes) -> dict[str, str]:
        item = self._space(attributes)
        return item.labels if item is not None else {}

    def _namespace(self, attributes: Attributes) -> Object | None:
        item = self._space(attributes)
        return item.obj if item is not None else None

    def scope(self, attributes: Attributes, case: Case) -> dict[str, Any]:
        """The values expressions of the case see, without parameters."""
        request = reviews.request_of(attributes, case.resource, "")
        return expressions.scope_of(request, request["object"], request["oldObject"],
                                    authorizer.of(self._context, attributes), lambda: self._namespace(attributes))

    def scopes(self, attributes: Attributes, case: Case) -> Iterator[Scope]:
        """A scope for each parameter object, one without when the policy takes none. Raises Misconfigured."""
        given = self.scope(attributes, case)
        for params in self._params(attributes, case):
            yield Scope({**given, "params": params}, definitions=case.policy.variables)

    def _params(self, attributes: Attributes, case: Case) -> list[Object | None]:
        kind, ref = case.policy.spec.get("paramKind"), case.binding.spec.get("paramRef")
        if not kind or not ref:
            return [None]
        resource = self._context.registry.of(kind.get("apiVersion", ""), kind.get("kind", ""))
        if resource is None:
            raise Misconfigured("failed to find resource referenced by paramKind: "
                                f"'{kind.get('apiVersion')}, Kind={kind.get('kind')}'")
        space = ref.get("namespace") or attributes.namespace if resource.namespaced else ""
        if resource.namespaced and not space:
            raise Misconfigured("cannot use namespaced paramRef in policy binding that matches cluster-scoped "
                                "resources")
        if name := ref.get("name"):
            item = self._context.cache.get(object_key(resource, space, name))
            found: list[Object | None] = [item.obj] if item is not None else []
        else:
            selector = selectors.from_label_selector(ref.get("selector") or {})
            found = [i.obj for i in self._context.cache.list(collection_prefix(resource, space))
                     if selector.matches(i.labels)]
        if not found and ref.get("parameterNotFoundAction") == "Deny":
            raise Misconfigured(f"failed to configure binding: {NOT_FOUND}")
        return found
