"""What expressions of admission policies may speak of, by type: a wrong one is refused when the policy is written.

Owns the types of `request` and `namespaceObject`, and those that a policy's variables have by their own expressions;
objects and parameters may be anything. A result must be what its place asks for, and `dyn` is not. It loads the CEL
library. Called by `compilation`.

Upstream: k8s.io/apiserver/pkg/admission/plugin/cel/{compile,composition}.go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from controlplane.machinery.cel import expression as expression_
from controlplane.machinery.cel import types

Node = dict[str, Any]
TEXT: Node = {"type": "string"}
TEXTS: Node = {"type": "array", "items": TEXT}


def _object(**properties: Node) -> Node:
    return {"type": "object", "properties": properties}


def _map(values: Node) -> Node:
    return {"type": "object", "additionalProperties": values}


_KIND, _RESOURCE = (_object(group=TEXT, version=TEXT, **{last: TEXT}) for last in ("kind", "resource"))
REQUEST = _object(
    kind=_KIND, resource=_RESOURCE, subResource=TEXT, requestKind=_KIND, requestResource=_RESOURCE,
    requestSubResource=TEXT, name=TEXT, namespace=TEXT, operation=TEXT, dryRun={"type": "boolean"}, options={},
    userInfo=_object(username=TEXT, uid=TEXT, groups=TEXTS, extra=_map(TEXTS)))
_TIME: Node = {"type": "string", "format": "date-time"}
_NUMBER: Node = {"type": "integer"}
NAMESPACE = _object(
    metadata=_object(name=TEXT, generateName=TEXT, namespace=TEXT, labels=_map(TEXT), annotations=_map(TEXT), UID=TEXT,
                     creationTimestamp=_TIME, deletionGracePeriodSeconds=_NUMBER, deletionTimestamp=_TIME,
                     generation=_NUMBER, resourceVersion=TEXT, finalizers=TEXTS),
    spec=_object(finalizers=TEXTS),
    status=_object(phase=TEXT, conditions={"type": "array", "items": _object(
        status=TEXT, type=TEXT, lastTransitionTime=_TIME, message=TEXT, reason=TEXT)}))
# What a variable is for others, by the static type of its expression.
_STATIC: dict[str, Node] = {"STRING": TEXT, "INT": _NUMBER, "BOOL": {"type": "boolean"}, "DOUBLE": {"type": "number"},
                            "DYN": {}}
_SHOWN = {"NULL": "null_type"}


def _node(kind: str) -> Node | None:
    """The node of a static type; None: it has more to it than nodes here can say."""
    if kind in _STATIC:
        return _STATIC[kind]
    for opening, field in (("LIST<", "items"), ("MAP<STRING, ", "additionalProperties")):
        if kind.startswith(opening) and (inner := kind[len(opening):-1]) in _STATIC:
            return {"type": "array" if field == "items" else "object", field: _STATIC[inner]}
    return None


def _undeclared(expression: str, name: str) -> str:
    """What upstream says of a name that stands for nothing, at each place."""
    found = []
    for number, line in enumerate(expression.split("\n"), 1):
        found += [f"ERROR: <input>:{number}:{place.start() + 1}: undeclared reference to '{name}' (in container '')\n"
                  f" | {line}\n | {'.' * place.start()}^" for place in re.finditer(rf"(?<![\w.]){name}\b", line)]
    return "\n".join(found)


class Declarations:
    """What one configuration may speak of: a `policy` of namespaces and variables, with a paramKind of `parameters`."""

    def __init__(self, parameters: bool, policy: bool = True) -> None:
        self._parameters, self._policy = parameters, policy
        self._variables: dict[str, Node] = {}
        self._loose = {"extra"}  # names whose types are not known here as well as they are upstream
        self._checkers: dict[bool, types.Checker] = {}

    def define(self, name: str, expression: str) -> str:
        """A variable that those after it may use; what is wrong with it, "" when nothing is."""
        fault = self.fault(expression)
        node = {} if fault else _node(self._checker(True).returns(expression).upper())
        if node is None or (node == {} and self._is_loose(expression)):
            self._loose.add(name)
        self._variables[name] = node or {}
        self._checkers.clear()
        return fault

    def fault(self, expression: str, wanted: Sequence[str] = (), authorizer: bool = True) -> str:
        """What is wrong with an expression that must evaluate to one of `wanted`, or to anything."""
        checker = self._checker(authorizer)
        if not self._parameters and expression_.mentions(expression, "params"):
            return "compilation failed: " + _undeclared(expression, "params")
        if fault := checker.fault(expression):
            return f"compilation failed: {fault}"
        found = checker.returns(expression)
        if not wanted or found.upper() in wanted or (found.upper() == "DYN" and self._is_loose(expression)):
            return ""
        names = [_SHOWN.get(kind, kind.lower()) for kind in wanted]
        offered = names[0] if len(names) == 1 else f"one of [{' '.join(names)}]"
        return f"must evaluate to {offered} but got {_SHOWN.get(found.upper(), found.lower())}"

    def _is_loose(self, expression: str) -> bool:
        return any(re.search(rf"\.\s*{name}\b", expression) for name in self._loose)

    def _checker(self, authorizer: bool) -> types.Checker:
        if authorizer not in self._checkers:
            nodes: dict[str, Node | None] = {"object": None, "oldObject": None, "request": REQUEST}
            nodes |= {"namespaceObject": NAMESPACE, "variables": _object(**self._variables)} if self._policy else {}
            nodes |= {"params": None} if self._parameters else {}
            nodes |= {"authorizer": None} if authorizer else {}
            self._checkers[authorizer] = types.Checker(nodes, lambda _: {})
        return self._checkers[authorizer]
