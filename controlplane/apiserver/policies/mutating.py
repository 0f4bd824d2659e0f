"""MutatingAdmissionPolicy: expressions that complete or change an object.

Owns the two kinds of mutation: an apply configuration, merged as a server-side apply would but without owners, and a
JSON patch. Policies run by name, each seeing what those before left; one that asks for it runs again after others
changed the object. A mutation that cannot be evaluated refuses the request unless the policy fails open. Called by the
admission chain.

Upstream: k8s.io/apiserver/pkg/admission/plugin/policy/mutating.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.policies import authorizer, expressions
from controlplane.apiserver.policies.bindings import Book, Case, Misconfigured
from controlplane.apiserver.policies.expressions import Scope
from controlplane.apiserver.policies.validating import refused
from controlplane.apiserver.webhooks import reviews, versions
from controlplane.machinery import apply
from controlplane.machinery.cel import constructed
from controlplane.machinery.cel.expression import CompileError, EvaluationError
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource

MANAGER = "mutating-admission-policy"  # under which a configuration is merged; it owns nothing afterwards
Object = dict[str, Any]


class MutatingPolicies(Plugin):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._book = Book(context, "mutating")

    async def mutate(self, attributes: Attributes) -> None:
        cases = self._book.cases(attributes)
        if not cases or attributes.obj is None:
            return
        with authorizer.asking(self.context):
            for case in cases:
                key = f"policy/{case.policy.name}/{case.binding.name}"
                again = case.policy.spec.get("reinvocationPolicy") == "IfNeeded"
                if attributes.round and not (again and attributes.seen.get(key) not in (None, attributes.obj)):
                    continue
                await self._case(attributes, case)
                if again:
                    attributes.remember(key)

    async def _case(self, attributes: Attributes, case: Case) -> None:
        policy = case.policy
        await versions.prepare(attributes, case.resource)
        try:
            for scope in self._book.scopes(attributes, case):
                if not expressions.holds(policy.spec.get("matchConditions") or [], scope):
                    continue
                params, budget = scope.given["params"], scope.budget
                for mutation in policy.spec.get("mutations") or []:
                    # each sees the object as the one before left it
                    await versions.prepare(attributes, case.resource)
                    now = expressions.Scope({**self._book.scope(attributes, case), "params": params}, budget,
                                            policy.variables)
                    await self._mutate(attributes, case, mutation, now)
        except (Misconfigured, CompileError, EvaluationError, reviews.BadAnswer) as error:
            if not policy.fails_open:
                raise refused(attributes, f"policy '{policy.name}' with binding '{case.binding.name}' denied request: "
                              f"{error}") from None

    async def _mutate(self, attributes: Attributes, case: Case, mutation: Object, scope: Scope) -> None:
        assert attributes.obj is not None
        view = reviews.shown(attributes, attributes.obj, case.resource)
        assert view is not None
        patching = mutation.get("patchType") == "JSONPatch"
        text = (mutation.get("jsonPatch" if patching else "applyConfiguration") or {}).get("expression") or ""
        value = scope.evaluate(constructed.as_maps(text))
        if patching:
            if not isinstance(value, list):
                raise EvaluationError("a JSON patch expression must give a list of JSONPatch")
            made = reviews.patched(view, [_operation(one) for one in value])
        else:
            if not isinstance(value, dict):
                raise EvaluationError("an apply configuration must be an Object")
            made = merged(view, value, case.resource, self.context.clock.timestamp())
        attributes.replace(await versions.back(attributes, case.resource, made),
                           f"MutatingAdmissionPolicy '{case.policy.name}'")


def _operation(one: Any) -> Any:
    """A JSON patch operation with only the members it needs."""
    return {key: value for key, value in one.items() if key in ("op", "path", "from", "value")} \
        if isinstance(one, dict) else one


def merged(view: Object, configuration: Object, resource: Resource, now: str) -> Object:
    """The object with the configuration merged in: maps by key, lists as their type says. Raises EvaluationError.
    Pure."""
    metadata = view["metadata"]
    for field in ("apiVersion", "kind"):
        if configuration.get(field) not in (None, view[field]):
            raise EvaluationError(f"{field} cannot be changed by an apply configuration")
    asked = configuration.get("metadata") or {}
    whole = {**configuration, "apiVersion": view["apiVersion"], "kind": view["kind"],
             "metadata": {**asked, **{f: metadata[f] for f in ("name", "namespace") if f in metadata}}}
    live = {**view, "metadata": {k: v for k, v in metadata.items() if k != "managedFields"}}
    try:
        made: Object = apply.apply(live, whole, MANAGER, True, resource.node, now)
    except ApiError as error:
        raise EvaluationError(error.message) from None
    made["metadata"].pop("managedFields", None)
    if "managedFields" in metadata:
        made["metadata"]["managedFields"] = metadata["managedFields"]
    return made
