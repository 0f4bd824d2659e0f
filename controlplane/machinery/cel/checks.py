"""The CEL rules of a definition's schema: whether they are written right, have the right types, and can be afforded.

Owns what is said of `x-kubernetes-validations` when a CustomResourceDefinition is written, in upstream's order: first
what is wrong with the rules' own fields, and only where nothing is, what is wrong with their expressions. Pure. Called
by the validation of definitions, when a schema has rules: it loads the CEL library.

Upstream: k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from controlplane.machinery.cel import costs, expression, rules, types
from controlplane.machinery.cel.costs import PER_RULE, PER_SCHEMA
from controlplane.machinery.cel.rules import RULES
from controlplane.machinery.cel.shapes import Shape, shape, visible
from controlplane.machinery.errors import Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.structural.structural import EMBEDDED, Schema, everywhere, field_path

REASONS = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
MOST_EXPENSIVE = 4  # rules that are named when all together cost too much
WORTH_NAMING = PER_SCHEMA // 100  # the least such a rule costs
_BREAK = re.compile(r"[\n\r]")
_COSTLY = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"


def examine(schema: Schema, path: str, sound: bool = True, faults: Iterable[Cause] = ()) -> tuple[
        list[Cause], list[Cause]]:
    """(what is wrong, what costs too much) of all rules of a schema at `path`; expressions have types only in a
    `sound` one, and where none of the `faults` is at the rule's node or below."""
    places = [place for place in costs.placed(schema, path) if place.node.get(RULES)]
    written = [cause for at, node in everywhere(schema, path) if node.get(RULES) for cause in _written(node, at)]
    wrong, costly, spent = list(written), [], []
    for place in places if sound else ():
        if any(cause.field.startswith(place.path) for cause in (*written, *faults)):
            continue
        judged = _Rules(place, place.path == path)
        wrong += judged.causes()
        spent += judged.spent
    for at, what, cost in spent:
        if cost > PER_RULE:
            costly.append(forbidden(f"{at}.{what}", costs.exceeded(f"estimated {what} cost", cost, PER_RULE)))
    total = min(costs.MAX, sum(cost for *_, cost in spent))
    if total > PER_SCHEMA:
        dear = sorted((one for one in spent if one[2] >= WORTH_NAMING), key=lambda one: -one[2])[:MOST_EXPENSIVE]
        costly += [forbidden(f"{at}.{what}", _COSTLY) for at, what, _ in dear]
        costly.append(forbidden(path, costs.exceeded(
            "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", total, PER_SCHEMA)))
    return wrong, costly


def _written(node: Schema, path: str) -> Iterator[Cause]:
    """What is wrong with the fields of a node's rules, whatever their expressions say."""
    for index, rule in enumerate(node[RULES]):
        at = f"{path}.{RULES}[{index}]"
        text, message = (rule.get("rule") or "").strip(), rule.get("message") or ""
        if not text:
            yield required(f"{at}.rule", "rule is not specified")
        elif message and not message.strip():
            yield invalid(f"{at}.message", message, "must be non-empty if specified")
        elif _BREAK.search(message.strip()):
            yield invalid(f"{at}.message", message, "must not contain line breaks")
        elif _BREAK.search(text) and not message.strip():
            yield required(f"{at}.message", "message must be specified if rule contains line breaks")
        if rule.get("messageExpression") and not rule["messageExpression"].strip():
            yield required(f"{at}.messageExpression", "messageExpression must be non-empty if specified")
        if rule.get("reason") is not None and rule["reason"] not in REASONS:
            yield not_supported(f"{at}.reason", rule["reason"], REASONS)
        where = rule.get("fieldPath") or ""
        if where and not where.strip():
            yield invalid(f"{at}.fieldPath", where, "must be non-empty if specified")
        if _BREAK.search(where):
            yield invalid(f"{at}.fieldPath", where, "must not contain line breaks")
        try:
            field_path(where, node)
        except ValueError:
            yield invalid(f"{at}.fieldPath", where, "must be a valid path")


class _Rules:
    """The expressions of one node's rules; `spent` is what they cost: (path of the rule, which field, cost)."""

    def __init__(self, place: costs.Place, root: bool) -> None:
        self.place, self.whole = place, root or bool(place.node.get(EMBEDDED))
        self.spent: list[tuple[str, str, int]] = []

    def causes(self) -> Iterator[Cause]:
        sizes = shape(self.place.node, self.whole)
        if sizes is None:
            return  # nothing of it is visible to rules
        for index, rule in enumerate(self.place.node[RULES]):
            at = f"{self.place.path}.{RULES}[{index}]"
            yield from self._rule(rule, at, sizes)
            if not expression.mentions(rule["rule"], "oldSelf"):
                if "optionalOldSelf" in rule:
                    yield invalid(f"{at}.optionalOldSelf", rule["optionalOldSelf"],
                                  "may not be set if oldSelf is not used in rule")
            elif self.place.uncorrelatable:
                yield invalid(f"{at}.rule", rule["rule"], "oldSelf cannot be used on the uncorrelatable portion of the "
                              f"schema within {self.place.uncorrelatable}")

    def _rule(self, rule: dict[str, Any], at: str, sizes: Shape) -> Iterator[Cause]:
        checker = checker_of(self.place.node, bool(rule.get("optionalOldSelf")), self.whole)
        text, message = rule["rule"], rule.get("messageExpression") or ""
        if fault := _fault(checker, text):
            yield _refused(f"{at}.rule", rule, fault)
            return
        cost = costs.everywhere(costs.estimate(checker.serialized(text), sizes), self.place.count, sizes)
        self.spent.append((at, "rule", cost))
        if not message:
            return
        fault = checker.fault(message)
        if fault or checker.returns(message) not in ("STRING", "DYN"):
            yield _refused(f"{at}.messageExpression", rule, f"messageExpression compilation failed: {fault}"
                           if fault else "messageExpression must evaluate to a string")
            return
        self.spent.append((at, "messageExpression", costs.estimate(checker.serialized(message), sizes)))


def of_default(value: Any, schema: Schema, path: str, whole: bool) -> list[Cause]:
    """What the rules of a node, and below, say of its default."""
    return rules.of_default(value, schema, path, whole, lambda rule, node, resource: _fault(
        checker_of(node, bool(rule.get("optionalOldSelf")), resource), rule["rule"]))


def _fault(checker: types.Checker, text: str) -> str:
    """What is wrong with a rule, "" when nothing is."""
    if fault := checker.fault(text):
        return f"compilation failed: {fault}"
    return "" if checker.returns(text) in ("BOOL", "DYN") else "cel expression must evaluate to a bool"


def checker_of(schema: Schema, optional: bool, whole: bool) -> types.Checker:
    """What knows the types of `self` and `oldSelf`; whether `oldSelf` is optional, and `self` a whole resource."""
    node = visible(schema, whole)
    return types.Checker({"self": node, "oldSelf": None if optional else node}, lambda _: {})


def _refused(at: str, rule: dict[str, Any], why: str) -> Cause:
    """Of a whole rule, as upstream's messages show it: a structure in Go's order, in JSON that is safe in HTML."""
    shown = {"Rule": rule.get("rule") or "", "Message": rule.get("message") or "",
             "MessageExpression": rule.get("messageExpression") or "", "Reason": rule.get("reason"),
             "FieldPath": rule.get("fieldPath") or "", "OptionalOldSelf": rule.get("optionalOldSelf")}
    text = orjson.dumps(shown).decode()
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Cause("FieldValueInvalid", f"Invalid value: {text}: {why}", at)
