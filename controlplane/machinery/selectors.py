"""Label selectors: their grammar, and the one test that every LIST, watch, Service and controller asks.

A `LabelSelector` is immutable and built once per request or object; `matches` costs a few dictionary look-ups, for it
runs for each object and each watcher. Bad text raises BadRequest in upstream's words. Selectors by field live in
`fieldselectors` and are offered here too.

Upstream: k8s.io/apimachinery/pkg/labels and meta/v1 LabelSelectorAsSelector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import ApiError, BadRequest
from controlplane.machinery.fieldselectors import (
    FieldRequirement,
    FieldSelector,
    check_fields,
    field_matcher,
    fields_of,
    parse_fields,
)

__all__ = ["EVERYTHING", "NOTHING", "FieldRequirement", "FieldSelector", "LabelSelector", "Requirement",
           "check_fields", "field_matcher", "fields_of", "from_label_selector", "from_map", "parse_fields",
           "parse_labels"]

Test = Callable[[Mapping[str, str]], bool]
_SET_BASED = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
_OPERATORS = "in, notin, =, ==, !=, gt, lt"


@dataclass(frozen=True, slots=True)
class Requirement:
    """`operator` is one of `=`, `!=`, `in`, `notin`, `exists`, `!`, `>`, `<`; `values` are sorted."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.operator == "exists":
            return self.key
        if self.operator == "!":
            return f"!{self.key}"
        if self.operator in ("in", "notin"):
            return f"{self.key} {self.operator} ({','.join(self.values)})"
        return f"{self.key}{self.operator}{self.values[0]}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.key)
        if self.operator in ("=", "in"):
            return found in self.values
        if self.operator in ("!=", "notin"):
            return found not in self.values
        if self.operator == "exists":
            return found is not None
        if self.operator == "!":
            return found is None
        try:
            number = int(found or "")
        except ValueError:
            return False
        return number > int(self.values[0]) if self.operator == ">" else number < int(self.values[0])


class LabelSelector:
    """All of its requirements together. Without any it matches everything; `nothing` matches nothing."""

    __slots__ = ("_equal", "_rest", "empty", "nothing", "requirements")

    def __init__(self, requirements: tuple[Requirement, ...] = (), nothing: bool = False) -> None:
        self.requirements = tuple(sorted(requirements, key=lambda r: r.key))
        self.nothing = nothing
        self.empty = not requirements and not nothing
        # equalities are nearly all there is: they go first, without a call
        self._equal = tuple((r.key, r.values[0]) for r in self.requirements
                            if r.operator in ("=", "in") and len(r.values) == 1)
        self._rest = tuple(r for r in self.requirements if not (r.operator in ("=", "in") and len(r.values) == 1))

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        if self.nothing:
            return False
        if labels is None:
            labels = {}
        for key, value in self._equal:
            if labels.get(key) != value:
                return False
        return all(requirement.matches(labels) for requirement in self._rest)

    def __str__(self) -> str:
        return ",".join(str(r) for r in self.requirements)

    def __repr__(self) -> str:
        return f"LabelSelector({'nothing' if self.nothing else str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, LabelSelector)
                and (self.requirements, self.nothing) == (other.requirements, other.nothing))

    def __hash__(self) -> int:
        return hash((self.requirements, self.nothing))


EVERYTHING = LabelSelector()
NOTHING = LabelSelector(nothing=True)


def from_map(labels: Mapping[str, str] | None) -> LabelSelector:
    """Equality with each label: the selector of a Service or ReplicationController. Empty matches everything."""
    return LabelSelector(tuple(Requirement(k, "=", (v,)) for k, v in (labels or {}).items()))


def from_label_selector(selector: Mapping[str, Any] | None) -> LabelSelector:
    """A metav1.LabelSelector; None matches nothing and `{}` everything. Raises BadRequest for a bad expression."""
    if selector is None:
        return NOTHING
    found = [Requirement(k, "=", (v,)) for k, v in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or ():
        operator = _SET_BASED.get(expression.get("operator", ""))
        if operator is None:
            raise BadRequest(f'"{expression.get("operator", "")}" is not a valid label selector operator')
        found.append(_requirement(expression.get("key", ""), operator, expression.get("values") or []))
    return LabelSelector(tuple(found)) if found else EVERYTHING


def parse_labels(text: str) -> LabelSelector:
    """The selector of a `labelSelector=` parameter. Raises BadRequest."""
    return _Parser(text).selector() if text.strip() else EVERYTHING


def _requirement(key: str, operator: str, values: list[str]) -> Requirement:
    """A checked requirement; the key and its values are what labels can be."""
    _check_key(key, "key")
    if operator in ("in", "notin") and not values:
        raise BadRequest("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty")
    if operator in ("exists", "!") and values:
        raise BadRequest("values: Invalid value: values set must be empty for exists and does not exist")
    if operator in (">", "<"):
        if not re.fullmatch("[+-]?[0-9]+", values[0]):
            raise BadRequest(f'values[0]: Invalid value: "{values[0]}": for \'Gt\', \'Lt\' operators, '
                             "the value must be an integer")
        return Requirement(key, operator, (values[0],))
    for index, value in enumerate(values):
        if faults := names.label_value(value):
            raise BadRequest(f'values[{index}][{key}]: Invalid value: "{value}": {"; ".join(faults)}')
    return Requirement(key, operator, tuple(sorted(set(values))))


def _check_key(key: str, path: str) -> None:
    if faults := names.label_key(key):
        raise BadRequest(f'{path}: Invalid value: "{key}": {"; ".join(faults)}')


_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_SPECIAL = frozenset(("==", "!=", "=", "!", "(", ")", ",", "<", ">"))
_COMPARISONS = {"=": "=", "==": "=", "!=": "!=", ">": ">", "<": "<"}


class _Parser:
    """Recursive descent over the tokens; "" is the end."""

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def selector(self) -> LabelSelector:
        found: list[Requirement] = []
        while token := self.peek():
            if token in _SPECIAL and token != "!":
                raise BadRequest(f"found '{token}', expected: !, identifier, or 'end of string'")
            try:
                found.append(self.requirement())
            except ApiError as error:
                raise BadRequest(f"unable to parse requirement: {error.message}") from None
            token = self.take()
            if not token:
                break
            if token != ",":
                raise BadRequest(f"found '{token}', expected: ',' or 'end of string'")
            after = self.peek()
            if not after or (after in _SPECIAL and after != "!"):
                raise BadRequest(f"found '{after}', expected: identifier after ','")
        return LabelSelector(tuple(found))

    def requirement(self) -> Requirement:
        absent = self.peek() == "!"
        if absent:
            self.take()
        key = self.take()
        if not key or key in _SPECIAL:
            raise BadRequest(f"found '{key}', expected: identifier")
        _check_key(key, "<nil>")
        if absent:
            return _requirement(key, "!", [])
        if self.peek() in ("", ","):
            return _requirement(key, "exists", [])
        operator = self.take()
        if operator in _COMPARISONS:
            return _requirement(key, _COMPARISONS[operator], [self.value()])
        if operator in ("in", "notin"):
            return _requirement(key, operator, self.values())
        raise BadRequest(f"found '{operator}', expected: {_OPERATORS}")

    def value(self) -> str:
        if self.peek() in ("", ","):
            return ""
        token = self.take()
        if token in _SPECIAL:
            raise BadRequest(f"found '{token}', expected: identifier")
        return token

    def values(self) -> list[str]:
        token = self.take()
        if token != "(":
            raise BadRequest(f"found '{token}' expected: '('")
        found: list[str] = []
        while True:  # "(a,,b)" holds an empty value, "()" too
            token = self.peek()
            if token in ("", ",", ")"):
                found.append("")
            elif token in _SPECIAL:
                raise BadRequest(f"found '{token}', expected: ',', ')' or identifier")
            else:
                found.append(self.take())
            token = self.take()
            if token == ")":
                return found
            if token != ",":
                raise BadRequest(f"found '{token}', expected: ',' or ')'")
