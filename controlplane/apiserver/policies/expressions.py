"""What CEL expressions of admission see: `object`, `oldObject`, `request`, `params`, `namespaceObject`, `variables`,
`authorizer`.

Owns the values behind these names, made once per request and only when an expression mentions them, and the budget all
expressions of one policy share. Variables are evaluated when first used; one that fails fails only the expressions that
use it. It loads the CEL library through `machinery.cel`, when the first expression is compiled. Called by policies and
by the match conditions of webhooks.

Upstream: k8s.io/apiserver/pkg/admission/plugin/cel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery.cel import expression as cel
from controlplane.machinery.cel.expression import Budget, EvaluationError, Program

Object = dict[str, Any]
NAMES = ("authorizer", "namespaceObject", "object", "oldObject", "params", "request", "variables")
_TYPES = tuple((name, "DYN") for name in NAMES)
CONDITION_NAMES = ("authorizer", "object", "oldObject", "request")
_USES = re.compile(r"\bvariables\s*\.\s*([A-Za-z_]\w*)")
_HAS = re.compile(r"\bhas\(\s*(object|oldObject|params|namespaceObject)\s*\.\s*(\w+)\s*\)")  # what may be null
_HAS_VARIABLE = re.compile(r"\bhas\(\s*variables\s*\.\s*(\w+)\s*\)")
_MISSING = re.compile(r'no such key: "?(\w+)"?')


def compiled(expression: str, names: Sequence[str] = NAMES) -> Program:
    """The program of an expression over some of NAMES; null has no fields. Raises cel.CompileError."""
    expression = _HAS.sub(r"(\1 != null && has(\1.\2))", expression)
    return cel.compile_(expression, _TYPES if names is NAMES else tuple((name, "DYN") for name in names))


@dataclass(slots=True)
class Scope:
    """The values of one request. `given` holds a value, or a function that makes it, by name."""

    given: Mapping[str, Any]
    budget: Budget = field(default_factory=Budget)
    definitions: Mapping[str, str] = field(default_factory=dict)  # of the policy's variables: name -> expression
    _made: dict[str, Any] = field(default_factory=dict)
    _known: dict[str, Any] = field(default_factory=dict)  # variables evaluated so far
    _failed: dict[str, str] = field(default_factory=dict)  # and those that could not be

    def _value(self, name: str) -> Any:
        if name not in self._made:
            value = self.given.get(name)
            self._made[name] = value() if callable(value) else value
        return self._made[name]

    def evaluate(self, expression: str, names: Sequence[str] = NAMES) -> Any:
        """The value of an expression. Raises cel.CompileError and cel.EvaluationError."""
        program = compiled(expression, names)
        seen = {name: self._value(name) if cel.mentions(expression, name) else None
                for name in names if name != "variables"}
        if "variables" in names:
            seen["variables"] = self._variables(expression)
        if failed := [name for name in _HAS_VARIABLE.findall(expression) if name in self._failed]:
            raise EvaluationError(self._failed[failed[0]])
        try:
            return program.evaluate(seen, self.budget)
        except EvaluationError as error:
            if (found := _MISSING.search(str(error))) and found.group(1) in self._failed:
                raise EvaluationError(self._failed[found.group(1)]) from None
            raise

    def _variables(self, expression: str) -> Object:
        """The variables an expression uses, evaluated in the order of their definition."""
        wanted = {name for name in _USES.findall(expression) if name in self.definitions}
        for name in self.definitions:
            if name in wanted and name not in self._known and name not in self._failed:
                try:
                    self._known[name] = self.evaluate(self.definitions[name])
                except (cel.CompileError, EvaluationError) as error:
                    self._failed[name] = f"composited variable {name!r} fails to evaluate: {error}".replace("'", '"')
        return {name: self._known[name] for name in wanted if name in self._known}


def holds(conditions: Sequence[Object], scope: Scope, names: Sequence[str] = NAMES) -> bool:
    """Whether all match conditions hold, which know no namespace. Raises EvaluationError when one could not be
    evaluated and none is false."""
    if not conditions:
        return True
    faults = []
    scope = Scope({**scope.given, "namespaceObject": None}, scope.budget, scope.definitions)
    for condition in conditions:
        try:
            if scope.evaluate(text := condition.get("expression") or "", names) is not True:
                return False
        except cel.CompileError as error:
            faults.append(f"compilation error: {error}")
        except EvaluationError as error:
            faults.append(f"expression '{text}' resulted in error: {error}")
    if faults:
        raise EvaluationError(faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]")
    return True


def scope_of(request: Object, obj: Object | None, old: Object | None, authorizer: Any = None,
             namespace: Callable[[], Any] | None = None) -> dict[str, Any]:
    """The values of a request that do not depend on a policy. `request` is an AdmissionRequest."""
    told = {key: value for key, value in request.items() if key not in ("object", "oldObject", "uid")}
    return {"object": obj, "oldObject": old, "request": told, "authorizer": authorizer, "namespaceObject": namespace}
