"""Expressions in the configuration of admission, compiled when it is written: a mistake is told to who made it.

Owns where expressions stand in webhook configurations and policies, and which names and type each may have. What an
update leaves as it is, is not judged again. Called by the admission chain, in its validating pass.

Upstream: k8s.io/kubernetes/pkg/apis/admissionregistration/validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.webhooks.matching import GROUP
from controlplane.machinery.cel import constructed
from controlplane.machinery.errors import Cause, Invalid, invalid

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """`types` are the static types it may have, none: any; `variable` is the name it defines."""

    path: str
    text: str
    types: Sequence[str] = ()
    authorizer: bool = True
    variable: str = ""


def expressions_of(kind: str, obj: Object) -> Iterator[Expression]:
    """Every expression of a configuration object, in the order in which they may use each other. Pure."""
    if kind.endswith("WebhookConfiguration"):
        for index, hook in enumerate(obj.get("webhooks") or []):
            for at, condition in enumerate(hook.get("matchConditions") or []):
                yield Expression(f"webhooks[{index}].matchConditions[{at}].expression",
                                 condition.get("expression") or "", ("BOOL",))
        return
    spec = obj.get("spec") or {}
    for at, variable in enumerate(spec.get("variables") or []):
        yield Expression(f"spec.variables[{at}].expression", variable.get("expression") or "",
                         variable=variable.get("name") or "")
    for at, condition in enumerate(spec.get("matchConditions") or []):
        yield Expression(f"spec.matchConditions[{at}].expression", condition.get("expression") or "", ("BOOL",))
    for at, validation in enumerate(spec.get("validations") or []):
        yield Expression(f"spec.validations[{at}].expression", validation.get("expression") or "", ("BOOL",))
        if told := validation.get("messageExpression"):
            yield Expression(f"spec.validations[{at}].messageExpression", told, ("STRING",), authorizer=False)
    for at, annotation in enumerate(spec.get("auditAnnotations") or []):
        yield Expression(f"spec.auditAnnotations[{at}].valueExpression", annotation.get("valueExpression") or "",
                         ("STRING", "NULL"))
    for at, mutation in enumerate(spec.get("mutations") or []):
        for field in ("applyConfiguration", "jsonPatch"):
            if mutation.get(field):
                yield Expression(f"spec.mutations[{at}].{field}.expression", constructed.as_maps(
                    mutation[field].get("expression") or ""))


def faults(kind: str, obj: Object, old: Object | None) -> list[Cause]:
    """What does not compile, or has the wrong type, and was not there before."""
    known = {e.text for e in expressions_of(kind, old)} if old is not None else set()
    asked = [e for e in expressions_of(kind, obj) if e.text.strip()]
    if all(e.text in known for e in asked):
        return []
    from controlplane.apiserver.policies.declarations import Declarations  # loads the CEL library
    policy = not kind.endswith("WebhookConfiguration")
    declared = Declarations((obj.get("spec") or {}).get("paramKind") is not None, policy)
    found = []
    for expression in asked:
        if expression.variable:
            why = declared.define(expression.variable, expression.text)
        else:
            why = declared.fault(expression.text, expression.types, expression.authorizer)
        if why and expression.text not in known:
            found.append(invalid(expression.path, expression.text, why))
    return found


class Expressions(Plugin):
    async def validate(self, attributes: Attributes) -> None:
        resource = attributes.resource
        if resource.group != GROUP or attributes.operation not in (CREATE, UPDATE) or attributes.subresource \
                or attributes.obj is None:
            return
        if causes := faults(resource.kind, attributes.obj, attributes.old):
            raise Invalid.of(resource.kind, attributes.name, causes, resource.group)
