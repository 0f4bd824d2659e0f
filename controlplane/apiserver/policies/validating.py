"""ValidatingAdmissionPolicy: expressions that must hold for a request to be let in.

Owns the evaluation of match conditions, validations, messages and audit annotations, and what a binding makes of a
failure: a refusal, a warning, an audit annotation. An expression that cannot be evaluated counts as failed unless the
policy fails open. Called by the admission chain.

Upstream: k8s.io/apiserver/pkg/admission/plugin/policy/validating.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver.admission import Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.policies import authorizer, expressions
from controlplane.apiserver.policies.bindings import Book, Case, Misconfigured, Policy
from controlplane.apiserver.policies.expressions import Scope
from controlplane.apiserver.webhooks import versions
from controlplane.machinery.cel.expression import CompileError, EvaluationError
from controlplane.machinery.errors import ApiError

MAX_MESSAGE = 5 * 1024  # bytes of an evaluated message; longer ones are not told
AUDIT_KEY = "validation.policy.admission.k8s.io/validation_failure"
_CODES = {"Forbidden": 403, "Unauthorized": 401, "RequestEntityTooLarge": 413, "Invalid": 422}
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """A validation that does not hold, by its place in the policy."""

    message: str
    reason: str = ""
    index: int = 0


class ValidatingPolicies(Plugin):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._book = Book(context, "validating")

    async def validate(self, attributes: Attributes) -> None:
        cases = self._book.cases(attributes)
        if not cases:
            return
        denied: ApiError | None = None
        published: list[Object] = []
        with authorizer.asking(self.context):
            for case in cases:
                await versions.prepare(attributes, case.resource)
                for failure in self._failures(attributes, case):
                    refusal = self._enforce(attributes, case, failure, published)
                    denied = denied or refusal
        if published:
            attributes.note(AUDIT_KEY, orjson.dumps(published).decode())
        if denied is not None:
            raise denied

    def _failures(self, attributes: Attributes, case: Case) -> list[Failure]:
        spec, found = case.policy.spec, []
        try:
            for scope in self._book.scopes(attributes, case):
                if not expressions.holds(spec.get("matchConditions") or [], scope):
                    continue
                for index, validation in enumerate(spec.get("validations") or []):
                    failure = _judge(scope, validation, index, case.policy.fails_open)
                    if failure is not None:
                        found.append(failure)
                _annotate(attributes, case.policy, scope)
        except (Misconfigured, CompileError, EvaluationError) as error:
            if not case.policy.fails_open:
                found.append(Failure(str(error)))
        return found

    def _enforce(self, attributes: Attributes, case: Case, failure: Failure,
                 published: list[Object]) -> ApiError | None:
        """What the binding makes of a failure; the refusal, if it is one."""
        policy, binding = case.policy.name, case.binding.name
        refusal = None
        for action in case.binding.spec.get("validationActions") or ["Deny"]:
            if action == "Deny" and refusal is None:
                refusal = refused(attributes, f"ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied "
                                  f"request: {failure.message}", failure.reason)
            elif action == "Warn":
                attributes.warn(f"Validation failed for ValidatingAdmissionPolicy '{policy}' with binding "
                                f"'{binding}': {failure.message}")
            elif action == "Audit":
                published.append({"message": failure.message, "policy": policy, "binding": binding,
                                  "expressionIndex": failure.index,
                                  "validationActions": case.binding.spec.get("validationActions")})
        return refusal


def refused(attributes: Attributes, message: str, reason: str = "") -> ApiError:
    """A policy's refusal, in the form of its reason."""
    plain = attributes.forbidden(message)
    reason = reason or "Invalid"
    details = {**(plain.details or {}), "causes": [{"message": message}]}
    return ApiError(plain.message, details, code=_CODES.get(reason, 422), reason=reason)


def _judge(scope: Scope, validation: Object, index: int, fails_open: bool) -> Failure | None:
    """Why a validation fails, None when it holds."""
    expression, reason = validation.get("expression") or "", validation.get("reason") or ""
    try:
        if scope.evaluate(expression) is True:
            return None
    except (CompileError, EvaluationError) as error:
        return None if fails_open else Failure(f"expression '{expression}' resulted in error: {error}", "", index)
    message = ""
    if told := validation.get("messageExpression"):
        try:
            message = scope.evaluate(told)
        except (CompileError, EvaluationError):
            message = ""
        if not isinstance(message, str) or "\n" in message or len(message.encode()) > MAX_MESSAGE:
            message = ""
    message = message.strip() or validation.get("message") or f"failed expression: {expression.strip()}"
    return Failure(message, reason, index)


def _annotate(attributes: Attributes, policy: Policy, scope: Scope) -> None:
    """The audit annotations the policy publishes; one that gives null publishes nothing. Raises EvaluationError."""
    for annotation in policy.spec.get("auditAnnotations") or []:
        value = scope.evaluate(annotation.get("valueExpression") or "null")
        if isinstance(value, str) and value.strip():
            attributes.note(f"{policy.name}/{annotation.get('key')}", value)
